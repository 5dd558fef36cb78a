"""Named job files: settings that published experiments found good, as a start for one's own. A job says recipe = "face", and then what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..compat import parse_toml
from ..messages.errors import LoomError

LENGTHS = ("steps", "steps_per_picture", "epochs")  # a run is as long as one of them says
HERE = Path(__file__).resolve().parent


def names() -> list[str]:
    return sorted(p.stem for p in HERE.glob("*.toml"))


def recipe(name: str) -> dict[str, Any]:
    """The job of a recipe, as nested dicts. Raises LoomError for an unknown name."""
    if name not in names():
        raise LoomError("recipe.unknown", field="recipe", name=repr(name), allowed=names())
    return read_toml(HERE / f"{name}.toml")


def about(name: str) -> str:
    """The first line of a recipe's file: what it is for and where it comes from."""
    return (HERE / f"{name}.toml").read_text(encoding="utf-8").splitlines()[0].lstrip("# ")


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as nested dicts. Raises LoomError when it cannot be read."""
    try:
        return parse_toml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise LoomError("file.unreadable", file=path, reason=error.strerror) from error
    except ValueError as error:  # neither UTF-8 nor TOML
        raise LoomError("recipe.not_toml", file=path, reason=error) from error


def merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The job `first` with the nested values of `second` put over it. A length in `second` replaces that of `first`, however either says it."""
    if any(second.get(key) for key in LENGTHS):
        first = {key: value for key, value in first.items() if key not in LENGTHS}
    return _over(first, second)


def _over(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    out = dict(first)
    for key, value in second.items():
        out[key] = _over(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out
