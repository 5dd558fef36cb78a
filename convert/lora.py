"""The canonical form every reader produces and every writer starts from, and the arithmetic on one module.

A module's effect is `W += strength * delta`, for a LoRA `delta = alpha / rank * up @ down`; the formulas stand in `lora_core/algebra`. Inputs
are left as they are; arithmetic is float32 and casting comes last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from ..lora_core.algebra.dora import KIND as DORA
from ..lora_core.algebra.dora import rescaled
from ..lora_core.algebra.kind import MAGNITUDES, Kind
from ..lora_core.algebra.kinds import KINDS
from ..lora_core.algebra.lora import KIND as LORA
from ..lora_core.messages.errors import Problem
from ..lora_core.messages.message import Message, Setting
from .forms import DTYPE_NAMES

State = dict[str, torch.Tensor]
DTYPES = dict(zip(DTYPE_NAMES, (torch.float32, torch.float16, torch.bfloat16), strict=True))


APPROXIMATE, FAMILY, SCALE, DROP_UNKNOWN = (
    Setting(name) for name in ("approximate", "family", "scale", "drop_unknown")
)  # a door has its own names


class FormatError(Problem, ValueError):
    """A file or tensor is not what it should be, or cannot be written in the wanted form; the message names key and reason."""

    def __init__(self, code: str | Message, /, field: str = "", **values: Any):
        super().__init__(code, field, **values)


@contextlib.contextmanager
def about(what: str) -> Iterator[None]:
    """Puts `what`, such as a file or a layer, in front of every FormatError of the block."""
    try:
        yield
    except FormatError as error:
        raise FormatError("error.about", about=what, error=error) from error


MAX_DENSE, MAX_FACTORS = (
    1 << 24,
    1 << 24,
)  # numbers that may be made of a module, unless it holds as many
FEW = 1
OTHER = "other"  # parts that no kind of ours has, to be renamed only


@dataclasses.dataclass(frozen=True)
class Module:
    """The adapter of one layer.

    `kind` is a name in `algebra.kinds.KINDS`, which says what `parts` it has; or "other": parts as found under their exact endings, to be renamed only.
    Some kinds also carry dora (magnitudes, (out, 1, ...) or (1, in, ...)), all of them diff_b, a change of the bias that no alpha scales.
    `alpha` None means scale 1. `kernel`: of a convolution whose factors are stored flat. `as_found`: keys and tensors of the file this was
    read from; a changed module, made by `replaced` or `dataclasses.replace`, has none.
    """

    kind: str
    parts: Mapping[str, torch.Tensor]
    alpha: float | None = None
    kernel: tuple[int, ...] = ()
    as_found: Mapping[str, torch.Tensor] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def found_as(self, tensors: Mapping[str, torch.Tensor]) -> Module:
        """This module, with the keys and tensors that a file has for it."""
        out = dataclasses.replace(self)
        object.__setattr__(out, "as_found", dict(tensors))
        return out

    @property
    def algebra(self) -> Kind | None:
        """The kind's formulas; None for parts nobody here knows."""
        return KINDS.get(self.kind)

    @property
    def rank(self) -> int:
        """Rank of the factors; 0 where there is none."""
        return self.algebra.rank(self.parts) if self.algebra else 0

    @property
    def scale(self) -> float:
        """alpha / rank; 1 where alpha is missing, 0 (kohya: "as rank") or, for a LoKr of two full matrices, ignored by every WebUI."""
        return self.algebra.scale(self.parts, self.alpha) if self.algebra else 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in, *kernel) of the layer's weight as far as the parts tell; () when unknown."""
        return self.algebra.shape(self.parts, self.kernel) if self.algebra else ()

    @property
    def magnitudes(self) -> torch.Tensor | None:
        """DoRA's, where it carries them."""
        return self.parts.get(MAGNITUDES.name)

    @property
    def told_kind(self) -> str:
        """What a note calls its kind: that of the magnitudes, where it carries them."""
        return self.kind if self.magnitudes is None else DORA.name

    @property
    def paired(self) -> bool:
        """Whether it has the factors of a LoRA, down and up."""
        return self.algebra is not None and self.algebra.paired

    @property
    def is_plain(self) -> bool:
        """Whether the product of those factors is its change of the weight, without magnitudes."""
        return self.paired and self.magnitudes is None

    @property
    def dense(self) -> bool:
        """Whether the change of the weight follows from the parts alone."""
        return self.changes_weight and not kind_of(self).needs_base and self.magnitudes is None

    @property
    def changes_weight(self) -> bool:
        """Whether it is known to change the layer's weight, not its bias alone."""
        return self.algebra is not None and self.algebra.changes_weight(self.parts)

    def replaced(self, **parts: torch.Tensor) -> Module:
        return dataclasses.replace(self, parts={**self.parts, **parts})


