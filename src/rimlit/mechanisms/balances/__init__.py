"""Parts that influence who wins, one per file; :mod:`rimlit.mechanisms.balance` has what they share."""

from rimlit.mechanisms.balances.sparsity import ExpectedSparsity

__all__ = ["ExpectedSparsity"]
