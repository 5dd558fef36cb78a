"""What a kind of adapter is: its parts, its change of a weight, how it trains, and what files and programs call it.

A kind is one file beside this one, with its object as `KIND`, and its name in the table of `__init__.py`. Everybody asks the same object: the
engine, the file formats, the nodes, *Inspect*. Its formulas are on plain tables of tensors, by the names of `Part`; nothing here knows a model, a
file or a host.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.utils.checkpoint

from ..messages.message import Message
from .joint import Joint
from .walk import Walk

Parts = Mapping[str, torch.Tensor]
Member = tuple[Parts, float | None]  # the parts of one module, and its alpha
WEIGHTS, NORMS, BIASES = "weights", "norms", "biases"  # what of a model a kind can be trained on


@dataclasses.dataclass(frozen=True)
class Part:
    """One tensor of an adapter.

    `name`: in formulas and in the canonical form of files. `key`: the parameter's name in training and checkpoints. `ending`: what follows the layer's
    name in kohya's and LyCORIS' files; `native`: in ComfyUI's native form, where that is another. `rank_axis`: the axis that is as long as the rank.
    `up`: it stands on the side of the outputs (LoRA+ gives it another learning rate). `rows`: its first axis runs over the layer's outputs.
    `scales`: the change is proportional to it. `constant`: it is no number to learn.
    """

    name: str
    key: str = ""
    ending: str = ""
    native: str = ""
    optional: bool = False
    rank_axis: int | None = None
    up: bool = False
    rows: bool = False
    scales: bool = True
    constant: bool = False

    @property
    def parameter(self) -> str:
        return self.key or self.name

    @property
    def file(self) -> str:
        return self.ending or self.parameter


BIAS_PART = Part(
    "diff_b", optional=True, rows=True
)  # a change of the bias, which any adapter of a layer may carry and no alpha scales
MAGNITUDES = Part(
    "dora", "dora_scale", optional=True, scales=False
)  # DoRA's, which may stand beside the factors of some kinds


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of one adapter: the layer's weight (out, in, *kernel), rank, alpha, dropout. Scale is alpha / rank, rank-stabilized alpha / sqrt(rank).

    `options`: the settings that only some kinds read, by their name in the job's adapter section.
    """

    weight: tuple[int, ...]
    rank: int
    alpha: float
    dropout: float = 0.0
    rank_stabilized: bool = False
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Acting:
    """An adapter during a forward pass. `kept`: what it took from the base weights once. `derived`: what follows from the parts as they are."""

    parts: Parts
    scale: float
    weight: tuple[int, ...]
    walk: Walk
    kept: Parts
    derived: Parts
    drop: Callable[[torch.Tensor], torch.Tensor]


