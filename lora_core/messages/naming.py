"""What a door's table of names says: for each setting or input rows of (whose it is, its title, the setting's label), the usual place first."""

from __future__ import annotations

from collections.abc import Mapping

Rows = Mapping[str, list[list[str]]]


def display_name(rows: Rows, name: str, owner: str = "") -> str:
    """The label of a setting as its `owner` shows it, else with the title of where it is set behind it. What has no row keeps its name."""
    labels = [label for who, _, label in rows.get(name, []) if owner and who == owner and label]
    if labels:
        return labels[0]
    return next((_elsewhere(title, label) for _, title, label in rows.get(name, [])), name)


def _elsewhere(title: str, label: str) -> str:
    return f"{label} ({title})" if title and label else title or label
