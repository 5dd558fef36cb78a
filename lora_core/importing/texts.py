"""Texts of configurations read into settings: JSON, TOML, YAML, shell commands. What a stranger wrote stays within bounds."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping

from ..messages.errors import LoomError
from ..recipes import parse_toml
from .rows import Settings, Value

MAX_TEXT = 300_000  # characters
MAX_YAML = 100_000  # which is read more slowly
MAX_DOTS = 300  # in a line of TOML, whose keys of many parts take Python's reader the square of their number
MAX_ALIASES = 20  # of a YAML text: each may stand for all before it, so more would multiply
MAX_SETTINGS = 20_000
MAX_DEPTH = 40
_ASSIGNMENT = re.compile(r"(?:export\s+|set\s+)?([A-Za-z_]\w*)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_SCRIPT = re.compile(r"[\w-]+\.py")


def require_bounded(text: str, name: str) -> str:
    """The text without a byte-order mark. Raises LoomError when it is too long to be a configuration."""
    if len(text) > MAX_TEXT:
        raise LoomError("import.long", file=name, size=len(text), limit=MAX_TEXT)
    return text.removeprefix("\ufeff")


def as_json(text: str, name: str) -> Value:
    """Raises LoomError."""
    try:
        return within(json.loads(text), name)
    except (ValueError, RecursionError) as error:
        raise LoomError("import.unreadable", file=name, kind="JSON", reason=_reason(error)) from error


def as_toml(text: str, name: str) -> Settings:
    """Raises LoomError."""
    if any(line.count(".") > MAX_DOTS for line in text.splitlines()):
        raise LoomError("import.dots", file=name, limit=MAX_DOTS)
    try:
        return parse_toml(text)
    except (ValueError, RecursionError) as error:
        raise LoomError("import.unreadable", file=name, kind="TOML", reason=_reason(error)) from error


def as_yaml(text: str, name: str) -> Value:
    """Raises LoomError, also where PyYAML is not installed."""
    try:
        import yaml
    except ImportError as error:
        raise LoomError("import.needs_yaml", file=name) from error
    if len(text) > MAX_YAML:
        raise LoomError("import.long", file=name, size=len(text), limit=MAX_YAML)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _require_flat(yaml.scan(text, Loader=loader), name)
        return within(_plain(yaml.load(text, Loader=loader), name), name)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise LoomError("import.unreadable", file=name, kind="YAML", reason=_reason(error)) from error


def _require_flat(tokens: Iterable[object], name: str) -> None:
    """Raises LoomError for a YAML text that refers back often, or is nested deeply, before anything is made of it."""
    aliases = depth = 0
    for token in tokens:
        kind = type(token).__name__
        aliases += kind == "AliasToken"
        depth += kind.endswith("StartToken") and not kind.startswith(("Stream", "Document"))
        depth -= kind.endswith("EndToken") and not kind.startswith(("Stream", "Document"))
        if aliases > MAX_ALIASES:
            raise LoomError("import.aliases", file=name, limit=MAX_ALIASES)
        if depth > MAX_DEPTH:
            raise LoomError("import.large", file=name, limit=MAX_SETTINGS, depth=MAX_DEPTH)


def _plain(value: object, name: str, depth: int = 0) -> Value:
    """A YAML value with dates as text. Raises LoomError."""
    if depth > MAX_DEPTH:
        raise LoomError("import.large", file=name, limit=MAX_SETTINGS, depth=MAX_DEPTH)
    if isinstance(value, dict):
        return {str(key): _plain(inner, name, depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(inner, name, depth + 1) for inner in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def within(value: Value, name: str) -> Value:
    """The value, if it is neither deep nor large. Raises LoomError."""
    left, queue = MAX_SETTINGS, [(value, 0)]
    while queue:
        one, depth = queue.pop()
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise LoomError("import.large", file=name, limit=MAX_SETTINGS, depth=MAX_DEPTH)
        if isinstance(one, Mapping):
            queue += [(inner, depth + 1) for inner in one.values()]
        elif isinstance(one, list):
            queue += [(inner, depth + 1) for inner in one]
    return value


def _reason(error: BaseException) -> str:
    """What a parser says: a quotation."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def words_of(text: str, name: str) -> tuple[list[str], dict[str, str]]:
    """(the words of the command that runs a .py script, the variables set before it), with variables in their places. Raises LoomError."""
    variables: dict[str, str] = {}
    command: list[str] = []
    for line in _lines(text):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue  # prose, or a quote that is never closed
        words = [word for word in words if word not in ("!", "%")]
        words = [_filled(word, variables) for word in words]
        while words and words[0] in ("export", "set", "declare", "-x"):
            words = words[1:]
        assigned = [_ASSIGNMENT.fullmatch(word) for word in words]
        leading = next((n for n, match in enumerate(assigned) if match is None), len(words))
        for match in assigned[:leading]:
            if match is not None:
                variables[match[1]] = match[2]
        rest = words[leading:]
        if not command and any(map(script_in, rest)):
            command = rest
    if sum(map(len, command)) + sum(map(len, variables.values())) > MAX_TEXT:
        raise LoomError("import.long", file=name, size=MAX_TEXT, limit=MAX_TEXT)
    return command, variables


def _lines(text: str) -> Iterator[str]:
    """The commands of a text: lines that end with \\, ^ or ` go on in the next one; Markdown's fences, comments and prompts are left out."""
    parts: list[str] = []
    for line in [*text.splitlines(), ""]:
        bare = line.strip()
        if bare.startswith(("```", "#")) and not parts:
            continue
        parts.append(bare.rstrip("\\^`").strip())
        if bare.endswith(("\\", "^", "`")) and not bare.endswith("```"):
            continue
        whole, parts = " ".join(filter(None, parts)), []
        if whole[:2] in ("$ ", "> ", "% ", "! "):
            whole = whole[2:]
        elif whole[:1] == "!":
            whole = whole[1:]
        if whole:
            yield whole


def _filled(word: str, variables: Mapping[str, str]) -> str:
    """A word with $NAME and ${NAME} as they were set; others stay as they are. At most as long as a text may be."""
    filled = _VARIABLE.sub(lambda match: variables.get(match[1] or match[2], match[0])[:10_000], word)
    return filled[:MAX_TEXT]


def script_in(word: str) -> str:
    """The name of the script that a word is the path of; "" for none."""
    name = word.replace("\\", "/").rpartition("/")[2]
    return name if _SCRIPT.fullmatch(name) else ""


def options_of(words: list[str]) -> tuple[str, dict[str, Value]]:
    """(the script's name, its options) of a command; those of accelerate before the script under accelerate.<name>. What stands alone goes under its place."""
    place = next((n for n, word in enumerate(words) if script_in(word)), -1)
    if place < 0:
        return "", options(words)
    launcher = {f"accelerate.{key}": value for key, value in options(words[:place]).items()}
    return script_in(words[place]), {**launcher, **options(words[place + 1 :])}


def options(words: list[str]) -> dict[str, Value]:
    """--key value, --key=value, --key a b c, --key alone is true. Of a key given twice the last one counts."""
    out: dict[str, Value] = {}
    key = ""
    for word in words:
        if re.match(r"--?[A-Za-z]", word) and not re.fullmatch(r"-\d.*", word):
            key, sign, value = word.lstrip("-").partition("=")
            out[key] = value if sign else True
        elif key:
            before = out[key]
            words_before = before if isinstance(before, list) else [before]
            out[key] = word if before is True else [*words_before, word]
    return out
