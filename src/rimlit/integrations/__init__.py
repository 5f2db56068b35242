"""Backbones and tasks in other frameworks. Each module needs an extra of its own and is imported by its name."""
