"""Whether concepts stay apart: pictures of each under every concept's word and under none, at the same levels and noise, over the run.

A text-to-image model recognises a picture by the words under which it predicts its noise best (Li et al. 2023, arXiv 2303.16203). Asked so, a trained model
tells by itself which word calls which pictures, without a picture being drawn.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

from ..adapters.tokens import TokenSet
from ..backends.base import Backend
from ..config import TrainConfig
from ..data.captions import has_word, with_word
from ..data.dataset import Dataset, Picture
from ..data.latents import LatentCache
from ..messages.errors import LoomError
from ..messages.figures import figure
from ..messages.message import Message
from ..objectives import Objective
from ..rng import python_rng
from .validation import Asked, fixed_losses

LEARNT = 0.01  # share of the loss on a concept's pictures that training has to take off before anything is said of it
CALLED = 0.5  # share of what a concept's own word does for its pictures from which another word is said to call them
KEPT = 0.95  # share of what was learnt of a concept from which it is said to be all there under another word
SURE = 2.0  # standard errors by which a difference has to differ from 0
SMALLEST = 1e-12  # loss below which two are alike
NONE = ""  # the word of captions without one
PAIRS_NAMED = 6


@dataclasses.dataclass(frozen=True)
class Bleed:
    """Pictures of `concept` are predicted by the word `other` (nearly) as well as by its own."""

    concept: str
    other: str
    loss: float  # under `other`
    own_loss: float

    def message(self) -> Message:
        facts = {"loss": figure(self.loss), "own_loss": figure(self.own_loss)}
        return Message.of("concepts.pair", own=self.concept, other=self.other, **facts)


@dataclasses.dataclass
class Matrix:
    """Losses of all concepts over the run. `rows`: the step, and for each concept and word (the last one is none) a loss for each picture and level.

    `held_out`: whether a concept's pictures were kept out of training.
    """

    words: Sequence[str]
    held_out: Sequence[bool]
    rows: list[tuple[int, list[list[list[float]]]]] = dataclasses.field(default_factory=list)

    def means(self) -> list[tuple[int, list[list[float]]]]:
        """(step, loss of each concept under each word) of each row."""
        return [(step, [[_mean(cell) for cell in line] for line in table]) for step, table in self.rows]

    def bleeding(self, row: int = -1) -> list[Bleed]:
        """The concepts that were not apart at that row.

        Of a concept something has to be learnt: its loss under its own word fell since the first row, by LEARNT and beyond chance. Then it bleeds into
        another word if that word in the place of its own costs nothing beyond chance, or hardly anything (1 - KEPT) of what was learnt, or no more than
        half (CALLED) of what the own word does beside none. What both concepts have in common lowers the loss under no word too, and so does not count
        as called. All differences are of the same picture, level and noise; chance is their standard error.
        """
        bleeds = []
        first, now = self.rows[0][1], self.rows[row][1]
        for n, word in enumerate(self.words):
            gained = _Excess.of(first[n][n], now[n][n])
            if not gained.sure or gained.mean < LEARNT:
                continue
            does = _Excess.of(now[n][-1], now[n][n])
            for m, other in enumerate(self.words):
                costs = _Excess.of(now[n][m], now[n][n])
                all_there = not costs.sure or costs.mean < (1 - KEPT) * gained.mean
                called = does.sure and costs.mean <= (1 - CALLED) * does.mean
                if m != n and (all_there or called):
                    bleeds.append(Bleed(word, other, _mean(now[n][m]), _mean(now[n][n])))
        return bleeds

    def messages(self) -> list[Message]:
        """The sentence to say at the end of a run, if any."""
        bleeds = self.bleeding() if len(self.rows) > 1 else []
        if not bleeds:
            return []
        pairs = [bleed.message() for bleed in bleeds[:PAIRS_NAMED]]
        return [Message.of("concepts.bleed", field="validation.concepts", pairs=pairs)]

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> Matrix:
        return Matrix(value["words"], value["held_out"], [(int(step), table) for step, table in value["rows"]])

    def as_table(self) -> dict[str, Any]:
        """For the run folder: means alone, and the pairs that bled at each step."""
        bled = [[[one.concept, one.other] for one in self.bleeding(n)] for n in range(len(self.rows))]
        rows = [{"step": step, "losses": table, "bleeds": pairs} for (step, table), pairs in zip(self.means(), bled)]
        return {"words": list(self.words), "held_out": list(self.held_out), "rows": rows}


def _mean(losses: Sequence[float]) -> float:
    """Their geometric mean, in which each level counts alike."""
    return math.exp(statistics.fmean(math.log(max(SMALLEST, loss)) for loss in losses))


@dataclasses.dataclass(frozen=True)
class _Excess:
    """By which share losses lie above others of the same pictures, levels and noise, on average, with its standard error.

    As logarithms: each level counts alike, and words matter where noise is strong, whose losses are small where noise is predicted.
    """

    mean: float
    error: float

    @staticmethod
    def of(more: Sequence[float], less: Sequence[float]) -> _Excess:
        gaps = [math.log(max(SMALLEST, one) / max(SMALLEST, other)) for one, other in zip(more, less, strict=True)]
        error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else 0.0
        return _Excess(statistics.fmean(gaps), error)

    @property
    def sure(self) -> bool:
        """Whether it is above 0 beyond chance."""
        return self.mean > SURE * self.error


@dataclasses.dataclass(frozen=True)
class ConceptProbes:
    """The pictures of each concept that are measured; those held out where it has some."""

    config: TrainConfig
    words: Sequence[str]
    held_out: Sequence[bool]
    asked: Sequence[Sequence[Sequence[Asked]]]  # of each concept under each word, none the last

    @staticmethod
    def of(config: TrainConfig, trained: LatentCache, held_out: LatentCache, tokens: TokenSet) -> ConceptProbes:
        """At most `validation.pictures` in all, and one of each concept."""
        words = words_of(trained.pictures, tokens)
        most = max(1, config.validation.pictures // len(words))
        held, asked = [], []
        for word in words:
            groups = (_entries(cache, word, tokens) for cache in (held_out, trained))
            cache, entries = next((cache, entries) for cache, entries in zip((held_out, trained), groups) if entries)
            python_rng(config.seed, "concept", word).shuffle(entries)
            held.append(cache is held_out)
            asked.append([_under(cache, entries[:most], word, other) for other in (*words, NONE)])
        return ConceptProbes(config, words, held, asked)

    def all_asked(self) -> list[Asked]:
        return [one for line in self.asked for cell in line for one in cell]

    def begin(self) -> Matrix:
        return Matrix(self.words, self.held_out)

    def measure(self, backend: Backend, objective: Objective) -> list[list[list[float]]]:
        """For each concept and word one loss for each picture and level, with the weights as they are."""
        losses = iter(fixed_losses(backend, objective, self.config, self.all_asked(), "concept"))
        return [[[loss for _ in cell for loss in next(losses)] for cell in line] for line in self.asked]


def require_concepts(config: TrainConfig, dataset: Dataset, tokens: TokenSet) -> None:
    """Refuses to measure whether concepts stay apart where there are no two of them. Raises LoomError."""
    words = words_of(dataset.pictures, tokens)
    if config.validation.concepts and len(words) < 2:
        raise LoomError("concepts.too_few", field="validation.concepts", count=len(words))


def words_of(pictures: Sequence[Picture], tokens: TokenSet) -> list[str]:
    """The words of the concepts that these pictures show, in their order."""
    words = dict.fromkeys(word_of(picture, tokens) for picture in pictures)
    return [word for word in words if word]


def word_of(picture: Picture, tokens: TokenSet) -> str:
    """What stands for its concept: its set's trigger, else the one token its caption has; "" for neither."""
    if picture.data.trigger and has_word(picture.caption, picture.data.trigger):
        return picture.data.trigger
    placeholders = [token.token.placeholder for token in tokens]
    words = [word for word in placeholders if has_word(picture.caption, word)]
    return words[0] if len(words) == 1 else NONE


def _entries(cache: LatentCache, word: str, tokens: TokenSet) -> list[int]:
    return [n for n, entry in enumerate(cache.entries) if word_of(entry.picture, tokens) == word]


def _under(cache: LatentCache, entries: Sequence[int], word: str, other: str) -> list[Asked]:
    """The pictures under captions that say `other` where they say `word`; their noise is the same for every word."""
    captions = (with_word(cache.entries[n].picture.caption, word, other) for n in entries)
    return [Asked(cache, n, caption, place) for place, (n, caption) in enumerate(zip(entries, captions))]
