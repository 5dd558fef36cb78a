"""What is in a file: the facts behind *Inspect*, and how two files differ. Numbers only; pictures are drawn elsewhere."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping

import torch

from ..lora_core.messages.message import Message
from .embedding import Embedding
from .families import FAMILIES
from .loaders import NOT_RUN, loaders
from .lora import Lora, Module, concatenated, delta, kind_of, multiplied
from .merge import block_of, squared_norm
from .metadata import recommended_strength


@dataclasses.dataclass(frozen=True)
class Block:
    """Modules of one block: how many, their ranks, and the Frobenius norm of their change of weights together."""

    name: str
    modules: int
    ranks: tuple[int, ...]
    norm: float


@dataclasses.dataclass(frozen=True)
class Report:
    """What a LoRA file is. `origins`: base models it names, and where. `loaders`: program -> what it reads of the file, and why not more.
    `problems`: the worst first.
    """

    family: str
    form: str
    modules: int
    kinds: dict[str, int]
    ranks: dict[int, int]
    alphas: dict[float, int]
    blocks: tuple[Block, ...]
    triggers: tuple[str, ...]
    origins: tuple[tuple[str, str], ...]
    loaders: dict[str, Message]
    problems: tuple[Message, ...]
    metadata: Mapping[str, str]

    def messages(self) -> list[Message | str]:
        """The report, one fact a line."""
        ranks = [f"{r} ({n}x)" if len(self.ranks) > 1 else str(r) for r, n in sorted(self.ranks.items())[:8]]
        alphas = [f"{a:g}" for a in sorted(self.alphas)[:8]]
        kinds = [f"{n} {kind}" for kind, n in self.kinds.items()]
        is_listed = self.family in FAMILIES
        out: list[Message | str] = [
            Message.of("report.base", family=FAMILIES[self.family].title)
            if is_listed
            else Message.of("report.base_unknown"),
            Message.of("report.spelling", form=self.form, count=self.modules, kinds=kinds),
            Message.of("report.rank", ranks=ranks, alphas=alphas)
            if alphas
            else Message.of("report.rank_alone", ranks=ranks),
        ]
        out += [Message.of("report.trained_on", name=name, where=place) for name, place in self.origins]
        if self.triggers:
            out.append(Message.of("report.triggers", words=self.triggers))
        if (strength := recommended_strength(self.metadata)) is not None:
            out.append(Message.of("report.strength", strength=f"{strength:g}"))
        run = {program: verdict for program, verdict in self.loaders.items() if verdict != NOT_RUN}
        out += [Message.of("report.reads", program=program, verdict=verdict) for program, verdict in run.items()]
        if len(run) < len(self.loaders):
            out.append(Message.of("report.not_run", programs=[one for one in self.loaders if one not in run]))
        if not self.loaders:
            out.append(Message.of("report.unread"))
        return [*out, *(Message.of("report.note", note=p) for p in self.problems)]

    def bars(self) -> list[str]:
        """The norm of every block drawn in characters."""
        widest = max((b.norm for b in self.blocks), default=0.0) or 1.0
        return [
            f"{b.name:20} {b.modules:4} modules  norm {b.norm:9.4g}  {'#' * round(30 * b.norm / widest)}"
            for b in self.blocks
        ]


def inspect(lora: Lora) -> Report:
    """The facts of a LoRA that was read."""
    norms = {name: squared_norm(m) for name, m in lora.modules.items()}
    groups: dict[str, list[str]] = {}
    for name in lora.modules:
        groups.setdefault(block_of(lora.family, name), []).append(name)
    blocks = tuple(
        Block(
            block, len(names), tuple(sorted({lora.modules[n].rank for n in names})), sum(norms[n] for n in names) ** 0.5
        )
        for block, names in sorted(groups.items(), key=_block_order)
    )
    problems = list(lora.notes)
    if (
        lora.modules
        and not any(norms.values())
        and not any(m.algebra is None or "diff_b" in m.parts or m.magnitudes is not None for m in lora.modules.values())
    ):
        problems.insert(0, Message.of("note.no_effect"))
    if above := {name: m for name, m in lora.modules.items() if m.paired and m.rank > _most(m)}:
        name, module = next(iter(above.items()))
        problems.append(
            Message.of("report.rank_above", count=len(above), layer=name, rank=module.rank, limit=_most(module))
        )
    if relative := sorted({m.kind for m in lora.modules.values() if m.algebra and m.algebra.needs_base}):
        problems.append(Message.of("report.relative", kinds=relative))
    return Report(
        lora.family,
        lora.source,
        len(lora.modules),
        dict(Counter(m.kind for m in lora.modules.values())),
        dict(Counter(m.rank for m in lora.modules.values())),
        dict(Counter(round(m.scale * m.rank, 4) for m in lora.modules.values() if m.rank)),
        blocks,
        triggers(lora.metadata),
        lora.origins,
        loaders(lora),
        tuple(problems),
        lora.metadata,
    )


def _most(module: Module) -> int:
    """The largest rank that the sides of the layer have room for."""
    return kind_of(module).largest_rank(module.shape) or module.rank


def _block_order(item: tuple[str, list[str]]) -> tuple[int, str]:
    name = item[0]
    place = next((n for n, start in enumerate(("BASE", "IN", "MID", "OUT")) if name.startswith(start)), 4)
    return place, name


def triggers(metadata: Mapping[str, str], most: int = 8) -> tuple[str, ...]:
    """Trigger words a header names: the ModelSpec's phrase, else the commonest training tags."""
    phrase = metadata.get("modelspec.trigger_phrase") or metadata.get("ss_trigger_words", "")
    if phrase:
        return tuple(p.strip() for p in phrase.split(",") if p.strip())
    try:
        table = json.loads(metadata.get("ss_tag_frequency", "{}"))
        counts: Counter[str] = Counter()
        for tags in table.values():
            counts.update({tag.strip(): int(n) for tag, n in tags.items()})
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        return ()
    return tuple(tag for tag, _ in counts.most_common(most))