def kind_of(module: Module) -> Kind:
    """The formulas of a module. Raises FormatError for parts nobody here knows."""
    if module.algebra is None:
        raise FormatError("module.unknown_kind", parts=module.parts)
    return module.algebra


def as_lora(module: Module) -> Message:
    """How a module becomes a plain LoRA, as the end of a sentence."""
    if module.algebra is None:
        return Message.of("way.none")
    if module.dense and len(module.shape) > 1:
        return Message.of("way.approximate", approximate=APPROXIMATE)
    if module.dense or not module.changes_weight:
        return Message.of("way.leave_out", approximate=APPROXIMATE)
    return Message.of("way.bake")


@dataclasses.dataclass
class Lora:
    """A LoRA file in canonical form: modules by canonical name, `<component>.<diffusers path>` with the components "unet" or "transformer"
    for the denoiser and ComfyUI's names for text encoders (clip_l, clip_g, clip_h, t5xxl). Names nobody knows stay as they were.

    `source`: the spelling it was read from; `keys`: those of the file. `foreign`: tensors of the file that are no part of an adapter, which
    are carried as they are. `origins`: base models it says it was trained on, each with the field that says so. `embeddings`: bundled
    textual inversions by token. `notes`: what the user should know.
    """

    family: str
    modules: dict[str, Module]
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    embeddings: dict[str, State] = dataclasses.field(default_factory=dict)
    notes: list[Message] = dataclasses.field(default_factory=list)
    source: str = ""
    keys: frozenset[str] = frozenset()
    foreign: State = dataclasses.field(default_factory=dict)
    origins: tuple[tuple[str, str], ...] = ()

    def components(self) -> list[str]:
        return sorted({component(name) for name in self.modules})


def same(one: Module, other: Module) -> bool:
    """Whether two modules are equal to the last bit."""
    alike = (one.kind, one.alpha, one.kernel, one.parts.keys()) == (
        other.kind,
        other.alpha,
        other.kernel,
        other.parts.keys(),
    )
    return alike and all(torch.equal(value, other.parts[part]) for part, value in one.parts.items())


def component(name: str) -> str:
    """The part of the pipeline a canonical name belongs to."""
    return name.split(".", 1)[0]


def delta(module: Module, base: torch.Tensor | None = None) -> torch.Tensor:
    """The dense change of the layer's weight at strength 1, float32, in the shape of the weight as far as the parts tell. Without DoRA's rescaling.

    `base`: the layer's own weight, which some kinds need. Raises FormatError where there is no such change, or none without the base.
    """
    kind = module.algebra
    if kind is None or not module.changes_weight:
        raise FormatError("module.no_delta", kind=repr(module.kind), parts=module.parts)
    if kind.needs_base and base is None:
        raise FormatError("module.relative", kind=repr(module.kind), way=as_lora(module))
    if base is None:
        _require_room(module, math.prod(module.shape), MAX_DENSE)
    return kind.delta({k: v.float() for k, v in module.parts.items()}, module.scale, module.shape, base)


