"""What the door registers with the host, again after each Reload UI."""

from __future__ import annotations


def register() -> None:
    """Called by the door each time the host loads its scripts."""
