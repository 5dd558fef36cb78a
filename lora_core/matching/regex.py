"""Regular expressions of a user or a stranger's file, searched in bounded time: Python's own engine holds the whole process while it searches, and some
patterns, such as (\\w+\\.?)+!, take it longer than the age of the universe.

A pattern whose cost on a text is bounded by what it is goes to Python's `re`. Any other is searched by simulating all its states at once (Thompson 1968,
Pike's version where groups are asked for), which takes time in proportion to the text. Both give the same answers. What the second way does not know
(look-around, back-references, atomic groups) is refused, in the few patterns that need it and are not bounded.
"""

from __future__ import annotations

import contextlib
import math
import re
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..messages.message import Message

if TYPE_CHECKING:
    import sre_constants as sre
    import sre_parse as parser
elif sys.version_info >= (3, 11):
    from re import _constants as sre
    from re import _parser as parser
else:
    import sre_constants as sre
    import sre_parse as parser

MAX_PATTERN = 20_000  # characters
MAX_STATES = 20_000
MAX_BACKTRACKING = 1e6  # steps of Python's engine for one search, some 10 ms
MAX_WORK = 5_000_000  # states looked at in one search
MAX_KEPT = 500_000  # states in all sets that are kept
MAX_RANGE = 100_000  # characters in one [...]; wider ones take Python long to compile where case is ignored

_ONE_CHARACTER = (sre.LITERAL, sre.NOT_LITERAL, sre.IN, sre.ANY)
_REPEATS = (sre.MAX_REPEAT, sre.MIN_REPEAT)
_LOOKS = (sre.ASSERT, sre.ASSERT_NOT)
_POSSESSIVE, _ATOMIC = getattr(sre, "POSSESSIVE_REPEAT", None), getattr(sre, "ATOMIC_GROUP", None)  # since Python 3.11
_UNKNOWN = {
    sre.ASSERT: "pattern.part.look_around",
    sre.ASSERT_NOT: "pattern.part.look_around",
    sre.GROUPREF: "pattern.part.back_references",
    sre.GROUPREF_EXISTS: "pattern.part.conditions",
    _ATOMIC: "pattern.part.atomic_groups",
    _POSSESSIVE: "pattern.part.possessive_repeats",
}

# Kinds of neighbours of a position, all that anchors ask for
_NONE, _NEWLINE, _LAST_NEWLINE, _ASCII_WORD, _WORD, _OTHER = range(6)


class PatternError(re.error):
    """A pattern that is none, or one that cannot be searched in bounded time. `message` says why."""

    def __init__(self, code: str | Message, /, **values: Any):
        self.message = code if isinstance(code, Message) else Message.of(code, **values)
        super().__init__(str(self.message))


class Pattern:
    """A compiled pattern with those of `re.Pattern`'s methods that are needed here. `pattern`: its source.

    Raises re.error when it cannot be read. `costly(why)`: the error of a search that would take too long, PatternError unless it says otherwise.
    """

    def __init__(self, pattern: str, costly: Callable[[Message], Exception] = PatternError):
        if len(pattern) > MAX_PATTERN:
            raise PatternError("pattern.long", length=len(pattern), limit=MAX_PATTERN)
        self.pattern, self._costly = pattern, costly
        self._cheap_up_to, self._costly_from = -1, sys.maxsize  # lengths of a text
        self._plain: re.Pattern[str] | None = None
        self._program: _Program | None = None
        try:
            self._parsed: Any = parser.parse(pattern)
            if self._is_cheap(0):
                self._plain = re.compile(pattern)
            else:
                self._program = _Program(self._parsed)
        except RecursionError:
            raise PatternError("pattern.nested") from None
        except (OverflowError, ValueError) as error:  # a count too large, a flag that is not for text
            raise re.error(str(error)) from error

    def search(self, text: str) -> bool:
        """Whether the pattern is found anywhere in `text`."""
        if self._plain is not None and self._is_cheap(len(text)):
            return self._plain.search(text) is not None
        with self._costly_errors():
            return self._states().search(text)

    def sub(self, template: str, text: str) -> str:
        """`text` with every match replaced by `template`, in which \\1 and \\g<name> stand for groups. Raises re.error or IndexError for a bad template."""
        if self._plain is not None and self._is_cheap(len(text)):
            return self._plain.sub(template, text)
        pieces = _pieces(template, self._parsed.state)
        with self._costly_errors():
            program, out, end = self._states(), [], 0
            if not program.search(text):
                return text
            for saves in program.matches(text):
                out.append(text[end : saves[0]])
                out += [
                    piece if isinstance(piece, str) else text[saves.get(2 * piece, 0) : saves.get(2 * piece + 1, 0)]
                    for piece in pieces
                ]
                end = saves[1]
            return "".join([*out, text[end:]])

    def check(self, template: str) -> None:
        """Raises re.error or IndexError when `template` is none for `sub`."""
        _pieces(template, self._parsed.state)

    def _is_cheap(self, length: int) -> bool:
        """Whether Python's engine is bounded on a text of `length` characters."""
        if self._cheap_up_to < length < self._costly_from:
            if _cost(self._parsed, length)[1] * (length + 1) <= MAX_BACKTRACKING:
                self._cheap_up_to = length
            else:
                self._costly_from = length
        return length <= self._cheap_up_to

    def _states(self) -> _Program:
        if self._program is None:
            self._program = _Program(self._parsed)
        return self._program

    @contextlib.contextmanager
    def _costly_errors(self) -> Iterator[None]:
        try:
            yield
        except PatternError as error:
            raise self._costly(error.message) from error


