"""A row says how one setting of another program is carried over. Tables of rows make the job, the report and the page of the documentation alike."""

from __future__ import annotations

import dataclasses
import enum
import math
import typing
from collections.abc import Callable, Mapping, Sequence

from ..config.data import PROMPT_START
from ..messages.errors import LoomError

# A name inside of itself:
Value = typing.Union[str, int, float, bool, None, Sequence["Value"], Mapping[str, "Value"]]  # noqa: UP007
Settings = Mapping[str, Value]  # of another program: key -> value
Paths = dict[str, Value]  # of a job of ours: config path, such as optimizer.lr -> value
T = typing.TypeVar("T")
Convert = Callable[[Value, Settings], Paths]

SCHEDULES = {  # by the names of diffusers, which most programs use -> schedule.name
    "constant": "constant",
    "constant_with_warmup": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_restarts": "cosine_with_restarts",
    "polynomial": "polynomial",
}
LYCORIS = {  # its kinds of adapter -> adapter.algorithm
    "lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr", "ia3": "ia3", "glora": "glora", "full": "full",
    "diag-oft": "oft", "boft": "boft",
}  # fmt: skip
TRUE, FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off", "none", "null", "")


class Fate(str, enum.Enum):
    """What becomes of a setting."""

    SAME = "same"
    OTHERWISE = "otherwise"
    DEFAULT = "default"  # not said there, and the program's own value differs from ours
    NOTHING = "nothing"
    UNKNOWN = "unknown"


class Unmapped(LoomError):
    """A value of a setting that has no counterpart, where other values have one; its message is the reason."""


@dataclasses.dataclass(frozen=True)
class Row:
    """`paths`: where a setting goes, for the table. `why`: code of the reason where it is not the same. `default`: what the program takes where

    it is not given and a job of ours would take something else; None for nothing to say. `quiet`: a value that stays the same needs no reason.
    """

    paths: tuple[str, ...] = ()
    why: str = ""
    convert: Convert | None = None
    default: Value = None
    quiet: bool = False

    @property
    def fate(self) -> Fate:
        if self.convert is None:
            return Fate.NOTHING
        return Fate.OTHERWISE if self.why else Fate.SAME


def same(path: str, default: Value = None) -> Row:
    """The value as it is."""
    return Row((path,), "", lambda value, settings: {path: value}, default)


def otherwise(paths: str, why: str, convert: Convert | None = None, default: Value = None) -> Row:
    """Another value, or several, or the same one with something to know; `paths` with spaces between them."""
    places = tuple(paths.split())
    return Row(places, why, convert or (lambda value, settings: {places[0]: value}), default)


def nothing(why: str) -> Row:
    return Row((), why)


def no_counterpart() -> Paths:
    """For a value that nothing here stands for. Raises Unmapped."""
    raise Unmapped("import.why.value")


def each(names: str, row: Row) -> dict[str, Row]:
    """The same row for each of several names, with spaces between them."""
    return dict.fromkeys(names.split(), row)


def choice(path: str, names: Mapping[str, Value], default: Value = None, why: str = "") -> Row:
    """A word that has another name here; one that is not among `names` has no counterpart."""

    def convert(value: Value, settings: Settings) -> Paths:
        return {path: meaning(names, str(value).strip().lower())}

    return Row((path,), why, convert, default, quiet=True)


def meaning(names: Mapping[str, T], word: str, why: str = "import.why.value") -> T:
    """What a word stands for. Raises Unmapped for `why` where it is not among `names`."""
    if word not in names:
        raise Unmapped(why)
    return names[word]


def kept(default: Value = None) -> Row:
    """How many checkpoints are kept: here at least two."""
    return otherwise(
        "save.keep", "import.why.keep", lambda value, settings: {"save.keep": max(2, whole(value))}, default
    )


def lokr_factor() -> Row:
    """LoKr's factor; below 0 there means what 0 means here."""
    path = "adapter.lokr_factor"
    return otherwise(path, "import.why.factor", lambda value, settings: {path: max(0, whole(value))})


def flag(path: str, default: Value = None, opposite: bool = False, why: str = "") -> Row:
    """A switch, or its opposite."""
    return Row((path,), why, lambda value, settings: {path: truth(value) != opposite}, default)


def truth(value: Value) -> bool:
    """Whether a switch is on: true, "True", 1, "ON". Raises Unmapped for what is no switch."""
    if isinstance(value, bool | int | float):
        return bool(value)
    word = str(value).strip().lower()
    if word not in (*TRUE, *FALSE):
        raise Unmapped("import.why.value")
    return word in TRUE


