"""Entries that are sent to a tracker, each a line of ``tracking.jsonl``."""

import json
from typing import Any, TypeAlias

Entry: TypeAlias = dict[str, Any]
"""``kind`` and the content: for metrics, parameters and tags by name under ``values``."""

STATES = ("RUNNING", "FINISHED", "FAILED", "KILLED")
WORDS = {"metrics": "metric", "params": "parameter", "tags": "tag", "file": "file", "status": "status"}
"""Name of one item of each kind, for messages."""


def parse_entry(line: bytes) -> Entry:
    """Return the entry of a line.

    Raises:
        ValueError: The line is damaged: it holds no entry that a tracker could take.
    """
    try:
        entry = json.loads(line)
        if is_entry(entry):
            return dict(entry)
    except RecursionError:
        pass
    raise ValueError("no entry")


def is_entry(entry: Any) -> bool:
    """Return whether an entry has every field, of its type; the file may come from another person."""
    if not isinstance(entry, dict) or not _is_int(entry.get("time", 0)):
        return False
    kind, values = entry.get("kind"), entry.get("values")
    if kind == "metrics":
        return _is_int(entry.get("step")) and _is_int(entry.get("time")) and _is_dict_of(values, int, float)
    if kind in ("params", "tags"):
        return _is_dict_of(values, str)
    if kind == "file":
        return isinstance(entry.get("path"), str) and isinstance(entry.get("folder"), str)
    return kind == "status" and entry.get("status") in STATES


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and -(2**63) <= value < 2**63


def _is_dict_of(values: Any, *types: type) -> bool:
    return isinstance(values, dict) and all(isinstance(value, types) for value in values.values())


def size_of(entry: Entry) -> int:
    """Return how many items an entry has."""
    return len(entry["values"]) if "values" in entry else 1