class Kind:
    """One kind of adapter. A subclass says its parts and its change; the rest follows, or is overridden where a better way is known.

    `form`: the kind a file holds, where training has a further name for it. `algorithm`, `arguments`: what LyCORIS' metadata calls it; "" is kohya's LoRA.
    `needs_base`: the change depends on the layer's own weight. `proportional`: half the strength is half the change in every program.
    `paired`: the change is the product of two factors, `down` and `up`: the plain LoRA, which every program reads and others are brought into.
    `peft`: what PEFT calls it, where we read such a directory. `core_unread`: ComfyUI fails on its form with a core (see `without_core`).
    """

    name: str
    title: Message | str
    parts: tuple[Part, ...]
    signs: frozenset[str]
    form: str = ""
    algorithm: str = ""
    arguments: Mapping[str, str] = {}
    paired: bool = False
    peft: str = ""
    core_unread: bool = False
    trains: str = WEIGHTS
    needs_base: bool = False
    keeps_base: bool = False  # whether training asks for the layer's own weight or bias once
    derives: bool = False  # whether it asks for the weight again whenever the parts have changed
    proportional: bool = True
    drops_inputs: bool = True  # whether dropout has inputs of its own to drop
    trains_bias: bool = False
    stores_flat: bool = False  # whether a convolution's factors do not tell its kernel
    has_alpha: bool = True

    # ---- what a file holds -------------------------------------------------------------------------------------------

    @functools.cached_property
    def needed(self) -> frozenset[str]:
        return frozenset(part.name for part in self.parts if not part.optional)

    @functools.cached_property
    def allowed(self) -> frozenset[str]:
        return frozenset(part.name for part in self.parts)

    def signed(self, p: Parts) -> bool:
        """Whether parts of these names, as a file has them for one layer, are this kind's."""
        return bool(self.signs & p.keys())

    def part(self, name: str) -> Part | None:
        return next((part for part in self.parts if part.name == name), None)

    def rank(self, p: Parts) -> int:
        """Length of the first rank axis; 0 for a kind, or a form of it, without a rank."""
        return next(
            (
                p[part.name].shape[part.rank_axis]
                for part in self.parts
                if part.rank_axis is not None and part.name in p
            ),
            0,
        )

    def size(self, p: Parts) -> int:
        """What headers call the dimension of the network; 0 where the kind has none."""
        return self.rank(p)

    def scale(self, p: Parts, alpha: float | None) -> float:
        """alpha / rank; 1 where alpha is missing or 0 (kohya: "as rank"), or there is no rank."""
        rank = self.rank(p)
        return alpha / rank if alpha and rank else 1.0

    def alpha(self, p: Parts, scale: float) -> float | None:
        """The alpha that says this scale in a file, None where the kind has none. Always written: loaders differ where it is missing."""
        return scale * (self.rank(p) or 1) if self.has_alpha else None

    def shape(self, p: Parts, kernel: tuple[int, ...] = ()) -> tuple[int, ...]:
        """(out, in, *kernel) of the layer's weight; () where the parts do not tell all of it. `kernel`: of a convolution whose factors are stored flat."""
        return ()

    def changes_weight(self, p: Parts) -> bool:
        """Whether the layer's weight changes at all, not its bias alone."""
        return True

    def fits(self, p: Parts, weight: tuple[int, ...]) -> bool:
        """Whether the parts are for a layer with such a weight; a kernel of 1x1, which programs leave out or put in, counts as none."""
        return _bare(self.shape(p, weight[2:])) == _bare(weight)

    def by_rows(self, p: Parts) -> bool:
        """Whether some rows of the layer have just the rows of the parts so marked, so that a module can be cut or reordered along them."""
        return any(part.rows and part.name in p for part in self.parts)

    def problem(self, p: Parts) -> str:
        """What of the parts' shapes does not fit together, as the code of a message; empty when all is well."""
        return ""

    def settled(self, p: Parts, alpha: float | None) -> tuple[Parts, float | None]:
        """Parts and alpha as every program means them alike; raised from how the programs that trained such a file meant them."""
        return p, alpha

    def remark(self, p: Parts) -> str:
        """What a user should know of such a module, as the code of a message; empty when nothing."""
        return ""

    def variant(self, p: Parts) -> str:
        """The name of what these parts are to the programs that read them, of which some read one form of a kind and not another."""
        return f"{self.name}_outputs" if self.magnifies_outputs(p) else self.name

    def magnifies_outputs(self, p: Parts) -> bool:
        """Whether it carries DoRA's magnitudes, one for each output."""
        return MAGNITUDES.name in p and p[MAGNITUDES.name].shape[0] == self.shape(p)[0]

    def peft_config(self, members: Sequence[Parts], alpha: float) -> dict[str, Any] | None:
        """What PEFT's `adapter_config.json` says of modules of this kind beside ranks and layers; None where we write no such directory."""
        return None

    # ---- its change --------------------------------------------------------------------------------------------------

    def delta(
        self, p: Parts, scale: float, weight: tuple[int, ...] = (), base: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The change of the layer's weight, in the shape `weight` (default: as the parts tell). `base`: the layer's own weight, for kinds that need it."""
        raise NotImplementedError(f"{type(self).__name__} must give its change")

    def squared_norm(self, p: Parts, scale: float) -> torch.Tensor:
        """||change||^2; of a kind that needs the base weight, of its own numbers, which are relative to that weight."""
        return self.delta(p, scale).square().sum()

    def factored(self, p: Parts, most: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(up (out, rank), down (rank, in * kernel)) whose product is just the change at scale 1, in `most` numbers at the most; None where it has none."""
        return None

    def kronecker(self, p: Parts) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Two factors whose Kronecker product is just the change at scale 1; None where it has none."""
        return None

    def core_numbers(self, p: Parts) -> int:
        """How many numbers the part has that a core between the factors (Tucker) is multiplied into; 0 where there is no core, or no form without."""
        return 0

    def without_core(self, p: Parts, alpha: float | None) -> tuple[dict[str, torch.Tensor], float | None]:
        """(parts, alpha) of the same change with the core between the factors multiplied into one of them."""
        return dict(p), alpha

    def degree(self, p: Parts) -> int:
        """How many parts are multiplied together in the change."""
        return sum(part.scales and part.name in p for part in self.parts if part is not BIAS_PART)

    def ends(self, p: Parts) -> tuple[tuple[str, ...], ...]:
        """Pairs of parts that a factor on the change is shared by, or single ones that take it whole; () where no factor does."""
        return ()

    def stretched(self, p: Parts, factor: float) -> dict[str, torch.Tensor]:
        """The parts with `factor` times the change: half of it in each of a pair, so neither leaves the range of fp16."""
        out = dict(p)
        for *firsts, last in self.ends(p):
            root = math.sqrt(abs(factor)) if firsts else abs(factor)
            for first in firsts:
                out[first] = out[first].float() * root
            out[last] = out[last].float() * math.copysign(root, factor)
        return out

    def at_scale(self, member: Member, scale: float) -> dict[str, torch.Tensor]:
        """The parts of the same change at this scale."""
        factor = self.scale(*member) / scale
        return dict(member[0]) if factor == 1.0 else self.stretched(member[0], factor)

    def summed(self, members: list[tuple[Parts, float]]) -> dict[str, torch.Tensor] | None:
        """Parts of one module (scale 1) that is the sum of these (parts, scale); None where only their changes can be added."""
        return None

    # ---- over layers that a model keeps as one -------------------------------------------------------------------------

    def row_parts(self, p: Parts) -> list[str]:
        """Those of the parts whose rows are the layer's outputs."""
        over_outputs = MAGNITUDES.name in p and len(p[MAGNITUDES.name]) > 1
        return [
            part.name
            for part in self.parts
            if part.name in p and (part.rows or part.name == MAGNITUDES.name and over_outputs)
        ]

    def spans(self, p: Parts) -> dict[str, int]:
        """The parts that are cut where the layer is cut between its outputs -> how many of what it can be cut in a row of each stands for; {} where it
        cannot be cut.
        """
        return dict.fromkeys(self.row_parts(p), 1) if self.by_rows(p) else {}

    def cut(self, p: Parts, counts: Mapping[str, Sequence[int]]) -> list[dict[str, torch.Tensor] | None]:
        """The parts of each share of the layer's outputs, at the same scale; None of a share that nothing is changed in. `counts`: of each part in `spans`
        how many rows each share has.
        """
        pieces = {name: torch.split(p[name], list(sizes)) for name, sizes in counts.items()}
        shares = range(min(map(len, pieces.values()), default=0))
        return [{**p, **{name: cut[n].clone() for name, cut in pieces.items()}} for n in shares]

    def stacked(
        self, members: Sequence[Member | None], rows: Sequence[int]
    ) -> tuple[dict[str, torch.Tensor], float | None] | None:
        """(parts, alpha) of one module over shares of a layer's outputs; None where it has no exact form. A share of None is not changed.

        `rows`: how many outputs each has; empty where that is not known. Here only what was one module before.
        """
        present = [member for member in members if member is not None]
        first, alpha = present[0]
        cut = self.spans(first)
        if not cut or len(present) < len(members) or any(p.keys() != first.keys() for p, _ in present):
            return None
        shared = [name for name in first if name not in cut]
        for p, other_alpha in present:
            if other_alpha != alpha or any(not torch.equal(p[name], first[name]) for name in shared):
                return None
            if any(p[name].shape[1:] != first[name].shape[1:] for name in cut):
                return None
        return {**first, **{name: torch.cat([p[name] for p, _ in present]) for name in cut}}, alpha

    # ---- training ----------------------------------------------------------------------------------------------------

    def largest_rank(self, weight: tuple[int, ...]) -> int | None:
        """The largest rank a layer allows; None: any."""
        return None

    def start(self, shape: Shape, walk: Walk, rng: torch.Generator) -> dict[str, torch.Tensor]:
        """Float32 parts that change nothing yet. Raises ValueError with the reason where this layer cannot carry the kind."""
        raise NotImplementedError(f"{type(self).__name__} must say how it starts")

    def fitted(self, p: Parts, weight: tuple[int, ...]) -> dict[str, torch.Tensor]:
        """Parts of a file in the shapes that training has for a layer with this weight; `shape` has been compared before."""
        return dict(p)

    def kept(self, p: Parts, weight: torch.Tensor, bias: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """What to remember of the layer's own weight and bias, asked once before the first step."""
        return {}

    def filled(self, p: Parts, kept: Parts) -> dict[str, torch.Tensor]:
        """Values of parts that start from the base weight."""
        return {}

    def derived(self, p: Parts, scale: float, kept: Parts, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """What a forward pass needs besides the parts, made anew when they have changed. `weight`: the layer's own."""
        return {}

    def joint(self, p: Parts, walk: Walk) -> Joint | None:
        """The layer and its change as one node of autograd's graph, with the factors `down` and `up`; None where the kind has no such form."""
        return None

    def around(self, forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, acting: Acting) -> torch.Tensor:
        """The layer's output with this adapter; `forward` is the layer's own."""
        return self.add_to(forward(x), x, acting)

    def add_to(self, out: torch.Tensor, x: torch.Tensor, acting: Acting) -> torch.Tensor:
        """`out` plus the change's product with `x`. Here with the dense change, which is made anew in the backward pass instead of being kept."""
        x = acting.drop(x)

        def change(x: torch.Tensor) -> torch.Tensor:
            return acting.walk(x, self.delta(acting.parts, acting.scale, acting.weight).to(x.dtype))

        if not torch.is_grad_enabled():
            return out + change(x)
        return out + torch.utils.checkpoint.checkpoint(change, x, use_reentrant=False, preserve_rng_state=False)

    def limited(self, p: Parts, scale: float, largest: float) -> dict[str, torch.Tensor]:
        """The parts whose change is larger than `largest`, each scaled down by the same factor (kohya's scale_weight_norms)."""
        norm = self.squared_norm(p, scale).clamp_min(0).sqrt()
        factor = (largest / norm.clamp_min(largest)) ** (1 / max(1, self.degree(p)))
        return {part.name: p[part.name] * factor for part in self.parts if part.scales and part.name in p}

    def bounded(self, p: Parts, shape: Shape) -> dict[str, torch.Tensor]:
        """Parts that lie outside of what the settings allow, brought back to the border after each step."""
        return {}


def stacked_beside(members: Sequence[Member | None], rows: Sequence[int]) -> dict[str, torch.Tensor]:
    """DoRA's magnitudes of outputs and the changes of biases that shares of a layer have, one after the other; of a bias that is not changed zeros."""
    out = {}
    magnitudes = [m[0][MAGNITUDES.name] for m in members if m is not None and MAGNITUDES.name in m[0]]
    if magnitudes:
        out[MAGNITUDES.name] = torch.cat(magnitudes)
    biases = [None if m is None else m[0].get(BIAS_PART.name) for m in members]
    if any(bias is not None for bias in biases):
        filled = [torch.zeros(n) if bias is None else bias for bias, n in zip(biases, rows, strict=True)]
        out[BIAS_PART.name] = torch.cat(filled)
    return out


def kaiming(rng: torch.Generator, *size: int) -> torch.Tensor:
    """As PEFT, LyCORIS and kohya start what does not start at zero."""
    gain = torch.nn.init.calculate_gain("leaky_relu", math.sqrt(5))
    bound = math.sqrt(3.0) * (
        gain / math.sqrt(math.prod(size[1:]))
    )  # what kaiming_uniform_ does; it takes no generator before PyTorch 2.3
    return torch.empty(size).uniform_(-bound, bound, generator=rng)


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if any(n != 1 for n in shape[2:]) else shape[:2]


def unflattened(rows: int, columns: int, kernel: tuple[int, ...]) -> tuple[int, ...]:
    """(out, in, *kernel) of a matrix (out, in * kernel)."""
    return (rows, columns // math.prod(kernel), *kernel) if kernel else (rows, columns)