# ---- what a backtracking engine may do -------------------------------------------------------------------------------

_UNBOUNDED = (math.inf, math.inf)


def _cost(items: Any, length: int) -> tuple[float, float]:
    """(at most how many ways lead through a pattern from one position of a text, at most how many steps all of them take); infinite for repeats of repeats."""
    ways, steps = 1.0, 1.0
    for op, value in items:
        more_ways, more_steps = _cost_of(op, value, length)
        steps += ways * more_steps
        ways *= more_ways
        if steps > MAX_BACKTRACKING:
            return _UNBOUNDED
    return ways, steps


def _cost_of(op: Any, value: Any, length: int) -> tuple[float, float]:
    if op in _REPEATS or op is _POSSESSIVE:
        low, high, body = value
        return _cost_of_repeat(low, high, body, length)
    if op is sre.IN and sum(part[1] - part[0] for kind, part in value if kind is sre.RANGE) > MAX_RANGE:
        return _UNBOUNDED
    if op is sre.GROUPREF:
        return 1.0, length + 1.0
    costs = [_cost(body, length) for body in _bodies(op, value)]
    ways = (
        1.0 if op in _LOOKS or op is _ATOMIC else max(1.0, sum(ways for ways, _ in costs))
    )  # what is tried once and never again
    return ways, sum(steps for _, steps in costs) + 1.0


def _bodies(op: Any, value: Any) -> list[Any]:
    """The patterns inside an item that is no repeat."""
    if op is sre.BRANCH:
        return value[1]
    if op is sre.SUBPATTERN:
        return [value[-1]]
    if op in _LOOKS:
        return [value[1]]
    if op is sre.GROUPREF_EXISTS:
        return [body for body in value[1:] if body is not None]
    return [value] if op is _ATOMIC else []


def _cost_of_repeat(low: Any, high: Any, body: Any, length: int) -> tuple[float, float]:
    ways, steps = _cost(body, length)
    if len(body) == 1 and body[0][0] in _ONE_CHARACTER:
        return max(1.0, min(int(high), length) - int(low) + 1.0), (length + 1.0) * steps
    if high is sre.MAXREPEAT or steps * int(high) > MAX_BACKTRACKING:
        return _UNBOUNDED
    all_ways, all_steps, at_once = 1.0, 1.0, 1.0
    for _ in range(int(high)):
        all_steps += at_once * steps
        at_once *= ways
        all_ways += at_once
        if all_steps > MAX_BACKTRACKING:
            return _UNBOUNDED
    return all_ways, all_steps


# ---- all states at once ----------------------------------------------------------------------------------------------


class _State(NamedTuple):
    """One instruction: `test` a character, or go on without one, to the states `to` in order of preference.

    `anchor(before, behind)`: whether a position between such neighbours will do. `save`: the place to note in a match.
    """

    to: tuple[int, ...]
    test: Callable[[str], bool] | None = None
    anchor: Callable[[int, int], bool] | None = None
    save: int = -1


