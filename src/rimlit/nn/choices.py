"""Check of options with named values."""


def require_known(**choices: tuple[str, tuple[str, ...]]) -> None:
    """Raise a ValueError that names the first of ``choices`` (value, known values) that is not known."""
    for name, (value, known) in choices.items():
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}; got {name}={value!r}.")