def numbers(module: Module) -> int:
    """How many numbers its parts hold."""
    return sum(value.numel() for value in module.parts.values())


def _require_room(module: Module, count: int, limit: int) -> None:
    """Raises FormatError where a small module would be multiplied out to `count` numbers, more than `limit` and than few times its own."""
    held = numbers(module)
    if count > max(limit, FEW * held):
        raise FormatError(
            "module.large_product", kind=module.kind, count=count, held=held, limit=limit, approximate=APPROXIMATE
        )


def factored(module: Module, most: int = MAX_FACTORS) -> Module | None:
    """The module as a plain LoRA of exactly its effect; None where its kind has no such form or it would have more than `most` numbers."""
    kind = module.algebra
    if kind is None or not module.dense:
        return None
    product = kind.factored({k: v.float() for k, v in module.parts.items()}, most)
    if product is None:
        return None
    up, down = product
    ones = [1] * (len(module.shape) - 2)
    parts = {"down": down.reshape(len(down), *module.shape[1:]), "up": up.reshape(*up.shape, *ones)}
    return with_bias(Module(LORA.name, parts, module.scale * len(down)), [module])


def approximation(module: Module, rank: int, energy: float = 1.0) -> tuple[Module, float]:
    """(the best LoRA of at most `rank` for a module whose change follows from its parts, relative error), without multiplying it out where that is
    large: by its factors, or those of a Kronecker product. Raises FormatError.
    """
    if math.prod(module.shape) <= MAX_DENSE:
        return low_rank(delta(module), rank, energy)
    if (as_factors := factored(module)) is not None:
        return resized(as_factors, rank, energy)
    sizes = {name: value.to("meta") for name, value in module.parts.items()}
    if module.dense and kind_of(module).kronecker(sizes) is not None:
        return _of_kronecker(module, rank, energy)
    return low_rank(delta(module), rank, energy)


