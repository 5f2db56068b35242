"""Training runs killed at random instants, resumed, and compared bit for bit: ``python -m tests.chaos``."""
