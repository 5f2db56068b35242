"""rimlit: Recurrent Independent Mechanisms for PyTorch Lightning."""

__version__ = "0.1.0"
