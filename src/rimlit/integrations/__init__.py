"""Other programs: torch and ONNX exports, the Hugging Face hub, shipped models; TorchRL in a module of its own."""

import rimlit._train  # noqa: F401
from rimlit.integrations.exporting import ExportReport, export_task
from rimlit.integrations.hub import from_pretrained, push_to_hub
from rimlit.integrations.shipped import pretrained

__all__ = ["ExportReport", "export_task", "from_pretrained", "pretrained", "push_to_hub"]
