"""Textual inversion files: every form in use in, the forms each program reads out. Vectors are (n, width) for each text encoder."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch

from ..lora_core.messages.message import Message
from .lora import FormatError, State

WIDTHS = {
    768: "clip_l",
    1024: "clip_h",
    1280: "clip_g",
    4096: "t5xxl",
    2560: "qwen3_4b",
    3584: "qwen25_7b",
    128: "clip_l",
    64: "clip_l",
}  # the last two: our toys
_ENCODERS = ("clip_l", "clip_h", "clip_g", "t5xxl", "qwen3_4b", "qwen25_7b")
_TOYS = {128: "emoji", 64: "toy"}
_FAMILY_OF = {"qwen3_4b": "z-image", "qwen25_7b": "qwen-image"}
_ALIASES = {"t5": "t5xxl", "text_encoders_0": "clip_l", "text_encoders_1": "clip_g"}
_EXTRA = re.compile(
    r"(clip_l|clip_g|clip_h|t5|t5xxl|emp_params)_out"
)  # OneTrainer's output embeddings; A1111 refuses files that have them
_SAFE_TRIGGER = re.compile(r"[a-z0-9][a-z0-9_-]*")
EMBEDDING_TARGETS = ("webui", "comfyui", "diffusers")
_FORM_BESIDE = {
    "universal": "webui",
    "kohya": "webui",
    "comfyui": "comfyui",
    "diffusers": "diffusers",
    "peft": "diffusers",
}
MAX_VECTORS = 4096
MAX_BUNDLED = 200  # embeddings in a LoRA file, each a file of its own once it is taken out


def embedding_form(target: str) -> str:
    """The form of embeddings for the program that reads LoRAs in the form `target`."""
    return _FORM_BESIDE[target]


@dataclasses.dataclass(frozen=True)
class Embedding:
    """`vectors`: ComfyUI's encoder name -> (n, width). `token`: the trigger the file itself names, "" when it leaves that to its file name."""

    vectors: State
    token: str = ""
    step: int = 0
    notes: tuple[Message, ...] = ()

    @property
    def family(self) -> str:
        have = set(self.vectors)
        if "clip_g" in have:
            return "sd3" if "t5xxl" in have else "sdxl"
        if "t5xxl" in have:
            return "flux1"
        if other := have & _FAMILY_OF.keys():
            return _FAMILY_OF[min(other)]
        if "clip_h" in have:
            return "sd2"
        return _TOYS.get(self.vectors["clip_l"].shape[-1], "sd1") if "clip_l" in have else "sd1"


def is_embedding(data: Mapping[str, Any]) -> bool:
    """Whether a loaded file looks like an embedding: known keys, or just one tensor of an embedding's width, and nothing of an adapter."""
    if "string_to_param" in data or set(data) & {"emb_params", *_ENCODERS, *_ALIASES}:
        return True
    tensors = [v for v in data.values() if isinstance(v, torch.Tensor)]
    return (
        len(data) == 1
        and len(tensors) == 1
        and tensors[0].ndim in (1, 2)
        and tensors[0].shape[-1] in WIDTHS
        and "lora" not in next(iter(data))
    )


def read_embedding(data: Mapping[str, Any]) -> Embedding:
    """The embedding in a loaded file of any form: A1111 .pt, diffusers learned_embeds, kohya emb_params, SDXL and Flux pairs, old pivotal files."""
    if "string_to_param" in data:
        return _from_a1111(data)
    notes: list[Message] = []
    extra = [k for k in data if isinstance(k, str) and _EXTRA.fullmatch(k)]
    if extra:
        notes.append(Message.of("note.output_embeddings", keys=extra))
    tensors = {k: v for k, v in data.items() if k not in extra}
    if bad := [k for k, v in tensors.items() if not isinstance(v, torch.Tensor)]:
        raise FormatError("embedding.no_tensor", key=bad[0])
    if "emb_params" in tensors and len(tensors) == 1:
        vectors = {"": tensors["emb_params"]}
        return _checked(vectors, "", 0, notes)
    if set(tensors) <= {*_ENCODERS, *_ALIASES} and tensors:
        return _checked({_ALIASES.get(k, k): v for k, v in tensors.items()}, "", 0, notes)
    if len(tensors) == 1:
        token, value = next(iter(tensors.items()))
        return _checked({"": value}, token, 0, notes)
    raise FormatError("embedding.unknown_keys", keys=[*map(str, list(data)[:4])])


def _from_a1111(data: Mapping[str, Any]) -> Embedding:
    params = data["string_to_param"]
    try:
        items = dict(params.items())
    except AttributeError:
        raise FormatError("embedding.no_table", field="string_to_param") from None
    if len(items) != 1:
        raise FormatError("embedding.several_entries", field="string_to_param", count=len(items))
    step = data.get("step")
    name = data.get("name")
    return _checked(
        {"": next(iter(items.values()))},
        name if isinstance(name, str) else "",
        step if isinstance(step, int) else 0,
        [],
    )


