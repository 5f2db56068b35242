"""``python -m rimlit``."""

from rimlit.cli import main

main()
