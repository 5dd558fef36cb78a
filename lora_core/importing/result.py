"""Rows applied to the settings of another program: the job, checked field by field, and a line for each setting of what became of it."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import typing
from collections.abc import Iterable, Mapping, Sequence

from ..config import ConfigError, DataConfig, TrainConfig, check, from_values
from ..messages.errors import LoomError
from ..messages.message import Message, Setting
from .rows import FALSE, TRUE, Fate, Paths, Row, Settings, Unmapped, Value

PLAIN = {
    Fate.SAME: "import.line.same",
    Fate.OTHERWISE: "import.line.otherwise",
    Fate.DEFAULT: "import.line.default",
    Fate.NOTHING: "import.line.nothing",
    Fate.UNKNOWN: "import.line.unknown",
}
REASONED = {**PLAIN, Fate.OTHERWISE: "import.line.otherwise.why", Fate.DEFAULT: "import.line.default.why"}
UNDERSTOOD = ("import.why.understood", "import.why.process")  # reasons of what needs no setting
MAX_SHOWN = 80  # characters of a value in a line


@dataclasses.dataclass(frozen=True)
class Line:
    """What became of one setting. `to`: the values of ours it stands for, by config path; `why`: what is otherwise, or why there is nothing."""

    key: str
    value: str
    fate: Fate
    to: Mapping[str, str] = dataclasses.field(default_factory=dict)
    why: Message | None = None

    def message(self) -> Message:
        """The line as a sentence."""
        to = [Message.of("import.to", setting=Setting(path), value=value) for path, value in self.to.items()]
        code = REASONED[self.fate] if self.why is not None else PLAIN[self.fate]
        if self.fate is Fate.OTHERWISE and not self.to:
            code = "import.line.understood"
        return Message.of(code, key=self.key, value=self.value, to=to, why=self.why or "")


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What a configuration of another program says. `sets`: its folders of pictures, each under the label its keys have.

    `defaults`: values the program takes for this very job where it says nothing, over those of its rows. `notes`: what was noticed on reading.
    """

    settings: Settings
    sets: Sequence[tuple[str, Settings]] = ()
    defaults: Settings = dataclasses.field(default_factory=dict)
    notes: Sequence[Message] = ()


@dataclasses.dataclass(frozen=True)
class Imported:
    """`values`: a job as nested dicts, as a TOML file gives them."""

    program: str
    values: dict[str, typing.Any]
    lines: Sequence[Line]
    notes: Sequence[Message] = ()

    def messages(self) -> list[Message]:
        """What was read, how many settings map how, and a line for each."""
        counts: dict[str, typing.Any] = {fate.value: sum(line.fate is fate for line in self.lines) for fate in Fate}
        head = Message.of("import.counts", program=self.program, **counts)
        order = list(Fate)
        return [
            head,
            *self.notes,
            *(line.message() for line in sorted(self.lines, key=lambda line: order.index(line.fate))),
        ]

    def toml(self) -> str:
        """The job file, with every line as a comment above it."""
        comments = [f"# {text}" for message in self.messages() for text in str(message).splitlines()]
        return "\n".join(comments) + "\n\n" + as_toml(self.values)

    def paths(self) -> Paths:
        """The values by config path, those of pictures and folders left out."""
        out: Paths = {}
        for key, value in self.values.items():
            if isinstance(value, dict):
                out |= {f"{key}.{name}": inner for name, inner in value.items()}
            elif key != "sets":
                out[key] = value
        return out


def carried(
    program: str, rows: Mapping[str, Row], set_rows: Mapping[str, Row], configuration: Configuration
) -> Imported:
    """The job that `configuration` describes by the tables of its program."""
    paths, lines = _applied(configuration.settings, rows, configuration.defaults, "", TrainConfig)
    values: dict[str, typing.Any] = {}
    for path, value in paths.items():
        section, _, name = path.rpartition(".")
        (values.setdefault(section, {}) if section else values)[name] = value
    sets = []
    for label, settings in configuration.sets:
        one, more = _applied(settings, set_rows, {}, label, DataConfig)
        sets.append(one)
        lines += more
    if len(sets) == 1:
        values["data"] = {**values.get("data", {}), **sets[0]}
    elif sets:
        values["sets"] = sets
    return Imported(program, in_order(values), lines, configuration.notes)


