"""The canonical form every reader produces and every writer starts from, and the arithmetic on one module.

A module's effect is `W += strength * delta`, for a LoRA `delta = alpha / rank * up @ down`. Inputs are left as they are; arithmetic is
float32 and casting comes last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from ..lora_core.messages.errors import Problem
from ..lora_core.messages.message import Message, Setting
from .forms import DTYPE_NAMES

State = dict[str, torch.Tensor]
DTYPES = dict(zip(DTYPE_NAMES, (torch.float32, torch.float16, torch.bfloat16), strict=True))


APPROXIMATE, FAMILY, SCALE, DROP_UNKNOWN = (Setting(name) for name in ("approximate", "family", "scale", "drop_unknown"))  # a door has its own names


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


@dataclasses.dataclass(frozen=True)
class Module:
    """The adapter of one layer.

    `kind` and `parts` by kind: "lora": down (rank, in, *kernel), up (out, rank, *1), for Tucker form also mid (rank, rank, *kernel);
    "loha": hada_w1_a ... hada_t2; "lokr": lokr_w1 ... lokr_t2; "full": diff and/or diff_b; each of them optionally with dora
    (magnitudes, (out, 1, ...) or (1, in, ...)) and diff_b, a change of the bias that no alpha scales. "other": parts as found, to be renamed
    only. `alpha` None means scale 1. `kernel`: of a convolution whose LoHa or LoKr factors are stored flat.
    """

    kind: str
    parts: Mapping[str, torch.Tensor]
    alpha: float | None = None
    kernel: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        """Rank of the factors; 0 where there is none."""
        p = self.parts
        if self.kind == "lora":
            return p["down"].shape[0]
        if self.kind == "loha":
            return p["hada_w1_b"].shape[0]
        for name in ("lokr_w1_b", "lokr_w2_b"):
            if name in p:
                return p[name].shape[0]
        return 0

    @property
    def scale(self) -> float:
        """alpha / rank; 1 where alpha is missing, 0 (kohya: "as rank") or, for a LoKr of two full matrices, ignored by every WebUI."""
        return self.alpha / self.rank if self.alpha and self.rank else 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in, *kernel) of the layer's weight as far as the parts tell; () when unknown."""
        p = self.parts
        if self.kind == "lora":
            kernel = p["mid"].shape[2:] if "mid" in p else p["down"].shape[2:]
            return (p["up"].shape[0], p["down"].shape[1], *kernel)
        if self.kind == "full":
            return tuple(p["diff"].shape) if "diff" in p else ()
        if self.kind == "loha":
            if "hada_t1" in p:
                return (p["hada_w1_a"].shape[1], p["hada_w1_b"].shape[1], *p["hada_t1"].shape[2:])
            return self._unflattened(p["hada_w1_a"].shape[0], p["hada_w1_b"].shape[1])
        if self.kind == "lokr":
            one, two = lokr_factors(p)
            rows, columns = one.shape[0] * two.shape[0], one.shape[1] * two.shape[1]
            return (rows, columns, *two.shape[2:]) if two.ndim > 2 else self._unflattened(rows, columns)
        return ()

    def _unflattened(self, rows: int, columns: int) -> tuple[int, ...]:
        return (rows, columns // math.prod(self.kernel), *self.kernel) if self.kernel else (rows, columns)

    def replaced(self, **parts: torch.Tensor) -> Module:
        return dataclasses.replace(self, parts={**self.parts, **parts})


@dataclasses.dataclass
class Lora:
    """A LoRA file in canonical form: modules by canonical name, `<component>.<diffusers path>` with the components "unet" or "transformer"
    for the denoiser and ComfyUI's names for text encoders (clip_l, clip_g, clip_h, t5xxl). Names nobody knows stay as they were.

    `source`: the spelling it was read from; `keys`: those of the file. `embeddings`: bundled textual inversions by token. `notes`: what the user should know.
    """

    family: str
    modules: dict[str, Module]
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    embeddings: dict[str, State] = dataclasses.field(default_factory=dict)
    notes: list[Message] = dataclasses.field(default_factory=list)
    source: str = ""
    keys: frozenset[str] = frozenset()

    def components(self) -> list[str]:
        return sorted({component(name) for name in self.modules})


def component(name: str) -> str:
    """The part of the pipeline a canonical name belongs to."""
    return name.split(".", 1)[0]


def delta(module: Module) -> torch.Tensor:
    """The dense change of the layer's weight at strength 1, float32, in the shape of the weight as far as the parts tell. Without DoRA's rescaling."""
    p = {k: v.float() for k, v in module.parts.items()}
    if module.kind == "lora":
        m = plain(module)
        down, up = m.parts["down"].float(), m.parts["up"].float()
        return module.scale * (up.flatten(1) @ down.flatten(1)).view(up.shape[0], *down.shape[1:])
    if module.kind == "full" and "diff" in p:
        return p["diff"]
    if module.kind == "loha":
        if "hada_t1" in p:
            one = torch.einsum("i j ..., j r, i p -> p r ...", p["hada_t1"], p["hada_w1_b"], p["hada_w1_a"])
            two = torch.einsum("i j ..., j r, i p -> p r ...", p["hada_t2"], p["hada_w2_b"], p["hada_w2_a"])
        else:
            one, two = p["hada_w1_a"] @ p["hada_w1_b"], p["hada_w2_a"] @ p["hada_w2_b"]
        return (module.scale * one * two).reshape(module.shape)
    if module.kind == "lokr":
        one, two = lokr_factors(p)
        one = one.reshape(*one.shape, *[1] * (two.ndim - 2))
        return (module.scale * torch.kron(one, two.contiguous())).reshape(module.shape)
    raise FormatError("module.no_delta", kind=repr(module.kind), parts=module.parts)


def lokr_factors(p: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The two factors whose Kronecker product a LoKr is, their own low-rank parts multiplied out."""
    one = p["lokr_w1"] if "lokr_w1" in p else p["lokr_w1_a"] @ p["lokr_w1_b"]
    if "lokr_w2" in p:
        return one, p["lokr_w2"]
    if "lokr_t2" in p:
        return one, torch.einsum("i j ..., i p, j r -> p r ...", p["lokr_t2"], p["lokr_w2_a"], p["lokr_w2_b"])
    return one, p["lokr_w2_a"] @ p["lokr_w2_b"].flatten(1)


def plain(module: Module) -> Module:
    """A Tucker LoRA as an ordinary one of the same rank: the middle factor is multiplied into `down`. Others as they are."""
    if module.kind != "lora" or "mid" not in module.parts:
        return module
    p = module.parts
    down = torch.einsum("n m ..., m j -> n j ...", p["mid"].float(), p["down"].float().flatten(1))
    rest = {k: v for k, v in p.items() if k not in ("mid", "down")}
    up = p["up"].flatten(1)
    return dataclasses.replace(module, parts={**rest, "down": down, "up": up.reshape(*up.shape, *[1] * (down.ndim - 2))})


def folded(module: Module, keep: float = 1.0) -> Module:
    """The same effect with scale `keep`: the rest goes into the weights, half of it into each factor so neither leaves the range of fp16."""
    factor = module.scale / keep
    if keep != 1.0 and not module.rank and module.kind != "full":
        raise FormatError("module.no_rank", kind=module.kind)
    if module.kind == "full" or factor == 1.0:
        return dataclasses.replace(module, alpha=keep * module.rank if module.rank else None)
    root, sign = math.sqrt(abs(factor)), math.copysign(1.0, factor)
    first, second = _ends(module)
    parts = dict(module.parts)
    parts[first], parts[second] = parts[first].float() * root, parts[second].float() * (root * sign)
    return dataclasses.replace(module, parts=parts, alpha=keep * module.rank if module.rank else None)


def multiplied(module: Module, factor: float) -> Module:
    """The module with `factor` times the effect, as exactly as the form allows: by alpha, a sign or a zero by the weights (alpha 0 means 1)."""
    if module.kind == "full":
        return Module("full", {k: v.float() * factor for k, v in module.parts.items()})
    _, last = _ends(module)
    if "diff_b" in module.parts:
        module = module.replaced(diff_b=module.parts["diff_b"].float() * factor)
    if not module.rank or not factor:
        return module.replaced(**{last: module.parts[last].float() * factor})
    signed = module if factor > 0 else module.replaced(**{last: -module.parts[last]})
    return dataclasses.replace(signed, alpha=module.scale * module.rank * abs(factor))


def _ends(module: Module) -> tuple[str, str]:
    """The two parts a scale is split over."""
    if module.kind == "lora":
        return "down", "up"
    if module.kind == "loha":
        return "hada_w1_b", "hada_w1_a"
    if module.kind == "lokr":
        return next(n for n in ("lokr_w1", "lokr_w1_b") if n in module.parts), next(n for n in ("lokr_w2", "lokr_w2_a") if n in module.parts)
    raise FormatError("module.not_scalable", kind=repr(module.kind))


def applied(weight: torch.Tensor, module: Module, strength: float = 1.0) -> torch.Tensor:
    """`weight` + strength * change, in float32: what baking a module into its layer gives. For DoRA (Liu et al. 2024, arXiv 2402.09353, eq. 5)
    the change is m * V / ||V|| - W with V = W + delta, the norm taken along the axis that the magnitudes leave out, as PEFT and LyCORIS do.
    """
    base = weight.float()
    changed = base + delta(module).reshape(base.shape)
    if "dora" in module.parts:
        magnitude = module.parts["dora"].float()
        over = 0 if magnitude.shape[0] == 1 else 1
        flat = changed.flatten(1) if over else changed.transpose(0, 1).flatten(1)
        norm = flat.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        axis = [1] * base.ndim
        axis[1 - over] = -1
        changed = changed * (magnitude.reshape(axis) / norm.reshape(axis))
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
    small, error = _module_from_svd(left @ u[:, :rank], s[:rank], v[:rank] @ right.t(), float(s.square().sum()), (up.shape[0], *down.shape[1:]), energy)
    return (small.replaced(diff_b=m.parts["diff_b"]) if "diff_b" in m.parts else small), error


def _module_from_svd(u: torch.Tensor, s: torch.Tensor, v: torch.Tensor, total: float, shape: tuple[int, ...], energy: float) -> tuple[Module, float]:
    if energy < 1.0:
        rank = max(1, int((s.square().cumsum(0) < energy * total).sum()) + 1)
        u, s, v = u[:, :rank], s[:rank], v[:rank]
    root = s.sqrt()
    up, down = u * root, (root[:, None] * v).reshape(-1, *shape[1:])
    error = math.sqrt(max(0.0, total - float(s.square().sum())) / total) if total else 0.0
    return Module("lora", {"down": down, "up": up.reshape(*up.shape, *[1] * (len(shape) - 2))}, float(len(s))), error


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
    parts = [folded(plain(m)).parts for m in modules]
    down = torch.cat([p["down"].float() for p in parts], 0)
    joined = Module("lora", {"down": down, "up": torch.cat([p["up"].float() for p in parts], 1)}, float(len(down)))
    biases = [p["diff_b"].float() for p in parts if "diff_b" in p]
    return joined.replaced(diff_b=torch.stack(biases).sum(0)) if biases else joined


def dense_tucker(module: Module) -> Module:
    """A LoKr in Tucker form with its second factor multiplied out, scale inside. ComfyUI fails on the three-factor form of convolutions."""
    if module.kind != "lokr" or "lokr_t2" not in module.parts:
        return module
    _, two = lokr_factors({k: v.float() for k, v in module.parts.items()})
    rest = {k: v for k, v in module.parts.items() if k not in ("lokr_t2", "lokr_w2_a", "lokr_w2_b")}
    return Module("lokr", {**rest, "lokr_w2": two * module.scale}, kernel=module.kernel)


def cast(state: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]], dtype: str) -> tuple[State, float]:
    """(state in `dtype`, share of non-zero values that became zero). Alpha stays float32-exact. Raises FormatError on overflow.

    Takes a table or its pairs one by one, so that a large file need not be held in float32.
    """
    out, lost, total = {}, 0, 0
    for key, value in state.items() if isinstance(state, Mapping) else state:
        small = value.float() if key.endswith(".alpha") else value.to(DTYPES[dtype])
        if not torch.isfinite(small).all():
            raise FormatError("tensor.unfit", key=key, type=dtype)
        nonzero = int(value.count_nonzero())
        lost, total = lost + nonzero - int(small.count_nonzero()), total + nonzero
        out[key] = small
    return out, lost / max(1, total)


def is_lora(state: Mapping[str, torch.Tensor]) -> bool:
    return any(".lora_" in key for key in state)