def _checked(vectors: Mapping[str, Any], token: str, step: int, notes: list[Message]) -> Embedding:
    out: State = {}
    for key, value in vectors.items():
        label = key or token or Message.of("embedding.itself")
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.ndim not in (1, 2):
            raise FormatError("embedding.no_matrix", key=label)
        value = value.detach()[None] if value.ndim == 1 else value.detach()
        if not 0 < len(value) <= MAX_VECTORS:
            raise FormatError("embedding.vectors", key=label, count=len(value), limit=MAX_VECTORS)
        if not torch.isfinite(value.float()).all():
            raise FormatError("tensor.not_finite", key=label)
        encoder = key or WIDTHS.get(value.shape[1], "")
        if not encoder:
            raise FormatError("embedding.unknown_width", key=label, width=value.shape[1], allowed=[*map(str, WIDTHS)])
        if WIDTHS.get(value.shape[1]) != encoder:
            raise FormatError("embedding.width_of_other", key=label, width=value.shape[1], encoder=encoder)
        out[encoder] = (
            value.float() if value.itemsize == 1 else value.clone()
        )  # torch has hardly any arithmetic for 8 bits
    if "clip_l" in out and "clip_g" in out and len(out["clip_l"]) != len(out["clip_g"]):
        raise FormatError("embedding.unequal", clip_l=len(out["clip_l"]), clip_g=len(out["clip_g"]))
    return Embedding(out, token, step, tuple(notes))


def write_embedding(embedding: Embedding, target: str = "webui") -> State:
    """The tensors of one file. "webui": what A1111, Forge, kohya and ComfyUI all read; "comfyui": the same for encoders WebUIs do not know;
    "diffusers": keys for `load_textual_inversion` (SD1, SD2: the token; SDXL: clip_l, clip_g; Flux: clip_l, t5). Values are float32."""
    if target not in EMBEDDING_TARGETS:
        raise FormatError("target.unknown", field="target", target=repr(target), allowed=EMBEDDING_TARGETS)
    vectors = {k: v.float().contiguous() for k, v in embedding.vectors.items()}
    if target == "diffusers":
        if len(vectors) == 1:
            return {embedding.token or "token": next(iter(vectors.values()))}
        return {("t5" if k == "t5xxl" and "clip_g" not in vectors else k): v for k, v in vectors.items()}
    if set(vectors) == {"clip_g"}:
        raise FormatError("embedding.clip_g_alone")
    if len(vectors) == 1 and set(vectors) <= {"clip_l", "clip_h"}:
        return {"emb_params": next(iter(vectors.values()))}
    return vectors


def unbundled(state: Mapping[str, torch.Tensor]) -> tuple[State, dict[str, State]]:
    """(the file without bundled embeddings, token -> its vectors). Bundles: `bundle_emb.<token>.clip_l` or `.string_to_param.*`."""
    rest: State = {}
    tables: dict[str, State] = {}
    for key, value in state.items():
        if not key.startswith("bundle_emb."):
            rest[key] = value
            continue
        token, _, part = key.removeprefix("bundle_emb.").partition(".")
        if not token or not part:
            raise FormatError("embedding.bundle_key", key=key)
        if len(tables) == MAX_BUNDLED and token not in tables:
            raise FormatError("embedding.many", limit=MAX_BUNDLED)
        tables.setdefault(token, {})["emb_params" if part.startswith("string_to_param") else part] = value
    return rest, tables


def bundled(embeddings: Mapping[str, Embedding]) -> State:
    """Keys that carry embeddings inside a LoRA file, as A1111 1.7 and later read them."""
    out: State = {}
    for token, embedding in embeddings.items():
        written = write_embedding(embedding)
        one = set(written) == {"emb_params"}
        out |= {f"bundle_emb.{token}.{'string_to_param.*' if one else key}": value for key, value in written.items()}
    return out


def trigger_problems(name: str, lora_names: frozenset[str] | set[str] = frozenset()) -> list[Message]:
    """What is wrong with `name` as a trigger that works in every program; the file's stem is the trigger."""
    problems: list[Message] = []
    if not _SAFE_TRIGGER.fullmatch(name):
        problems.append(Message.of("trigger.characters", name=repr(name)))
    if name.isalpha() and len(name) < 12 and name.lower() in _WORDS:
        problems.append(Message.of("trigger.ordinary", name=repr(name)))
    if name in lora_names:
        problems.append(Message.of("trigger.of_lora", name=repr(name), other=f"{name}_emb"))
    return problems


_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a and animal art baby background beautiful bird black blue boy car cartoon cat character child city cute day dog
    dress drawing eye face fantasy fire flower forest girl gold green hair hand head home horse house human
    illustration image in landscape light little man men model mountain night of old on one painting paper person
    photo picture portrait purple red river robot sea sky small snow sports street style sun sword the toy tree
    water white with wolf woman women wood world yellow young""",
    )
)
