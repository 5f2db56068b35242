"""Training runs killed at random instants, gone on with, and compared bit for bit: ``python -m tests.chaos``."""
