"""What is in a file: the facts behind *Inspect*, and how two files differ. Numbers only; pictures are drawn elsewhere."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping

import torch

from .embedding import Embedding
from .families import FAMILIES
from .loaders import loaders
from .lora import Lora, Module, concatenated, delta, kind_of, multiplied
from .merge import block_of, squared_norm


@dataclasses.dataclass(frozen=True)
class Block:
    """Modules of one block: how many, their ranks, and the Frobenius norm of their change of weights together."""

    name: str
    modules: int
    ranks: tuple[int, ...]
    norm: float


@dataclasses.dataclass(frozen=True)
class Report:
    """What a LoRA file is. `loaders`: program -> "all", or what it does not read and why. `problems`: sentences, worst first."""

    family: str
    form: str
    modules: int
    kinds: dict[str, int]
    ranks: dict[int, int]
    alphas: dict[float, int]
    blocks: tuple[Block, ...]
    triggers: tuple[str, ...]
    loaders: dict[str, str]
    problems: tuple[str, ...]
    metadata: Mapping[str, str]

    def lines(self, bars: bool = True) -> list[str]:
        """The report as text, one fact a line; with `bars`, the norm of every block drawn in characters."""
        title = FAMILIES[self.family].title if self.family in FAMILIES else "unknown model"
        ranks = ", ".join(f"{r} ({n}x)" if len(self.ranks) > 1 else str(r) for r, n in sorted(self.ranks.items())[:8])
        alphas = ", ".join(f"{a:g}" for a in sorted(self.alphas)[:8])
        out = [
            f"base: {title}", f"spelling: {self.form}, {self.modules} modules ({', '.join(f'{n} {k}' for k, n in self.kinds.items())})",
            f"rank: {ranks}; alpha: {alphas or 'as rank'}",
        ]  # fmt: skip
        if self.triggers:
            out.append(f"trigger words: {', '.join(self.triggers)}")
        out += [f"{program}: {verdict}" for program, verdict in self.loaders.items()]
        if not self.loaders:
            out.append("read by: not known for this model or spelling; Convert LoRA writes a form that is")
        out += [f"note: {p}" for p in self.problems]
        if not bars:
            return out
        widest = max((b.norm for b in self.blocks), default=0.0) or 1.0
        out += [f"{b.name:20} {b.modules:4} modules  norm {b.norm:9.4g}  {'#' * round(30 * b.norm / widest)}" for b in self.blocks]
        return out


def inspect(lora: Lora) -> Report:
    """The facts of a LoRA that was read."""
    norms = {name: squared_norm(m) for name, m in lora.modules.items()}
    groups: dict[str, list[str]] = {}
    for name in lora.modules:
        groups.setdefault(block_of(lora.family, name), []).append(name)
    blocks = tuple(
        Block(block, len(names), tuple(sorted({lora.modules[n].rank for n in names})), sum(norms[n] for n in names) ** 0.5)
        for block, names in sorted(groups.items(), key=_block_order)
    )
    problems = list(lora.notes)
    if lora.modules and not any(norms.values()) and not any(m.algebra is None or "diff_b" in m.parts or "dora" in m.parts for m in lora.modules.values()):
        problems.insert(0, "Every module is zero: this LoRA changes nothing.")
    if relative := sorted({m.kind for m in lora.modules.values() if m.algebra and m.algebra.needs_base}):
        problems.append(f"Norms of {', '.join(relative)} modules are of their own numbers: what they change depends on the base weight.")
    return Report(
        lora.family, lora.source, len(lora.modules), dict(Counter(m.kind for m in lora.modules.values())), dict(Counter(m.rank for m in lora.modules.values())),
        dict(Counter(round(m.scale * m.rank, 4) for m in lora.modules.values() if m.rank)), blocks, triggers(lora.metadata), loaders(lora), tuple(problems),
        lora.metadata,
    )  # fmt: skip


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
        if not (_told(a) and _told(b)):  # nothing to multiply out: equal or not
            same = a.parts.keys() == b.parts.keys() and a.alpha == b.alpha and all(torch.equal(a.parts[k], b.parts[k]) for k in a.parts)
            out[name] = 0.0 if same else 1.0
            continue
        size = max(squared_norm(a), squared_norm(b)) ** 0.5
        if a.kind == b.kind == "lora" and not ({"mid", "dora"} & {*a.parts, *b.parts}):
            apart = squared_norm(concatenated([a, multiplied(b, -1.0)])) ** 0.5
            if apart < 1e-3 * size:  # too close for the difference of two traces
                apart = float((delta(a) - delta(b)).norm())
        else:
            apart = float((delta(a) - delta(b)).norm())
        out[name] = apart / size if size else 0.0
    return out


def _told(module: Module) -> bool:
    """Whether the change of the weight follows from the file alone."""
    return module.changes_weight and not kind_of(module).needs_base


def embedding_lines(embedding: Embedding, name: str) -> list[str]:
    """An embedding as text, one fact a line."""
    out = [f"embedding: {FAMILIES[embedding.family].title if embedding.family in FAMILIES else embedding.family}"]
    for encoder, vectors in embedding.vectors.items():
        out.append(f"{encoder}: {len(vectors)} vectors of width {vectors.shape[1]}, norms {vectors.norm(dim=1).min():.3g} to {vectors.norm(dim=1).max():.3g}")
    if embedding.token:
        out.append(f"token in the file: {embedding.token}")
    if embedding.step:
        out.append(f"trained for {embedding.step} steps")
    return [*out, f"prompts: A1111 {name}, ComfyUI embedding:{name}", *(f"note: {n}" for n in embedding.notes)]