def difference(one: Lora, two: Lora) -> dict[str, float]:
    """Canonical name -> ||delta_1 - delta_2|| / max(||delta_1||, ||delta_2||); 1 where only one of them has the module."""
    out = {}
    for name in sorted({*one.modules, *two.modules}):
        a, b = one.modules.get(name), two.modules.get(name)
        if a is None or b is None or a.shape != b.shape:
            out[name] = 1.0
            continue
        if not (_follows_from_file(a) and _follows_from_file(b)):  # nothing to multiply out: equal or not
            same = (
                a.parts.keys() == b.parts.keys()
                and a.alpha == b.alpha
                and all(torch.equal(a.parts[k], b.parts[k]) for k in a.parts)
            )
            out[name] = 0.0 if same else 1.0
            continue
        size = max(squared_norm(a), squared_norm(b)) ** 0.5
        if a.is_plain and b.is_plain and "mid" not in {*a.parts, *b.parts}:
            apart = squared_norm(concatenated([a, multiplied(b, -1.0)])) ** 0.5
            if apart < 1e-3 * size:  # too close for the difference of two traces
                apart = float((delta(a) - delta(b)).norm())
        else:
            apart = float((delta(a) - delta(b)).norm())
        out[name] = apart / size if size else 0.0
    return out


def _follows_from_file(module: Module) -> bool:
    """Whether the change of the weight follows from the file alone."""
    return module.changes_weight and not kind_of(module).needs_base


def embedding_lines(embedding: Embedding, name: str) -> list[Message]:
    """An embedding, one fact a line."""
    family = FAMILIES[embedding.family].title if embedding.family in FAMILIES else embedding.family
    out = [Message.of("report.embedding", family=family)]
    for encoder, vectors in embedding.vectors.items():
        norms = vectors.norm(dim=1)
        out.append(
            Message.of(
                "report.vectors",
                encoder=encoder,
                count=len(vectors),
                width=vectors.shape[1],
                least=f"{norms.min():.3g}",
                most=f"{norms.max():.3g}",
            )
        )
    if embedding.token:
        out.append(Message.of("report.token", token=embedding.token))
    if embedding.step:
        out.append(Message.of("report.steps", steps=embedding.step))
    out.append(Message.of("report.prompts", name=name))
    return [*out, *(Message.of("report.note", note=note) for note in embedding.notes)]