class _Program:
    """The states of a pattern. State 0 is the match; building goes from the end to the start, so each knows what follows."""

    def __init__(self, parsed: Any):
        self._states: list[_State] = [_State(())]
        flags = parsed.state.flags
        end = self._add(_State((0,), save=1))
        self._start = self._add(_State((self._sequence(parsed, flags, end),), save=0))
        self._sets: dict[tuple[int, ...], int] = {}
        self._members: list[tuple[int, ...]] = []
        self._steps: dict[tuple[int, int, int, str], int] = {}
        self._kept = 0

    # -- building

    def _add(self, state: _State) -> int:
        if len(self._states) >= MAX_STATES:
            raise PatternError("pattern.states", limit=MAX_STATES)
        self._states.append(state)
        return len(self._states) - 1

    def _sequence(self, items: Any, flags: int, to: int) -> int:
        for op, value in reversed(list(items)):
            to = self._item(op, value, flags, to)
        return to

    def _item(self, op: Any, value: Any, flags: int, to: int) -> int:
        if op in _ONE_CHARACTER:
            return self._add(_State((to,), test=_remembered(_test_of(op, value, flags))))
        if op is sre.BRANCH:
            return self._add(_State(tuple(self._sequence(branch, flags, to) for branch in value[1])))
        if op is sre.SUBPATTERN:
            group, more, less, body = value
            inside = (flags | more) & ~less
            if group is None:
                return self._sequence(body, inside, to)
            closed = self._add(_State((to,), save=2 * group + 1))
            return self._add(_State((self._sequence(body, inside, closed),), save=2 * group))
        if op in _REPEATS:
            return self._repeat(op is sre.MAX_REPEAT, value, flags, to)
        if op is sre.AT:
            return self._add(_State((to,), anchor=_anchor_of(value, flags)))
        part = Message.of(_UNKNOWN[op]) if op in _UNKNOWN else str(op).lower()
        raise PatternError("pattern.refused", part=part)

    def _repeat(self, greedy: bool, value: Any, flags: int, to: int) -> int:
        low, high, body = value
        after = to
        if high is sre.MAXREPEAT:
            loop = self._add(_State(()))  # filled in when what it goes to is known
            again = self._sequence(body, flags, loop)
            self._states[loop] = _State((again, after) if greedy else (after, again))
            to = loop
        else:
            for _ in range(int(high) - int(low)):
                once = self._sequence(body, flags, to)
                to = self._add(_State((once, after) if greedy else (after, once)))
        for _ in range(int(low)):
            to = self._sequence(body, flags, to)
        return to

    # -- whether it is found

    def search(self, text: str) -> bool:
        """Sets of states, and what follows them, are kept, so a character that was seen before in such a place costs one look-up."""
        current, before, work = self._number((self._start,)), _NONE, 0
        for position in range(len(text) + 1):
            behind = _kind(text, position)
            character = text[position] if position < len(text) else ""
            key = (current, before, behind, character)
            following = self._steps.get(key)
            if following is None:
                if self._kept > MAX_KEPT:
                    members = self._members[current]
                    self._forget()
                    key = (self._number(members), before, behind, character)
                following, looked_at = self._step(*key)
                work += looked_at
                if work > MAX_WORK:
                    raise PatternError("pattern.slow")
                self._steps[key] = following
            if following < 0:
                return following == _FOUND
            current, before = following, behind
        return False

    def _forget(self) -> None:
        self._sets.clear()
        self._members.clear()
        self._steps.clear()
        self._kept = 0

    def _number(self, members: tuple[int, ...]) -> int:
        if members not in self._sets:
            self._sets[members] = len(self._members)
            self._members.append(members)
            self._kept += len(members)
        return self._sets[members]

    def _step(self, current: int, before: int, behind: int, character: str) -> tuple[int, int]:
        """(number of the set of states behind the character, or how the search ends; how many states were looked at)."""
        seen: set[int] = set()
        waiting, following = list(self._members[current]), {self._start}
        while waiting:
            number = waiting.pop()
            if number in seen:
                continue
            seen.add(number)
            state = self._states[number]
            if number == 0:
                return _FOUND, len(seen)
            if state.test is not None:
                if character and state.test(character):
                    following.add(state.to[0])
            elif state.anchor is None or state.anchor(before, behind):
                waiting += state.to
        return (self._number(tuple(sorted(following))) if character else _MISSING), len(seen)

    # -- where, and with which groups

    def matches(self, text: str) -> Iterator[dict[int, int]]:
        """The places noted in each match, from left to right, as `re.finditer` finds them: 0 and 1 are its start and end, 2 n and 2 n + 1 those of group n."""
        position, not_empty = 0, False
        while position <= len(text):
            saves = self._match(text, position, not_empty)
            if saves is None:
                return
            yield saves
            position, not_empty = saves[1], saves[0] == saves[1]

    def _match(self, text: str, start: int, not_empty: bool) -> dict[int, int] | None:
        """The leftmost match from `start`, of those the one that a backtracking engine would find first. `not_empty`: unless it is empty at `start`."""
        threads: list[tuple[int, dict[int, int]]] = []
        best: dict[int, int] | None = None
        work = 0
        for position in range(start, len(text) + 1):
            if best is None:
                threads.append((self._start, {}))
            if not threads:
                break
            before, behind = _kind(text, position - 1) if position else _NONE, _kind(text, position)
            character = text[position] if position < len(text) else ""
            seen: set[int] = set()
            following: list[tuple[int, dict[int, int]]] = []
            waiting = threads[::-1]
            while waiting:
                number, saves = waiting.pop()
                if number in seen:
                    continue
                state = self._states[number]
                if number == 0:
                    if not_empty and saves[0] == saves[1] == start:
                        continue
                    best = saves
                    break  # what is less preferred is not looked at
                seen.add(number)
                if state.test is not None:
                    if character and state.test(character):
                        following.append((state.to[0], saves))
                elif state.anchor is None or state.anchor(before, behind):
                    saves = {**saves, state.save: position} if state.save >= 0 else saves
                    waiting += [(to, saves) for to in reversed(state.to)]
            threads, work = following, work + len(seen)
            if work > MAX_WORK:
                raise PatternError("pattern.slow")
        return best