def _applied(
    settings: Settings, rows: Mapping[str, Row], defaults: Settings, label: str, root: type
) -> tuple[Paths, list[Line]]:
    """(values by config path, a line for each setting), of settings and then of what the program takes where they say nothing."""
    paths: Paths = {}
    lines: list[Line] = []
    order = {name: n for n, name in enumerate(rows)}
    names = {key: name_in(rows, key) for key, value in settings.items() if value is not None and value not in ([], {})}
    for key in sorted(
        names, key=lambda key: order.get(names[key], len(order))
    ):  # of two that mean the same the later row counts
        value, row = settings[key], rows.get(names[key])
        line, new = _line(f"{label}{key}", value, row, settings, root)
        lines.append(line)
        paths |= new
    for key, row in rows.items():
        value = defaults.get(key, row.default)
        if value is not None and settings.get(key) is None:
            line, new = _line(f"{label}{key}", value, row, settings, root)
            unsaid = {path: word for path, word in new.items() if path not in paths}
            if unsaid:
                lines.append(
                    dataclasses.replace(
                        line, fate=Fate.DEFAULT, to={path: written(word) for path, word in unsaid.items()}
                    )
                )
                paths |= unsaid
    return paths, lines


def name_in(rows: Mapping[str, Row], key: str) -> str:
    """The name of the row for `key`: the key itself, or a pattern with * that fits; "" for none."""
    if key in rows:
        return key
    return next((name for name in rows if "*" in name and fnmatch.fnmatchcase(key, name)), "")


def _line(key: str, value: Value, row: Row | None, settings: Settings, root: type) -> tuple[Line, Paths]:
    """(what became of a setting, the values it stands for)."""
    word = written(value)
    if row is None:
        return Line(key, word, Fate.UNKNOWN), {}
    if row.convert is None:
        return Line(key, word, Fate.NOTHING, why=Message.of(row.why)), {}
    try:
        new = {path: checked(path, one, root) for path, one in row.convert(value, settings).items()}
    except LoomError as error:
        return Line(key, word, Fate.NOTHING, why=error.message), {}
    if not new:
        fate = Fate.OTHERWISE if row.why in UNDERSTOOD else Fate.NOTHING
        off = not row.why or word.lower() in (*FALSE, "0", "0.0")
        return Line(
            key, word, fate, why=Message.of("import.why.off" if off and row.why not in UNDERSTOOD else row.why)
        ), {}
    to = {path: written(one) for path, one in new.items()}
    if row.quiet and list(to.values()) == [word.lower()]:
        return Line(key, word, Fate.SAME, to), new
    why = Message.of(row.why) if row.why else None
    return Line(key, word, row.fate, to, why), new


def checked(path: str, value: Value, root: type = TrainConfig) -> Value:
    """A value as the type of its field, within its bounds. Raises ConfigError."""
    section: typing.Any = root
    *sections, name = path.split(".")
    for one in sections:
        section = typing.get_type_hints(section)[one]
    field = next(f for f in dataclasses.fields(section) if f.name == name)
    kind = typing.get_type_hints(section)[name]
    return typing.cast(Value, check(path, _typed(value, kind), kind, field.metadata))


def _typed(value: Value, kind: type) -> Value:
    """A text of a command line as the type of a field, where it can be read as one."""
    if kind is str:
        return value if isinstance(value, str) else written(value)
    word = str(value).strip().lower()
    if kind is bool and isinstance(value, str) and word in (*TRUE, *FALSE):
        return word in TRUE
    if kind in (int, float) and not isinstance(value, bool):
        try:
            figure = float(word)
        except ValueError:
            return value
        return (
            int(figure)
            if kind is int and figure == figure and abs(figure) < 2**63 and figure == int(figure)
            else figure
        )
    return value


def written(value: Value) -> str:
    """A value in a line: as JSON has it, cut where it is long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "\u2026"


def in_order(values: Mapping[str, typing.Any]) -> dict[str, typing.Any]:
    """The job with its settings in the order of the config classes."""
    order = [field.name for field in dataclasses.fields(TrainConfig)]
    return {key: values[key] for key in sorted(values, key=order.index)}


def as_toml(values: Mapping[str, typing.Any]) -> str:
    """A job as a TOML file: plain settings, then sections."""
    plain = {key: value for key, value in values.items() if not isinstance(value, dict | list)}
    lines = list(_pairs(plain))
    for key, value in values.items():
        if isinstance(value, dict):
            lines += ["", f"[{key}]", *_pairs(value)]
    for one in values.get("sets", []):
        lines += ["", "[[sets]]", *_pairs(one)]
    return "\n".join(lines).lstrip("\n") + "\n"


def _pairs(values: Mapping[str, Value]) -> Iterable[str]:
    """JSON writes texts, numbers and switches as TOML reads them; but for DEL, which TOML wants escaped."""
    return (
        f"{key} = {json.dumps(value, ensure_ascii=False)}".replace("\x7f", "\\u007f") for key, value in values.items()
    )


def require_job(imported: Imported, beside: typing.Any) -> TrainConfig:
    """The job as the engine will read it. Raises LoomError where settings do not go together."""
    try:
        return from_values(imported.values, beside)
    except ConfigError as error:
        raise LoomError("import.no_job", program=imported.program, reason=error.message) from error


__all__ = ["Configuration", "Imported", "Line", "Unmapped", "as_toml", "carried", "require_job"]