def _of_kronecker(module: Module, rank: int, energy: float) -> tuple[Module, float]:
    """Of a Kronecker product: its singular values are the products of those of its factors, its singular vectors the Kronecker products of theirs."""
    _require_room(module, math.isqrt(math.prod(module.shape)) * rank, MAX_DENSE)
    factors = kind_of(module).kronecker({k: v.float() for k, v in module.parts.items()})
    assert factors is not None
    one, two = factors
    kernel = module.shape[2:]
    two = two.flatten(1)
    (u, s, v), (x, t, y) = (truncated_svd(factor, min(rank, *factor.shape)) for factor in (one, two))
    values, order = torch.outer(s, t).flatten().topk(min(rank, s.numel() * t.numel()))
    first, second = order // t.numel(), order % t.numel()
    up = torch.einsum("ik,jk->ijk", u[:, first], x[:, second]).flatten(0, 1)
    down = torch.einsum("ki,kj->kij", v[first], y[second]).flatten(1)
    total = float(one.square().sum() * two.square().sum()) * module.scale**2
    shape = (len(up), down.shape[1] // math.prod(kernel), *kernel)
    return _module_from_svd(up, values * abs(module.scale), down * math.copysign(1, module.scale), total, shape, energy)


def plain(module: Module) -> Module:
    """A Tucker LoRA as an ordinary one of the same rank: the middle factor is multiplied into `down`. Others as they are. Raises FormatError where that
    would be large.
    """
    return _without_core(module) if module.paired else module


def _without_core(module: Module) -> Module:
    """The module without a core between its factors, which is multiplied into one of them. Raises FormatError where that would be large."""
    kind = kind_of(module)
    count = kind.core_numbers(module.parts)
    if not count:
        return module
    _require_room(module, count, MAX_FACTORS)
    parts, alpha = kind.without_core(module.parts, module.alpha)
    return dataclasses.replace(module, parts=parts, alpha=alpha)


def folded(module: Module, keep: float = 1.0) -> Module:
    """The same effect with scale `keep`: the rest goes into the weights, half of it into each factor so neither leaves the range of fp16."""
    kind, factor = kind_of(module), module.scale / keep
    if keep != 1.0 and not module.rank and kind.has_alpha:
        raise FormatError("module.no_scale", kind=module.kind)
    if factor == 1.0 or not module.rank:
        return dataclasses.replace(module, alpha=keep * module.rank if module.rank else None)
    return dataclasses.replace(module, parts=kind.stretched(module.parts, factor), alpha=keep * module.rank)


def multiplied(module: Module, factor: float) -> Module:
    """The module with `factor` times the effect, as exactly as the form allows: by alpha, a sign or a zero by the weights (alpha 0 means 1)."""
    kind = kind_of(module)
    if "diff_b" in module.parts:
        module = module.replaced(diff_b=module.parts["diff_b"].float() * factor)
    if not kind.ends(module.parts):
        if module.parts.keys() - {"diff_b"} and factor != 1.0:
            raise FormatError("module.no_scaling_part", kind=repr(module.kind))
        return module
    if not module.rank or not factor:
        return dataclasses.replace(module, parts=kind.stretched(module.parts, factor))
    signed = module if factor > 0 else dataclasses.replace(module, parts=kind.stretched(module.parts, -1.0))
    return dataclasses.replace(signed, alpha=module.scale * module.rank * abs(factor))


def applied(weight: torch.Tensor, module: Module, strength: float = 1.0) -> torch.Tensor:
    """`weight` + strength * change, in float32: what baking a module into its layer gives. With DoRA's magnitudes the change is m * V / ||V|| - W,
    V = W + delta (see `algebra.dora`).
    """
    if strength not in (0.0, 1.0) and not kind_of(module).proportional:
        raise FormatError("module.strength", strength=f"{strength:g}", kind=kind_of(module).title)
    base = weight.float()
    changed = base + delta(module, base).reshape(base.shape)
    if module.magnitudes is not None:
        changed = rescaled(changed, module.magnitudes.float())
    return changed if strength == 1.0 else base + strength * (changed - base)


def low_rank(weight: torch.Tensor, rank: int, energy: float = 1.0) -> tuple[Module, float]:
    """(the best LoRA of at most `rank` for a dense delta, relative error ||W - W'|| / ||W||), by SVD (Eckart and Young 1936).

    `energy` below 1 stops at the rank that holds this share of the squared norm.
    """
    flat = weight.float().flatten(1)
    return _module_from_svd(*truncated_svd(flat, rank), float(flat.square().sum()), weight.shape, energy)


def resized(module: Module, rank: int, energy: float = 1.0) -> tuple[Module, float]:
    """As `low_rank` for what is a LoRA already, without building its delta: QR of both factors, SVD of the small core."""
    m = folded(plain(module))
    down, up = m.parts["down"].float(), m.parts["up"].float()
    left, core_left = torch.linalg.qr(up.flatten(1))
    right, core_right = torch.linalg.qr(down.flatten(1).t())
    u, s, v = torch.linalg.svd(core_left @ core_right.t())
    small, error = _module_from_svd(
        left @ u[:, :rank],
        s[:rank],
        v[:rank] @ right.t(),
        float(s.square().sum()),
        (up.shape[0], *down.shape[1:]),
        energy,
    )
    return (small.replaced(diff_b=m.parts["diff_b"]) if "diff_b" in m.parts else small), error


def _module_from_svd(
    u: torch.Tensor, s: torch.Tensor, v: torch.Tensor, total: float, shape: tuple[int, ...], energy: float
) -> tuple[Module, float]:
    if energy < 1.0:
        rank = max(1, int((s.square().cumsum(0) < energy * total).sum()) + 1)
        u, s, v = u[:, :rank], s[:rank], v[:rank]
    root = s.sqrt()
    up, down = u * root, (root[:, None] * v).reshape(-1, *shape[1:])
    error = math.sqrt(max(0.0, total - float(s.square().sum())) / total) if total else 0.0
    parts = {"down": down, "up": up.reshape(*up.shape, *[1] * (len(shape) - 2))}
    return Module(LORA.name, parts, float(len(s))), error


def truncated_svd(flat: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(U (out, r), S (r), Vh (r, in)) of the `rank` largest singular values: exact for small matrices, else by a randomised range finder
    with four power iterations (Halko, Martinsson and Tropp 2011, algorithm 4.4), seeded, so the same input gives the same file.
    """
    if min(flat.shape) <= max(256, 4 * rank):
        u, s, v = torch.linalg.svd(flat, full_matrices=False)
        return u[:, :rank], s[:rank], v[:rank]
    rng = torch.Generator(flat.device).manual_seed(0)
    q = torch.linalg.qr(flat @ torch.randn(flat.shape[1], rank + 16, generator=rng, device=flat.device)).Q
    for _ in range(4):
        q = torch.linalg.qr(flat @ torch.linalg.qr(flat.t() @ q).Q).Q
    u, s, v = torch.linalg.svd(q.t() @ flat, full_matrices=False)
    return (q @ u)[:, :rank], s[:rank], v[:rank]


def concatenated(modules: Iterable[Module]) -> Module:
    """The exact sum of LoRA modules of one layer: their factors side by side, rank = sum of ranks, scale 1."""
    joined = added(list(modules))
    assert joined is not None
    return joined


def without_bias(module: Module) -> dict[str, torch.Tensor]:
    """The parts that change the weight alone."""
    return {part: value for part, value in module.parts.items() if part != "diff_b"}


def added(modules: Sequence[Module]) -> Module | None:
    """The exact sum of modules of one kind, in that kind; None where the kind has none."""
    if len({m.kind for m in modules}) > 1:
        return None
    kind = kind_of(modules[0])
    parts = kind.summed([(without_bias(plain(m)), m.scale) for m in modules])
    if parts is None:
        return None
    rank = kind.rank(parts)
    return with_bias(Module(kind.name, parts, float(rank) if rank else None), modules)


def with_bias(module: Module, summands: Sequence[Module]) -> Module:
    """The module with the sum of the others' changes of the bias."""
    biases = [m.parts["diff_b"].float() for m in summands if "diff_b" in m.parts]
    return module.replaced(diff_b=torch.stack(biases).sum(0)) if biases else module


def without_unread_core(module: Module) -> Module:
    """A module of which ComfyUI does not read the form with a core between the factors, without it. Others as they are."""
    return _without_core(module) if module.algebra is not None and module.algebra.core_unread else module


def cast(
    state: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]],
    dtype: str,
    as_they_are: Collection[str] = (),
) -> tuple[State, float]:
    """(state in `dtype`, share of non-zero values that became zero). Alpha stays float32-exact. Raises FormatError on overflow.

    Takes a table or its pairs one by one, so that a large file need not be held in float32. `as_they_are`: keys whose tensors keep their bytes.
    """
    out, lost, total = {}, 0, 0
    for key, value in state.items() if isinstance(state, Mapping) else state:
        if key in as_they_are:
            out[key] = value
            continue
        small = value.float() if key.endswith(".alpha") else value.to(DTYPES[dtype])
        if not torch.isfinite(small).all():
            raise FormatError("tensor.unfit", key=key, type=dtype)
        nonzero = int(value.count_nonzero())
        lost, total = lost + nonzero - int(small.count_nonzero()), total + nonzero
        out[key] = small
    return out, lost / max(1, total)


def is_lora(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether a table of tensors holds adapters of layers, of whichever kind."""
    return any(key.endswith(_ENDINGS) or ".lora_" in key for key in state)


_ENDINGS = tuple(
    f".{part.file}" for kind in KINDS.values() for part in kind.parts if part.name != "weight"
)  # a weight alone is a checkpoint's
