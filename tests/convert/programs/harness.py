"""Other programs' own loaders, run on files written here: which layers they read, and whether each changes by what the file says.

A program is one file beside this one, called like the module it is imported as. It offers

    TITLE, FOLDER         what the tables call it, and its checkout below $LOOM_PROGRAMS (~/programs)
    FAMILIES              the families it builds a model of, from its own classes wherever it has them
    models(), LISTED_IN   the names of the models that the program has, and which list of its own that is
    tree(family) -> Tree  that model: real layer names, narrow layers
    load(tree, path)      the program's own loading of a file, onto the tree; may raise whatever it raises

and, where it has such a thing, embedding(tree, path) -> {encoder: vectors}, written(tree, path) for a file of its own making.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import torch
from loom_small_models import ENCODERS, WIDTHS
from lora_loom.convert import write
from lora_loom.convert.embedding import EMBEDDING_TARGETS, Embedding, write_embedding
from lora_loom.convert.families import FAMILIES, text
from lora_loom.convert.files.disk import save
from lora_loom.convert.files.jobs import open_lora
from lora_loom.convert.fuse import sizes
from lora_loom.convert.lora import FormatError, Lora, Module, applied, component
from lora_loom.convert.writers import peft_directories
from lora_loom.lora_core.algebra.kind import Shape
from lora_loom.lora_core.algebra.kinds import KINDS
from lora_loom.lora_core.algebra.walk import Walk
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

with contextlib.suppress(ImportError):  # the interpreter of a host may have none
    from open_clip.model import CLIP

# A delta is a sum of a few products of float32 numbers, seen as the difference of two weights: 1e-6 is what is seen. A wrong alpha, half or order of rows is an
# error of 0.1 and more.
EXACT = 1e-4
FORMS = ("kohya", "comfyui", "diffusers", "peft")
BIAS = "#bias"

Weights = dict[str, Callable[[], torch.Tensor]]


def folder(name: str) -> Path:
    """Where a program's checkout is looked for."""
    return Path(os.environ.get("LOOM_PROGRAMS", "~/programs")).expanduser() / name


def commit(checkout: Path) -> str:
    """Hash and date of the checkout, or "" for a package."""
    told = subprocess.run(
        ["git", "-C", str(checkout), "log", "-1", "--format=%h %cs"], capture_output=True, text=True, check=False
    )
    return told.stdout.strip()


class StandIn(ModuleType):
    """A module of the host's surroundings that a loader imports and does not need: every name in it is a mock."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = MagicMock(name=f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value


def stand_in(name: str, **values: Any) -> ModuleType:
    """Puts a stand-in under this name among the imported modules, and into its parent."""
    module = StandIn(name)
    module.__path__ = []
    for key, value in values.items():
        setattr(module, key, value)
    sys.modules[name] = module
    parent, _, last = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], last, module)
    return module


# --- models -------------------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the weight of a canonical layer stands: in which weight of the tree, as which of its parts, and whether its halves are exchanged."""

    weight: str
    part: int = 0
    shares: tuple[int, ...] = (1,)
    swap: str = ""