_FOUND, _MISSING = -1, -2


def _kind(text: str, position: int) -> int:
    if not 0 <= position < len(text):
        return _NONE
    character = text[position]
    if character == "\n":
        return _LAST_NEWLINE if position == len(text) - 1 else _NEWLINE
    if character.isalnum() or character == "_":
        return _ASCII_WORD if character.isascii() else _WORD
    return _OTHER


def _anchor_of(code: Any, flags: int) -> Callable[[int, int], bool]:
    words = (_ASCII_WORD,) if flags & re.ASCII else (_ASCII_WORD, _WORD)
    newlines = (_NEWLINE, _LAST_NEWLINE)
    if code is sre.AT_BEGINNING_STRING or (code is sre.AT_BEGINNING and not flags & re.MULTILINE):
        return lambda before, behind: before == _NONE
    if code is sre.AT_BEGINNING:
        return lambda before, behind: before == _NONE or before in newlines
    if code is sre.AT_END_STRING:
        return lambda before, behind: behind == _NONE
    if code is sre.AT_END and not flags & re.MULTILINE:
        return lambda before, behind: behind in (_NONE, _LAST_NEWLINE)
    if code is sre.AT_END:
        return lambda before, behind: behind == _NONE or behind in newlines
    if code is sre.AT_BOUNDARY:
        return lambda before, behind: (before in words) != (behind in words)
    if code is sre.AT_NON_BOUNDARY:
        empty = sys.version_info >= (3, 14)  # before, \B was not found in an empty text
        return lambda before, behind: (
            (before in words) == (behind in words) and (empty or not before == behind == _NONE)
        )
    raise PatternError("pattern.sign_unknown", sign=str(code).lower())


def _remembered(test: Callable[[str], bool]) -> Callable[[str], bool]:
    answers: dict[str, bool] = {}

    def remembered(character: str) -> bool:
        answer = answers.get(character)
        if answer is None:
            answer = test(character)
            if len(answers) < 1000:
                answers[character] = answer
        return answer

    return remembered


def _test_of(op: Any, value: Any, flags: int) -> Callable[[str], bool]:
    """Whether one character fits one item of a parsed pattern."""
    if op is sre.ANY:
        return (lambda c: True) if flags & re.DOTALL else (lambda c: c != "\n")
    negated = op is sre.NOT_LITERAL
    parts = list(value) if op is sre.IN else [(sre.LITERAL, value)]
    if parts[0][0] is sre.NEGATE:
        negated, parts = True, parts[1:]

    def fits(character: str) -> bool:
        return any(_part_fits(part, character, flags) for part in parts)

    if flags & re.IGNORECASE:
        return lambda c: any(map(fits, _cases(c))) != negated
    return lambda c: fits(c) != negated


def _cases(character: str) -> set[str]:
    return {
        c
        for c in (character, character.lower(), character.upper(), character.lower().upper(), character.upper().lower())
        if len(c) == 1
    }


def _part_fits(part: tuple[Any, Any], character: str, flags: int) -> bool:
    op, value = part
    if op is sre.LITERAL:
        return ord(character) == value
    if op is sre.RANGE:
        return value[0] <= ord(character) <= value[1]
    negated = value in (sre.CATEGORY_NOT_DIGIT, sre.CATEGORY_NOT_SPACE, sre.CATEGORY_NOT_WORD)
    return _in_class(value, character, bool(flags & re.ASCII)) != negated


def _in_class(code: Any, character: str, ascii_only: bool) -> bool:
    r"""Whether a character is in \d, \s or \w; for the opposites the same."""
    if ascii_only and not character.isascii():
        return False
    if code in (sre.CATEGORY_DIGIT, sre.CATEGORY_NOT_DIGIT):
        return character.isdecimal()
    if code in (sre.CATEGORY_SPACE, sre.CATEGORY_NOT_SPACE):
        return character in " \t\n\r\f\v" if ascii_only else character.isspace()
    return character.isalnum() or character == "_"


def _pieces(template: str, state: Any) -> Sequence[str | int]:
    """Literals and numbers of groups."""
    groups_of: Any = types.SimpleNamespace(
        groups=state.groups - 1, groupindex=state.groupdict
    )  # what is asked of a re.Pattern
    parsed: Any = parser.parse_template(template, groups_of)
    if isinstance(parsed, list):  # Python 3.12: literals and groups in turn
        return parsed
    groups, literals = parsed
    pieces: list[str | int] = list(literals)
    for place, group in groups:
        pieces[place] = group
    return pieces