def on(settings: Settings, key: str) -> bool:
    """Whether a switch is given and on."""
    try:
        return truth(settings.get(key))
    except Unmapped:
        return False


def number(value: Value) -> float:
    """Raises Unmapped for what is no finite number."""
    try:
        result = float(str(value).strip())
    except ValueError:
        result = math.nan
    if not math.isfinite(result):
        raise Unmapped("import.why.value")
    return result


def whole(value: Value) -> int:
    """Raises Unmapped for what is no whole number."""
    result = number(value)
    if result != int(result):
        raise Unmapped("import.why.value")
    return int(result)


def layer_skip(value: Value, settings: Settings) -> Paths:
    """CLIP layers left out at the end, which diffusers and OneTrainer count from 0 and we, as WebUIs, from 1."""
    return {"text_encoder.clip_skip": whole(value) + 1}


def as_list(value: Value) -> list[Value]:
    """A list as it is, a text cut at commas or spaces, anything else alone."""
    if isinstance(value, str):
        return [part for part in value.replace(",", " ").split() if part]
    if isinstance(value, Sequence):
        return list(value)
    return [value]


def name_of(value: Value) -> str:
    """A run's name from a path or a name: its last part without the suffix of a file. Raises Unmapped when nothing is left."""
    last = str(value).replace("\\", "/").rstrip("/").rpartition("/")[2]
    stem = last.removesuffix(".safetensors").removesuffix(".ckpt").removesuffix(".pt")
    name = "".join(c if c.isalnum() or c in "._- " else "_" for c in stem).lstrip("._- ").rstrip(". ")[:80]
    if not name:
        raise Unmapped("import.why.value")
    return name


def side(value: Value) -> int:
    """The side of the square of as many pixels: 512, "512", "512,768", "512x768", [512, 768]."""
    parts = [number(part) for part in as_list(value.lower().replace("x", ",") if isinstance(value, str) else value)]
    if not parts or min(parts) <= 0:
        raise Unmapped("import.why.value")
    return round(math.sqrt(parts[0] * parts[-1]))


def tables(value: Value) -> list[Settings]:
    """The tables in a list; none where it is no list."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return []
    return [one for one in value if isinstance(one, Mapping)]


def flat(value: Settings, prefix: str = "") -> dict[str, Value]:
    """Nested settings by dotted keys; lists stay as they are, empty tables say nothing."""
    out: dict[str, Value] = {}
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping):
            out |= flat(inner, f"{name}.")
        else:
            out[name] = inner
    return out


def control_folders(value: Value, settings: Settings) -> Paths:
    """The folders of control pictures, one a line: of one key, or of several with numbers behind them."""
    keys = sorted((key for key in settings if key.startswith("control_path")), key=lambda key: (len(key), key))
    folders = [folder for key in keys for folder in _folders(settings[key])] or _folders(value)
    return {"control_path": "\n".join(folders)}


def _folders(value: Value) -> list[str]:
    listed = [value] if isinstance(value, str) or not isinstance(value, Sequence) else list(value)
    return [str(folder) for folder in listed if folder]


def clip_length(value: Value, settings: Settings) -> Paths:
    """The frames of a clip; one alone is a picture."""
    frames = whole(value)
    return {"frames": str(frames)} if frames > 1 else {}


def system_prompt(value: Value, settings: Settings) -> Paths:
    """What stands before every caption, as Lumina 2 was trained; those programs join the two by its mark."""
    text = str(value).strip()
    return {"data.prefix": f"{text} {PROMPT_START} "} if text else {}


def first_frames(value: Value, settings: Settings) -> Paths:
    """Whether clips are trained as what follows their first frame; nothing for a set of pictures."""
    lengths = (settings.get("num_frames"), settings.get("video.num_frames"))
    if not any(whole(length) > 1 for length in lengths if length is not None):
        return {}
    return {"first_frame": "always" if truth(value) else "auto"}  # a model that needs it has it in any case


def arguments(value: Value) -> dict[str, str]:
    """`key=value` texts in a list or between spaces, as kohya's tools write them."""
    texts = value.split() if isinstance(value, str) else [str(part) for part in as_list(value)]
    pairs = (text.partition("=") for text in texts)
    return {key.strip(): word.strip().strip("\"'") for key, sign, word in pairs if sign}