@dataclasses.dataclass
class Tree:
    """A program's model. `weights`: label -> the weight as it is now. `places`: canonical layer -> where it stands. `host`: what the program's `load` needs."""

    family: str
    host: Any
    weights: Weights = dataclasses.field(default_factory=dict)
    places: dict[str, Place] = dataclasses.field(default_factory=dict)
    unnamed: list[str] = dataclasses.field(default_factory=list)

    def add_denoiser(self, model: torch.nn.Module) -> None:
        """All layers of a UNet or transformer, by whichever names it has for them."""
        family = FAMILIES[self.family]
        for path, layer in model.named_modules():
            if not has_weight(layer):
                continue
            found = family.table.find(path)
            if found is None:
                self.unnamed.append(path)
                continue
            label = f"{family.component}.{path}"
            self._watch(label, layer)
            for row in found.rows:
                fused = (row.part, row.shares) if found.native and len(found.rows) > 1 else (0, (1,))
                name = f"{family.component}.{found.diffusers(row)}"
                self.places[name] = Place(label, *fused, row.swap if found.native else "")

    def add_text(self, encoder: str, model: torch.nn.Module, prefix: str = "", projection: bool = True) -> None:
        """All layers of a text encoder, in transformers' words or OpenCLIP's; `prefix` is taken off their names.

        `projection`: whether this family's encoder has one; some programs give every CLIP a projection."""
        for path, layer in model.named_modules():
            found = text.layer(encoder, path.removeprefix(prefix))
            if isinstance(layer, torch.nn.MultiheadAttention):
                in_proj = text.layer(encoder, f"{path.removeprefix(prefix)}.in_proj")
                label = f"{encoder}.{path}.in_proj"
                self.weights[label] = lambda layer=layer: layer.in_proj_weight
                for row in in_proj.rows:
                    self.places[f"{encoder}.{in_proj.diffusers(row)}"] = Place(label, row.part, row.shares)
            elif found and has_weight(layer) and (projection or not path.endswith("text_projection")):
                label = f"{encoder}.{path}"
                self._watch(label, layer)
                self.places[f"{encoder}.{found.diffusers(found.rows[0])}"] = Place(label)

    def _watch(self, label: str, layer: torch.nn.Module) -> None:
        self.weights[label] = lambda: layer.weight
        if getattr(layer, "bias", None) is not None:
            self.weights[label + BIAS] = lambda: layer.bias

    def cut(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        """The rows of a canonical layer in (a change of) the weight or bias it stands in."""
        place = self.places[name]
        rows = torch.split(whole, sizes(len(whole), place.shares))[place.part]
        halves = place.swap == "always" or (
            place.swap == "last" and whole.ndim == 2 and len(whole) == 2 * whole.shape[1]
        )
        return torch.cat([*reversed(rows.chunk(2))]) if halves else rows

    def now(self, name: str) -> torch.Tensor:
        """The weight of a canonical layer."""
        return self.cut(name, self.weights[self.places[name].weight]().detach())

    def layers(self, norms: bool = False) -> list[str]:
        """The canonical layers a LoRA can be on, or its norms."""
        return [name for name in self.places if (self.now(name).ndim == 1) == norms]


def has_weight(layer: torch.nn.Module) -> bool:
    """Whether it is a linear layer, a convolution or a norm with a weight of its own; programs have classes of their own for all of them."""
    weight = layer._parameters.get("weight")
    return weight is not None and "Embedding" not in type(layer).__name__


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """The model with small float32 weights in place of whatever its classes start from, frozen."""
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.data = torch.randn(weight.shape, generator=rng) * 0.2
    return model.requires_grad_(False).eval()


def clip(width: int, layers: int, projection: bool = False) -> torch.nn.Module:
    """A narrow CLIP text model of transformers' own class."""
    config = clip_config(width, layers)
    return randomised((CLIPTextModelWithProjection if projection else CLIPTextModel)(config))


def open_clip(width: int, layers: int) -> torch.nn.Module:
    """A narrow CLIP of OpenCLIP's own class, without its picture tower."""
    model = CLIP(
        width,
        {"layers": 1, "width": 64, "head_width": 64, "patch_size": 16, "image_size": 16},
        {"width": width, "heads": 2, "layers": layers, "vocab_size": 64},
    )
    del model.visual
    return randomised(model)


def t5(width: int, layers: int) -> torch.nn.Module:
    """A narrow T5 encoder of transformers' own class."""
    config = T5Config(
        vocab_size=64, d_model=width, d_kv=width // 2, d_ff=2 * width, num_layers=layers, num_heads=2, feed_forward_proj="gated-gelu"
    )  # fmt: skip
    return randomised(T5EncoderModel(config))


def clip_config(width: int, layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=64, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=2, projection_dim=width
    )  # fmt: skip


# --- files --------------------------------------------------------------------------------------------------------------------------------


def module(kind: str, weight: torch.Tensor, seed: int, rank: int = 2, alpha: float = 2.0, bias: bool = False) -> Module:
    """A random adapter of this kind for a layer with such a weight. `dora_outputs` and `lokr_full` are further forms of their kinds."""
    base, _, form = kind.partition("_")
    rule = KINDS[base]
    options = {"dora_axis": "output" if form == "outputs" else "input", "lokr_factor": 4}
    shape = Shape(tuple(weight.shape), 64 if form == "full" else rank, alpha, options=options)
    rng = torch.Generator().manual_seed(seed)
    parts = rule.start(shape, Walk(bias=bias), rng)
    for name, value in parts.items():
        described = rule.part(name)
        if described is None or not described.constant:
            parts[name] = value + torch.randn(value.shape, generator=rng) * 0.3
    if "dora" in parts:
        parts["dora"] = parts["dora"].abs() + 1.0
    held = rule.form or base
    return Module(held, parts, alpha if KINDS[held].rank(parts) else None)


def lora_over(tree: Tree, names: Iterable[str], kind: str = "lora", mixed: bool = False) -> Lora:
    """A LoRA over these layers. `mixed`: ranks 2 and 4, alphas 1, 3 and 8 in turn; else rank 2 and alpha 2."""
    modules = {}
    for n, name in enumerate(names):
        rank, alpha = ((2, 4)[n % 2], (1.0, 3.0, 8.0)[n % 3]) if mixed else (2, 2.0)
        bias = kind == "bias" or (kind == "norm" and tree.places[name].weight + BIAS in tree.weights)
        modules[name] = module(kind, tree.now(name), n, rank, alpha, bias)
    return Lora(tree.family, modules)


def file_of(lora: Lora, form: str, path: Path, one_alpha: bool | None = None) -> Path:
    """A file of this form with the header that our own saves have at least. `one_alpha` False: as other programs write it, each layer with its own."""
    state = {k: v.contiguous() for k, v in write(lora, form, one_alpha).items()}
    save(path, state, {"format": "pt"})
    return path


# --- what a program makes of them ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def quiet():
    """The program's own talk is kept out of the way."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


@dataclasses.dataclass
class Seen:
    """Canonical layer -> relative error of its change (1 where nothing changed), and the error the program raised, if any."""

    errors: dict[str, float]
    raised: str = ""

    def read(self) -> set[str]:
        return {name for name, error in self.errors.items() if error <= EXACT}


def seen(program: Any, tree: Tree, lora: Lora, path: Path) -> Seen:
    """Loads the file, compares the change of every layer with that of the LoRA it was made of, and puts the weights back."""
    before = {label: weight().detach().clone() for label, weight in tree.weights.items()}
    expected = {name: changes_of(tree, name, module) for name, module in lora.modules.items()}
    raised = ""
    try:
        with quiet():
            change = program.load(tree, path)
    except Exception as error:  # noqa: BLE001  whatever a loader raises for what it does not know
        if re.search("Mock|SimpleNamespace|StandIn|stand_in", str(error)):
            raise  # our surroundings are not enough; that is no finding about the program
        raised, change = f"{type(error).__name__}: {error}".replace(str(path.parent), "").split("\n")[0][:120], {}
    if change is None:
        change = {label: weight().detach() - before[label] for label, weight in tree.weights.items()}
    with torch.no_grad():
        for label, weight in tree.weights.items():
            weight().copy_(before[label])
    return Seen({name: error_of(tree, name, wanted, change) for name, wanted in expected.items()}, raised)


def changes_of(tree: Tree, name: str, module: Module) -> dict[str, torch.Tensor]:
    """ "" -> the change of the layer's weight, "#bias" -> that of its bias, as the file means them."""
    out = {}
    base = tree.now(name)
    if module.changes_weight:
        out[""] = applied(base, module) - base
    if "diff_b" in module.parts:
        out[BIAS] = module.parts["diff_b"].float()
    return out


def error_of(tree: Tree, name: str, wanted: dict[str, torch.Tensor], change: dict[str, torch.Tensor]) -> float:
    """||change - wanted|| / ||wanted||, the worse of weight and bias."""
    worst = 0.0
    for what, want in wanted.items():
        whole = change.get(tree.places[name].weight + what)
        got = torch.zeros_like(want) if whole is None else tree.cut(name, whole)
        worst = max(worst, float((got - want).norm() / want.norm()))
    return worst


# --- the survey ---------------------------------------------------------------------------------------------------------------------------


def pattern(name: str) -> str:
    """A layer's name with stars for the numbers of its blocks."""
    return re.sub(r"(block|blocks|layers|attentions|resnets|refiner)\.\d+(?=\.)", r"\1.*", name)


def by_pattern(names: Iterable[str]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for name in names:
        out.setdefault(pattern(name), []).append(name)
    return out


def shortened(patterns: list[str], names: Iterable[str]) -> list[str]:
    """`<component>.*` in place of all patterns of a component, where all are there and unmarked."""
    out = list(patterns)
    for part, members in parts_of(names).items():
        every = by_pattern(members)
        if len(every) > 1 and every.keys() <= {*out}:
            out = [f"{part}.*", *(stars for stars in out if stars not in every)]
    return out


def batches(names: list[str], size: int) -> Iterable[list[str]]:
    return (names[start : start + size] for start in range(0, len(names), size))


def parts_of(names: Iterable[str]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for name in names:
        out.setdefault(component(name), []).append(name)
    return out


@dataclasses.dataclass
class Survey:
    """One program over one model: `folder` is for its files."""

    program: ModuleType
    tree: Tree
    folder: Path
    unread: dict[str, set[str]] = dataclasses.field(default_factory=dict)

    def of(
        self, names: Iterable[str], form: str, kind: str = "lora", mixed: bool = False, program: Any = None
    ) -> Seen | None:
        """What is read of a file over these layers; None where there is no such file."""
        lora = lora_over(self.tree, names, kind, mixed)
        try:
            path = file_of(lora, form, self.folder / "x.safetensors", False if mixed else None)
        except FormatError:
            return None
        return seen(program or self.program, self.tree, lora, path)

    def form(self, form: str) -> dict[str, Any] | None:
        """Layers read by component, what is not read of a whole file, and what of it is read when it stands alone."""
        names = self.tree.layers()
        whole = self.of(names, form)
        if whole is None:
            return None
        out: dict[str, Any] = {
            part: [len(whole.read() & {*members}), len(members)] for part, members in parts_of(names).items()
        }
        result: dict[str, Any] = {"layers": out, "unread": self.told(whole, names)}
        if whole.raised:
            result["raised"] = whole.raised
        self.unread[form] = {*names} - whole.read()
        if not whole.read():
            result["alone"] = self.alone(form, names)
            self.unread[form] = {name for name in names if pattern(name) in result["alone"]}
            result["alone"] = shortened(result["alone"], names)
            rest = [name for name in names if name not in self.unread[form]]
            if rest and (what := self.of(rest, form)):
                result["rest"] = [len(what.read()), len(rest)]
        company = {part: self.without_company(members, form) for part, members in parts_of(names).items()}
        if together := {part: told for part, told in company.items() if told}:
            lonely = {part for part in together if self.needs_other_parts(part, names, form)}
            if kept := {part: told for part, told in together.items() if part not in lonely}:
                result["together"] = kept
            if lonely:
                result["not_alone"] = sorted(lonely)
        mixed = self.of(names, form, mixed=True)
        if mixed is not None and mixed.read() != whole.read():
            result["mixed"] = [len(mixed.read()), len(whole.read())]
            if mixed.raised:
                result["mixed_raised"] = mixed.raised
        if trains := getattr(self.program, "trains", None):
            continuing = types.SimpleNamespace(load=trains)
            what = self.of([name for name in names if name not in self.unread[form]] or names, form, program=continuing)
            result["training"] = [len(what.read()), len(what.errors)] if what else [0, 0]
        return result

    def universal(self) -> dict[str, Any]:
        """As `form`, for the file that is meant for several programs, of which no further questions are asked."""
        names = self.tree.layers()
        whole = self.of(names, "universal")
        assert whole is not None
        return self.counted(whole, names)

    def directory(self) -> dict[str, Any] | None:
        """As `form`, for PEFT directories: of each part of the pipeline where the program takes them, else the weights of the denoiser's alone."""
        takes = getattr(self.program, "load_directories", None)
        names = [n for n in self.tree.layers() if takes or component(n) == FAMILIES[self.tree.family].component]
        lora = lora_over(self.tree, names)
        files = {}
        for part, (state, config) in peft_directories(lora).items():
            place = self.folder / "peft" / part
            save(place / "adapter_model.safetensors", {k: v.contiguous() for k, v in state.items()}, {"format": "pt"})
            (place / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
            files[part] = place
        reader = types.SimpleNamespace(load=lambda tree, path: takes(tree, files)) if takes else self.program
        what = seen(reader, self.tree, lora, files[FAMILIES[self.tree.family].component] / "adapter_model.safetensors")
        return self.counted(what, names)

    def counted(self, what: Seen, names: list[str]) -> dict[str, Any]:
        """Layers read by component, and what is not read."""
        read = what.read()
        layers = {part: [len(read & {*members}), len(members)] for part, members in parts_of(names).items()}
        out: dict[str, Any] = {"layers": layers, "unread": self.told(what, names)}
        return out | {"raised": what.raised} if what.raised else out

    def without_company(self, members: list[str], form: str) -> str:
        """What becomes of the queries of a text encoder that is read, without keys, values and outputs beside them; "" where they are read."""
        queries = [n for n in members if n.endswith("self_attn.q_proj") and n not in self.unread[form]][:2]
        what = self.of(queries, form) if queries else None
        return "" if what is None or what.read() else verdict(what)

    def needs_other_parts(self, part: str, names: list[str], form: str) -> bool:
        """Whether a text encoder's layers that are read of a whole file are not read, without an error, of a file that holds nothing else."""
        what = self.of([name for name in names if component(name) == part and name not in self.unread[form]], form)
        return what is not None and not what.read() and not what.raised

    def told(self, what: Seen, names: Iterable[str]) -> list[str]:
        """The layers that are not read, or not right, as patterns where all of a pattern are so."""
        missed = []
        for stars, members in by_pattern(names).items():
            bad = [name for name in members if name not in what.read()]
            worst = [name for name in bad if 0.0 < abs(what.errors[name] - 1.0) > EXACT]
            mark = "! " if worst else ""
            missed += [mark + stars] if len(bad) == len(members) else [mark + name for name in bad]
        return shortened(missed, names)

    def alone(self, form: str, names: Iterable[str]) -> list[str]:
        """The patterns whose first layer is not read of a file of four layers, or alone where such a file raises.

        Nor, for text encoders, of a file that holds one whole, as some programs want it, or layers of the denoiser
        beside it, by which some know the form.
        """
        first = {stars: members[0] for stars, members in by_pattern(names).items()}
        read: set[str] = set()
        for some in batches(list(first.values()), 4):
            what = self.of(some, form)
            if what is None or what.raised:
                alone = [self.of([name], form) for name in some]
                read |= {name for name, seen in zip(some, alone) if seen is not None and seen.read()}
            else:
                read |= what.read()
        denoiser = FAMILIES[self.tree.family].component
        beside = [name for name in first.values() if name in read and component(name) == denoiser][:4]
        for part, members in parts_of(names).items():
            for more in ([], beside):
                if part != denoiser and not read & {*members}:
                    encoder = self.of([*members, *more], form)
                    read |= set() if encoder is None else encoder.read()
        return [stars for stars, name in first.items() if name not in read]

    def tolerance(self, form: str, most: int = 40) -> int | None:
        """The largest number of foreign keys a file may hold and still be read; None where `most` do no harm."""
        names = [name for name in self.tree.layers() if name not in self.unread[form]][:2]
        if not names:
            return None

        def read_with(count: int) -> bool:
            lora = lora_over(self.tree, names)
            state = dict(write(lora, form))
            state |= {f"lora_unet_foreign_{n}.lora_up.weight": torch.zeros(2, 2) for n in range(count)}
            save(self.folder / "x.safetensors", {k: v.contiguous() for k, v in state.items()}, {"format": "pt"})
            return len(seen(self.program, self.tree, lora, self.folder / "x.safetensors").read()) == len(names)

        if not read_with(0) or read_with(most):
            return None
        low, high = 0, most
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if read_with(middle) else (low, middle)
        return low

    def kinds(self, form: str) -> dict[str, dict[str, str]]:
        """Kind -> what becomes of a few linear layers, and of a few convolutions, that carry it: "exact", "nothing", an error, or how far off."""
        sample = self.sample(form)
        plain = self.of(sample, form)
        if plain is None or len(plain.read()) < len(sample):  # a program may want all layers of a text encoder or none
            sample = [name for name in sample if component(name) == FAMILIES[self.tree.family].component]
        convolutions = [name for name in sample if self.tree.now(name).ndim > 2]
        linear = [name for name in sample if name not in convolutions]
        norms = self.tree.layers(norms=True)[:2]
        out: dict[str, dict[str, str]] = {}
        for kind in (*KINDS, "dora_outputs", "lokr_full"):
            for sort, names in (("linear", linear), ("conv", convolutions)):
                if sort == "conv" and kind not in getattr(self.program, "CONVOLUTIONS_OF", (kind,)):
                    continue
                if kind == "norm":
                    names = norms if sort == "linear" else []
                if kind == "bias":
                    names = [n for n in names if self.tree.places[n].weight + BIAS in self.tree.weights]
                with contextlib.suppress(ValueError):  # the kind does not fit such layers, or has no such file
                    if names and (what := self.of(names, form, kind)):
                        out.setdefault(kind, {})[sort] = verdict(what)
        return out

    def sample(self, form: str) -> list[str]:
        """One layer of each sort that is read as a plain LoRA: attention with all that is fused with it, MLP, 3x3 convolution, text."""
        good = [name for name in self.tree.layers() if name not in self.unread[form]]
        chosen: list[str] = []
        for wanted in (
            r"attn1?\.(to_|add_)|attention\.to_|self_attn\.",
            r"ff\.|mlp|feed_forward|linear",
            r"resnets.*conv1",
        ):
            first = next((n for n in good if re.search(wanted, n) and "clip" not in n and "t5" not in n), None)
            chosen += [first] if first else []
        first = next((n for n in good if n.startswith("clip")), None)
        chosen += [first] if first else []
        weights = {self.tree.places[name].weight for name in chosen}
        blocks = {name.rpartition("_proj")[0][:-1] for name in chosen if name.startswith("clip")}
        return [
            n
            for n in good
            if self.tree.places[n].weight in weights or any(n.startswith(block) and "_attn" in n for block in blocks)
        ]


def verdict(what: Seen) -> str:
    """In a word or a figure, what became of the layers of a file."""
    if len(what.read()) == len(what.errors):
        return "exact"
    if what.raised:
        return f"raises {what.raised}"
    if all(abs(error - 1.0) <= EXACT for error in what.errors.values()):
        return "nothing"
    good, of = len(what.read()), len(what.errors)
    worst = max(what.errors.values())
    return f"{good} of {of} right, error up to {worst:.2g}" if good else f"error up to {worst:.2g}"


def written(program: ModuleType, tree: Tree, folder: Path) -> dict[str, list[int]]:
    """Each format of the program's own -> [layers that a file of its own making means alike to it and to us, layers in that file]."""
    out = {}
    for number, form in enumerate(getattr(program, "WRITTEN_AS", ("",))):
        path = folder / f"own-{tree.family}-{number}.safetensors"
        before = {label: weight().detach().clone() for label, weight in tree.weights.items()}
        with quiet():
            change = program.write(tree, path, form)
        if change is None:  # no such format for this model
            continue
        try:
            lora = open_lora(path, family=tree.family)
        except FormatError:  # a form that is refused here
            out[form or "its own"] = [0, len(change)]
            continue
        known = [name for name in lora.modules if name in tree.places]
        good = [n for n in known if error_of(tree, n, changes_of(tree, n, lora.modules[n]), change) <= EXACT]
        assert any(value.any() for value in change.values()), f"{program.TITLE} wrote nothing for {tree.family}"
        assert all(torch.equal(weight(), before[label]) for label, weight in tree.weights.items())
        out[form or "its own"] = [len(good), len(lora.modules)]
    return out


def change_by(program: ModuleType, tree: Tree, path: Path) -> dict[str, torch.Tensor]:
    """What a program's own loading of a file changes; the weights are put back."""
    before = {label: weight().detach().clone() for label, weight in tree.weights.items()}
    change = program.load(tree, path)
    if change is None:
        change = {label: weight().detach() - before[label] for label, weight in tree.weights.items()}
    with torch.no_grad():
        for label, weight in tree.weights.items():
            weight().copy_(before[label])
    return change


def embeddings(program: ModuleType, folder: Path) -> dict[str, dict[str, str]]:
    """Family -> form of the file -> what the program takes from an embedding of two vectors for each text encoder."""
    out: dict[str, dict[str, str]] = {}
    for family in program.EMBEDDINGS:
        rng = torch.Generator().manual_seed(3)
        vectors = {encoder: torch.randn(2, WIDTHS[encoder], generator=rng) for encoder in ENCODERS[family]}
        out[family] = {}
        for target in EMBEDDING_TARGETS:
            path = folder / "zog.safetensors"
            save(path, write_embedding(Embedding(vectors, token="zog"), target))
            try:
                with quiet():
                    taken = program.embedding(family, path)
            except Exception as error:  # noqa: BLE001  whatever a loader raises for what it does not know
                if re.search("Mock|SimpleNamespace|StandIn|stand_in", str(error)):
                    raise
                out[family][target] = f"raises {type(error).__name__}"
                continue
            good = [
                name for name, value in vectors.items() if name in taken and torch.equal(taken[name].float(), value)
            ]
            whole = len(good) == len(vectors)
            out[family][target] = "exact" if whole else f"only {' and '.join(good)}" if good else "nothing"
    return out


# Family -> what its name looks like among those of a program's own models, without marks between words.
NAMES = {
    "sd1": "sd15|sd1$|stablediffusion|default", "sd2": "sd2|stablediffusion", "sdxl": "sdxl|stablediffusionxl", "flux1": r"flux(?!2)", "chroma": "chroma",
    "sd3": "sd3|stablediffusion3", "flux2": r"flux2|klein", "z-image": "zimage", "lumina2": "lumina", "qwen-image": "qwen", "wan": r"^wan|loraw?an$",
    "hunyuanvideo": r"hunyuanvideo(?!15)|^hv(?!1)", "ltxv": r"ltxv|^ltx(?!2|av)", "ltxav": "ltxav|ltx2", "hidream": r"hidream(?!o1)", "anima": r"anima(?!t)",
    "cosmospredict2": "predict2|cosmos(?!video|t2v|i2v)", "kandinsky5": "kandinsky5", "auraflow": "auraflow", "pixart": "pixart", "omnigen2": "omnigen2",
    "krea2": "krea2", "ideogram4": "ideogram", "ernieimage": "ernie", "longcatimage": "longcat(?!audio|video)",
}  # fmt: skip


def absent(program: ModuleType) -> dict[str, Any]:
    """The families of which no model has a name among the program's own, and in which list of how many that was looked up."""
    names = {re.sub(r"[^a-z0-9]", "", name.lower()) for name in program.models()}
    missing = [family for family, name in NAMES.items() if not any(re.search(name, listed) for listed in names)]
    said = sorted({*missing} & {*program.FAMILIES})
    assert not said, f"{program.TITLE} was run with {said}, which its list of models does not have"
    return {"families": missing, "models": len(names), "listed_in": program.LISTED_IN}


def measured(program: ModuleType, chosen: Iterable[str]) -> dict[str, Any]:
    """The whole survey of a program."""
    families: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temp:
        for family in chosen:
            tree = program.tree(family)
            survey = Survey(program, tree, Path(temp))
            left_out = getattr(program, "NOT_AT_NARROW_WIDTH", ())
            forms = {
                form: survey.form(form)
                for form in getattr(program, "FORMS", FORMS[:3])
                if (family, form) not in left_out
            }
            shared = FAMILIES[family].universal in ("diffusers", "shared") and (family, "universal") not in left_out
            if forms and shared:
                forms["universal"] = survey.universal()
            forms["peft"] = survey.directory()
            entry: dict[str, Any] = {"forms": forms}
            if hasattr(program, "write"):
                entry["written"] = written(program, tree, Path(temp))
            read = [form for form, unread in survey.unread.items() if unread < {*tree.layers()}]
            if read and family in getattr(program, "KINDS_ON", (family,)):
                entry["kinds"] = {form: survey.kinds(form) for form in read}
                entry["foreign_keys"] = {form: survey.tolerance(form) for form in read}
            families[family] = entry
    return families
