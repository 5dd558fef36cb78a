"""LoRA, embedding and checkpoint files that nobody vouches for, and a watch over what opening, converting, merging and baking them costs.

`python hostile_files.py SHARE SEED` does it all with `SHARE` of them, and prints what cost too much, or failed otherwise than in a sentence, as JSON.
"""

from __future__ import annotations

import functools
import io
import json
import pickle
import random
import resource
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from hostile import Watch
from lora_loom.convert.embedding import Embedding
from lora_loom.convert.files import disk
from lora_loom.convert.files.jobs import (
    Options,
    Size,
    bake_file,
    convert,
    extract_file,
    inspected,
    merge_files,
    open_file,
    open_lora,
    resize_file,
    write_embedding_file,
)
from lora_loom.convert.forms import TARGETS
from lora_loom.convert.merge import weighted
from lora_loom.convert.report import difference, embedding_lines, inspect
from lora_loom.lora_core.messages.errors import Problem
from lora_loom.nodes.jobs.formats import by_layer
from safetensors.torch import save

BLOCK = "down_blocks_1_attentions_0_transformer_blocks_0"
Q, K, FF = (f"lora_unet_{BLOCK}_{layer}" for layer in ("attn1_to_q", "attn2_to_k", "ff_net_2"))
CONV = "lora_unet_down_blocks_1_resnets_0_conv1"
Table = Mapping[str, torch.Tensor]
Make = Callable[[Path], Path]  # (empty folder) -> the file or folder to open


def ones(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.full(shape, 0.01).to(dtype)


def low_rank(
    name: str, out: int, inside: int, rank: int, alpha: float | None = 1.0, dtype: torch.dtype = torch.float16
) -> dict[str, torch.Tensor]:
    table = {
        f"{name}.lora_down.weight": ones(rank, inside, dtype=dtype),
        f"{name}.lora_up.weight": ones(out, rank, dtype=dtype),
    }
    return table if alpha is None else {**table, f"{name}.alpha": torch.tensor(alpha)}


def loha(name: str, out: int, inside: int, rank: int) -> dict[str, torch.Tensor]:
    return {
        f"{name}.hada_w{n}_{side}": ones(*size)
        for n in (1, 2)
        for side, size in (("a", (out, rank)), ("b", (rank, inside)))
    }


MOST_BYTES = 8 << 30  # of addresses: what asks for more fails instead of ending other programs
GOOD = low_rank(Q, 64, 64, 4)


def stored(table: Table, metadata: Mapping[str, str] | None = None) -> Make:
    """A well-made file of these tensors."""

    def make(folder: Path) -> Path:
        (folder / "x.safetensors").write_bytes(
            save({k: v.contiguous() for k, v in table.items()}, dict(metadata or {}) or None)
        )
        return folder / "x.safetensors"

    return make


def raw(header: bytes | dict[str, Any], data: bytes = b"\0" * 1024, length: int | None = None) -> Make:
    """A file with just this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()

    def make(folder: Path) -> Path:
        (folder / "x.safetensors").write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
        return folder / "x.safetensors"

    return make


def pickled(value: Any, zipped: bool = True, name: str = "x.pt") -> Make:
    def make(folder: Path) -> Path:
        torch.save(value, folder / name, _use_new_zipfile_serialization=zipped)
        return folder / name

    return make


def plain(data: Callable[[], bytes], name: str) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data())
        return folder / name

    return make


def peft(config: str, table: Table | None = None) -> Make:
    def make(folder: Path) -> Path:
        (folder / "adapter_config.json").write_text(config)
        tensors = table or {"base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight": ones(4, 64),
                            "base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight": ones(64, 4)}  # fmt: skip
        (folder / "adapter_model.safetensors").write_bytes(save(dict(tensors)))
        return folder

    return make


def shared_tables(depth: int) -> dict:
    """A table whose 2^depth members are few objects."""
    table: Any = {"x": 1}
    for _ in range(depth):
        table = {"a": table, "b": table}
    return table


def shared_lists(depth: int) -> list:
    value: Any = [1]
    for _ in range(depth):
        value = [value, value]
    return value


def in_itself() -> dict:
    table: dict[str, Any] = {}
    table["a"] = table
    return table


def deep_pickle() -> bytes:
    return b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."


def bomb_zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}q\0.")
        archive.writestr("x/data/0", b"\0" * (500 << 20))
    return out.getvalue()


def many_members() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}q\0.")
        for n in range(60_000):
            archive.writestr(f"x/data/{n}", b"")
    return out.getvalue()


def one_storage(count: int) -> dict[str, torch.Tensor]:
    """Many tensors that are one in the file."""
    whole = ones(64, 16_384)
    table = {}
    for n in range(count):
        name = f"lora_unet_down_blocks_1_attentions_0_transformer_blocks_{n}_attn1_to_q"
        table |= {f"{name}.lora_down.weight": whole, f"{name}.lora_up.weight": whole.view(16_384, 64)}
    return table


def expanded() -> dict[str, torch.Tensor]:
    return {f"{Q}.lora_down.weight": ones(1).expand(4, 1 << 28), f"{Q}.lora_up.weight": ones(64, 4)}


def entry(shape: list[Any], begin: Any, end: Any, dtype: Any = "F16") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def many_keys(count: int, length: int = 8) -> bytes:
    return (
        "{"
        + ",".join(f'"{n:0{length}d}":{{"dtype":"F16","shape":[0],"data_offsets":[0,0]}}' for n in range(count))
        + "}"
    ).encode()


def many_modules(
    count: int, name: str = "lora_unet_down_blocks_{n}_attentions_0_transformer_blocks_0_attn1_to_q"
) -> dict[str, torch.Tensor]:
    table = {}
    for n in range(count):
        table |= low_rank(name.format(n=n), 4, 4, 1, None)
    return table


NUMBERS = {
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": -float("inf"),
    "nought": 0.0,
    "minus one": -1.0,
    "1e30": 1e30,
    "1e-30": 1e-30,
    "5e-324": 5e-324,
}
DEEP = "[" * 100_000
NAMES = {
    "from right to left": "lora_unet_\u202egpj", "line break": "lora_unet_a\nb", "zero byte": "lora_unet_a\0b", "deep": "unet." + "a." * 2000 + "b",
    "long": "lora_unet_" + "a" * 20_000, "path": "lora_unet_../../x", "wrappers": "module." * 3000 + "to_q",
            "model in a model": "base_model.model." * 1500 + "to_q",
    "processors": "unet" + ".processor" * 2000 + ".to_q", "underscores": "lora_unet_" + "_" * 5000, "digits": "lora_unet_down_blocks_" + "9" * 5000 + "_to_q",
    "dots": "." * 3000, "surrogate": "lora_unet_\u0301", "blocks": "lora_unet_" + "down_blocks_1_" * 1000,
            "other digits": "lora_unet_down_blocks_\u0663_attentions_0",
    "lora": "lora_unet_" + ".lora" * 2000, "slots": "text_encoder." * 1000 + "q_proj", "host text": "text_encoders." + "x." * 1000 + "clip_l.transformer.q",
}  # fmt: skip
SMALL = {"modelspec.architecture": "stable-diffusion-v1/lora"}
TEXTS_OF_HEADERS = {
    "deep": DEEP, "deep and closed": "[" * 900 + "]" * 900, "deep table": '{"a":' * 900 + "1" + "}" * 900, "long": "a" * (8 << 20),
            "wrong": '{"a": 1e999}', "NaN": "NaN",
    "digits": "9" * 5000, "digits in a table": '{"x": {"tag": ' + "9" * 5000 + "}}", "many tags": json.dumps({"x": {f"tag {n}": n for n in range(300_000)}}),
    "many sets": json.dumps({str(n): {"a": 1} for n in range(300_000)}), "no numbers": '{"x": {"a": "b"}}', "infinite": '{"x": {"a": Infinity}}',
    "commas": "," * (4 << 20), "lines": "\n" * (1 << 20), "bidi": "\u202e" * 1000,
            "model names": json.dumps({f"a{n}": {"name_or_path": str(n)} for n in range(100_000)}),
    "slashes": "/" * (1 << 20), "configs": json.dumps({f"c{n}.lora_alpha": 1 for n in range(50_000)}),
    "patterns": json.dumps({"unet.lora_alpha": 1, "unet.alpha_pattern": {f"(a|b){n}": n for n in range(50_000)}}),
    "one pattern": json.dumps({"unet.lora_alpha": 1, "unet.alpha_pattern": {r"(\w+\.?)+!": 1}}),
}  # fmt: skip
FIELDS = (
    "ss_tag_frequency",
    "modelspec.trigger_phrase",
    "lora_adapter_metadata",
    "ot_config",
    "ss_sd_model_name",
    "ss_base_model_version",
    "sshs_model_hash",
    "ss_network_args",
)


def conv(out: int, inside: int, rank: int, kernel: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {
        f"{CONV}.lora_down.weight": ones(rank, inside, *kernel),
        f"{CONV}.lora_up.weight": ones(out, rank, *[1] * len(kernel)),
    }


def just(make: Make) -> Callable[[], Make]:
    return lambda: make


def loras() -> dict[str, Callable[[], Make]]:
    """Name -> file."""
    out: dict[str, Callable[[], Make]] = {
        "as it should be": lambda: stored(GOOD),
        "empty": lambda: plain(lambda: b"", "x.safetensors"),
        "text": lambda: plain(lambda: b"x" * 1000, "x.safetensors"),
        "10^12 numbers": lambda: raw({f"{Q}.lora_down.weight": entry([10**12], 0, 1024)}),
        "10^12 rows of nothing": lambda: raw({f"{Q}.lora_down.weight": entry([10**12, 0], 0, 0), f"{Q}.lora_up.weight": entry([0, 10**12], 0, 0)}),
        "a shape of digits": lambda: raw({"a": entry([10**400], 0, 2)}),
        "negative": lambda: raw({"a": entry([-1, -2], 0, 4)}),
        "overlapping": lambda: raw({k: entry([16, 32], 0, 1024) for k in (f"{Q}.lora_down.weight", f"{Q}.lora_up.weight")}),
        "backwards": lambda: raw({"a": entry([1], 1024, 0)}),
        "beyond": lambda: raw({"a": entry([1 << 40], 0, 2 << 40)}),
        "no numbers": lambda: raw({"a": entry([True, 1.5], "0", None)}),
        "many dimensions": lambda: raw({"a": entry([1] * 10_000, 0, 2)}),
        "odd type": lambda: raw({"a": entry([1], 0, 2, "a" * 10_000)}),
        "type of a table": lambda: raw({"a": entry([1], 0, 2, {"a": []})}),
        "length beyond": lambda: raw(b"{}", length=2**63),
        "length of all": lambda: raw(b"{}", length=2**64 - 1),
        "header of 100 MB": lambda: raw(b"{" + b" " * (100 << 20) + b"}"),
        "header of 15 MB": lambda: raw(b"{" + b" " * (15 << 20) + b"}"),
        "a million keys": lambda: raw(many_keys(1_000_000)),
        "keys up to the limit": lambda: raw(many_keys(230_000, 1)),
        "keys twice": lambda: raw(b'{"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}'),
        "nested header": lambda: raw(b'{"a":' * 100_000),
        "nested lists": lambda: raw(DEEP.encode()),
        "header of digits": lambda: raw(b'{"a": ' + b"9" * 5000 + b"}"),
        "no UTF-8": lambda: raw(b'{"\xff": 1}'),
        "half a character": lambda: raw(b'{"\\ud800": {"dtype":"F16","shape":[1],"data_offsets":[0,2]}}', b"\0" * 2),
        "metadata of 50 MB": lambda: raw(json.dumps({"__metadata__": {"a": "x" * (50 << 20)}}).encode()),
        "metadata of 15 MB": lambda: stored(GOOD, {**SMALL, "a": "x" * (15 << 20)}),
        "metadata of many fields": lambda: stored(GOOD, {f"a{n}": "" for n in range(200_000)}),
        "metadata of numbers": lambda: raw({"__metadata__": {"a": 1}}),
        "25000 modules": lambda: stored(many_modules(16_000)),
        "16000 odd modules": lambda: stored(many_modules(16_000, "diffusion_model.odd_{n}.mixer")),
        "16000 text modules": lambda: stored(many_modules(16_000, "lora_te_text_model_encoder_layers_{n}_self_attn_q_proj")),
        "16000 modules of flux": lambda: stored(many_modules(16_000, "transformer.single_transformer_blocks.{n}.attn.to_q")),
        "40000 foreign tensors": lambda: stored({**GOOD, **{f"foreign.{n}": ones(1) for n in range(40_000)}}),
        "bundled embeddings": lambda: stored({**GOOD, **{f"bundle_emb.{n}.clip_l": ones(1, 768) for n in range(3000)}}),
        "bundled embeddings with paths": lambda: stored({**GOOD, "bundle_emb.../../x.clip_l": ones(1, 768), "bundle_emb.a\nb.clip_l": ones(1, 768)}),
        "bundled embedding of nothing": lambda: stored({**GOOD, "bundle_emb.x.clip_l": ones(0, 768)}),
        "rank 0": lambda: stored(low_rank(Q, 64, 64, 0)),
        "rank 32768": lambda: stored(low_rank(Q, 64, 64, 32_768)),
        "rank 65536 of convolutions": lambda: stored(conv(4, 4, 65_536, (3, 3))),
        "rank 70000": lambda: stored(low_rank(Q, 4, 4, 70_000)),
        "32768 square": lambda: stored(low_rank(Q, 32_768, 32_768, 1)),
        "262144 by 4096": lambda: stored(low_rank(Q, 262_144, 4096, 1)),
        "262145 wide": lambda: stored(low_rank(Q, 4, 262_145, 1)),
        "kernel of 1000": lambda: stored(conv(4, 4, 1, (1000, 1000))),
        "kernel in four dimensions": lambda: stored({f"{CONV}.lora_down.weight": ones(1, 4, 3, 3, 3), f"{CONV}.lora_up.weight": ones(4, 1, 1, 1, 1)}),
        "six dimensions": lambda: stored({f"{CONV}.lora_down.weight": ones(1, 4, 1, 1, 1, 1), f"{CONV}.lora_up.weight": ones(4, 1)}),
        "tucker of a large kernel": lambda: stored({**conv(32, 32, 4, (1, 1)), f"{CONV}.lora_mid.weight": ones(4, 4, 500, 500)}),
        "tucker that multiplies": lambda: stored({**conv(8000, 8000, 4, (1, 1)), f"{CONV}.lora_mid.weight": ones(4, 4, 64, 64)}),
        "tucker of a high rank": lambda: stored({**conv(16, 16, 700, (1, 1)), f"{CONV}.lora_mid.weight": ones(700, 700, 1, 1)}),
        "flat convolution": lambda: stored(low_rank(CONV, 64, 64 * 9, 4)),
        "no whole convolution": lambda: stored(low_rank(CONV, 64, 65, 4)),
        "a number for a matrix": lambda: stored({f"{Q}.lora_down.weight": torch.tensor(1.0), f"{Q}.lora_up.weight": ones(64, 4)}),
        "vectors for matrices": lambda: stored({f"{Q}.lora_down.weight": ones(64), f"{Q}.lora_up.weight": ones(64)}),
        "one side": lambda: stored({f"{Q}.lora_down.weight": ones(4, 64)}),
        "alphas alone": lambda: stored({f"{Q}{n}.alpha": torch.tensor(1.0) for n in range(1000)}),
        "alpha of many numbers": lambda: stored({**low_rank(Q, 64, 64, 4, None), f"{Q}.alpha": ones(1000)}),
        "alpha of none": lambda: stored({**low_rank(Q, 64, 64, 4, None), f"{Q}.alpha": ones(0)}),
        "scales": lambda: stored({**low_rank(Q, 64, 64, 4, None), f"{Q}.scale": torch.tensor(1e30)}),
        "two ranks": lambda: stored({f"{Q}.lora_down.weight": ones(4, 64), f"{Q}.lora_up.weight": ones(64, 5)}),
        "colliding names": lambda: stored({**GOOD, **low_rank(f"unet.{BLOCK.replace('_', '.')}.attn1.to_q", 64, 64, 2),
            **low_rank("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", 64, 64, 2)}),
        "colliding parts": lambda: stored({**GOOD, f"{Q}.lora_A.weight": ones(4, 64)}),
        "DoRA of many": lambda: stored({**GOOD, f"{Q}.dora_scale": ones(1_000_000, 1)}),
        "DoRA of nought": lambda: stored({**GOOD, f"{Q}.dora_scale": torch.zeros(64, 1)}),
        "bias of many": lambda: stored({**GOOD, f"{Q}.diff_b": ones(1_000_000)}),
        "full difference": lambda: stored({f"{Q}.diff": ones(2000, 2000)}),
        "full difference in 8 bits": lambda: stored({f"{Q}.diff": ones(2000, 2000).to(torch.float8_e4m3fn)}),
        "LoKr of vectors": lambda: stored({f"{Q}.lokr_w1": ones(30_000, 1), f"{Q}.lokr_w2": ones(1, 30_000)}),
        "LoKr of two matrices": lambda: stored({f"{Q}.lokr_w1": ones(180, 180), f"{Q}.lokr_w2": ones(180, 180)}),
        "LoKr beyond": lambda: stored({f"{Q}.lokr_w1": ones(3000, 300), f"{Q}.lokr_w2": ones(3000, 300)}),
        "LoKr of factors": lambda: stored({f"{Q}.lokr_w1_a": ones(180, 2), f"{Q}.lokr_w1_b": ones(2, 180), f"{Q}.lokr_w2_a": ones(180, 2),
            f"{Q}.lokr_w2_b": ones(2, 180)}),
        "LoKr in Tucker form": lambda: stored({f"{CONV}.lokr_w1": ones(50, 50), f"{CONV}.lokr_t2": ones(4, 4, 100, 100), f"{CONV}.lokr_w2_a": ones(4,
            8), f"{CONV}.lokr_w2_b": ones(4, 8)}),
        "LoKr of high rank": lambda: stored({f"{Q}.lokr_w1": ones(2, 2), f"{Q}.lokr_w2_a": ones(8, 40_000), f"{Q}.lokr_w2_b": ones(40_000, 8)}),
        "LoKr of nothing": lambda: stored({f"{Q}.lokr_w1": ones(0, 8), f"{Q}.lokr_w2": ones(8, 8)}),
        "OFT of a large block": lambda: stored({f"{Q}.oft_blocks": ones(1, 1000, 1000)}),
        "OFT of many blocks": lambda: stored({f"{Q}.oft_blocks": ones(100_000, 2, 2), f"{Q}.alpha": torch.tensor(1e-5)}),
        "OFT of blocks of one": lambda: stored({f"{Q}.oft_blocks": ones(200_000, 1, 1)}),
        "OFT of unequal sides": lambda: stored({f"{Q}.oft_blocks": ones(4, 3, 5)}),
        "BOFT of many stages": lambda: stored({f"{Q}.oft_blocks": ones(5000, 1, 2, 2)}),
        "BOFT beyond": lambda: stored({f"{Q}.oft_blocks": ones(60_000, 2, 2, 2)}),
        "GLoRA": lambda: stored({f"{Q}.a1.weight": ones(8000, 4), f"{Q}.a2.weight": ones(4, 8000), f"{Q}.b1.weight": ones(8000, 4),
            f"{Q}.b2.weight": ones(4, 8000)}),
        "GLoRA in Tucker form": lambda: stored({f"{Q}.{n}.weight": ones(4, 4, 50, 50) for n in ("a1", "a2", "b1", "b2", "bm")}),
        "IA3": lambda: stored({f"{Q}.weight": ones(1_000_000), f"{Q}.on_input": torch.tensor(1.0)}),
        "IA3 of many answers": lambda: stored({f"{Q}.weight": ones(8), f"{Q}.on_input": ones(64)}),
        "XLabs": lambda: stored({f"double_blocks.{n}.processor.qkv_lora1.{s}.weight": ones(*z) for n in range(3000) for s, z in (("down", (1, 8)),
            ("up", (24, 1)))}),
        "bare letters": lambda: stored({f"x{n}.A": ones(8, 2) for n in range(500)} | {f"x{n}.B": ones(2, 8) for n in range(500)}),
        "biases of PEFT": lambda: stored({**{k.replace("lora_down", "lora_A").replace("lora_up", "lora_B"): v for k, v in GOOD.items()},
            f"{Q}.lora_B.bias": ones(64)}),
        "set weights": lambda: stored({f"{Q}.set_weight": ones(3000, 300), f"{Q}.reshape_weight": torch.tensor([10**9, 10**9])}),
        "reshaped": lambda: stored({**GOOD, f"{Q}.reshape_weight": torch.tensor([2**62, 2**62])}),
        "text layers": lambda: stored(low_rank("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 30_000, 30_000, 1)),
        "fused": lambda: stored(low_rank("lora_unet_single_blocks_0_linear1", 21_504, 3072, 4)),
        "fused that does not divide": lambda: stored(low_rank("lora_unet_double_blocks_0_img_attn_qkv", 9217, 3072, 4)),
        "fused DoRA": lambda: stored({**low_rank("lora_unet_double_blocks_0_img_attn_qkv", 9216, 3072, 4),
            "lora_unet_double_blocks_0_img_attn_qkv.dora_scale": ones(1, 3072)}),
        "pickle as it should be": lambda: pickled(GOOD),
        "pickle of old": lambda: pickled(GOOD, zipped=False),
        "pickle of one storage": lambda: pickled(one_storage(200)),
        "pickle that is expanded": lambda: pickled(expanded()),
        "pickle of shared tables": lambda: pickled({**GOOD, "x": shared_tables(40)}),
        "pickle of shared lists": lambda: pickled({**GOOD, "x": shared_lists(40)}),
        "pickle in itself": lambda: pickled(in_itself()),
        "pickle of deep tables": lambda: pickled(functools.reduce(lambda inner, _: {"a": inner}, range(300), {})),
        "pickle of deep lists": lambda: plain(deep_pickle, "x.pt"),
        "pickle of numbers": lambda: pickled({str(n): n for n in range(200_000)}),
        "pickle of digits": lambda: pickled({**GOOD, "step": 10**20_000}),
        "pickle of other keys": lambda: pickled({(1, 2): ones(4), None: ones(4), 10**5000: ones(4)}),
        "pickle of code": lambda: plain(lambda: pickle.dumps({"a": print}), "x.pt"),
        "pickle of odd tensors": lambda: pickled({"a": torch.sparse_coo_tensor([[0]], [1.0], (10**9,)), "b": torch.empty(10**12, device="meta")}),
        "pickle of complex numbers": lambda: pickled({f"{Q}.lora_down.weight": torch.zeros(4, 64, dtype=torch.complex64),
            f"{Q}.lora_up.weight": torch.zeros(64, 4, dtype=torch.complex64)}),
        "pickle of parameters": lambda: pickled({"string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(ones(4, 768).float())}),
            "name": "x\n" * 10_000, "step": 10**20_000}),
        "pickle of half": lambda: plain(lambda: pickle.dumps({"a": 1})[:-3], "x.ckpt"),
        "ZIP that is none": lambda: plain(lambda: b"PK\x03\x04" + b"\0" * 1000, "x.pt"),
        "ZIP bomb": lambda: plain(bomb_zip, "x.pt"),
        "ZIP of many": lambda: plain(many_members, "x.pt"),
        "embedding": lambda: stored({"emb_params": ones(4, 768)}),
        "embedding of many vectors": lambda: stored({"emb_params": ones(100_000, 768)}),
        "embedding of odd width": lambda: stored({"emb_params": ones(4, 767)}),
        "embedding of nothing": lambda: stored({"clip_l": ones(0, 768), "clip_g": ones(0, 1280)}),
        "embedding of numbers": lambda: stored({"clip_l": torch.ones(4, 768, dtype=torch.int64)}),
        "embedding not finite": lambda: stored({"emb_params": torch.full((4, 768), float("nan"))}),
        "embedding in a long name": lambda: stored({"<" + "a\u202e\n" * 10_000 + ">": ones(4, 768)}),
        "embedding in 8 bits": lambda: stored({"emb_params": ones(4, 768).to(torch.float8_e5m2)}),
        "embedding in a table": lambda: pickled({"string_to_param": {"*": ones(4, 768), "b": ones(4, 768)}}),
        "embedding in no table": lambda: pickled({"string_to_param": [1, 2]}),
        "embedding with output": lambda: stored({"clip_l": ones(4, 768), "clip_l_out": ones(4, 768), "t5_out": ones(4, 4096)}),
    }  # fmt: skip
    for rank in (1, 2, 4, 5, 8, 16):
        out[f"LoHa 32000 square of rank {rank}"] = just(stored(loha(Q, 32_000, 32_000, rank)))
    out |= {
        "LoHa of many": lambda: stored({k: v for n in range(40) for k,
            v in loha(f"lora_unet_down_blocks_{n}_attentions_0_transformer_blocks_0_attn1_to_q", 8000, 8000, 8).items()}),
        "LoHa of a high rank": lambda: stored(loha(Q, 64, 64, 20_000)),
        "LoHa of two ranks": lambda: stored({**loha(Q, 64, 64, 4), f"{Q}.hada_w2_a": ones(64, 5), f"{Q}.hada_w2_b": ones(5, 64)}),
        "LoHa beyond": lambda: stored(loha(Q, 40_000, 40_000, 1)),
        "LoHa in Tucker form": lambda: stored({f"{CONV}.hada_w{n}_{s}": ones(4, 300) for n in (1, 2) for s in "ab"} | {f"{CONV}.hada_t{n}": ones(4,
            4, 100, 100) for n in (1, 2)}),
        "LoHa in Tucker form, wide": lambda: stored({f"{CONV}.hada_w{n}_{s}": ones(2, 10_000) for n in (1, 2) for s in "ab"} |
            {f"{CONV}.hada_t{n}": ones(2, 2, 3, 3) for n in (1, 2)}),
        "LoHa and LoRA of one layer": lambda: stored({**loha(Q, 64, 64, 4), **GOOD}),
    }  # fmt: skip
    for label, number in NUMBERS.items():
        out[f"alpha {label}"] = just(stored(low_rank(Q, 64, 64, 4, number)))
        out[f"weights {label}"] = just(stored({**GOOD, f"{Q}.lora_up.weight": torch.full((64, 4), number)}))
        out[f"PEFT alpha {label}"] = just(peft(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": number})))
        out[f"PEFT rank {label}"] = just(
            peft(json.dumps({"peft_type": "LOKR", "r": number, "alpha": 4, "use_rslora": True}))
        )
    for dtype in (torch.int8, torch.int64, torch.bool, torch.uint8, torch.float64, torch.float8_e4m3fn):
        out[f"type {dtype}"] = just(stored({k: torch.ones(v.shape).to(dtype) for k, v in GOOD.items()}))
    for label, name in NAMES.items():
        out[f"name: {label}"] = just(stored(low_rank(name, 8, 8, 1)))
        out[f"PEFT name: {label}"] = stored(
            {f"{name}.lora_A.default.weight": ones(1, 8), f"{name}.lora_B.default.weight": ones(8, 1)}
        )
    for field in FIELDS:
        for label, text in TEXTS_OF_HEADERS.items():
            out[f"header {field} {label}"] = stored(GOOD, {**SMALL, field: text})
    for label, text in TEXTS_OF_HEADERS.items():
        out[f"PEFT config {label}"] = just(peft(text))
        out[f"PEFT pattern {label}"] = peft(
            json.dumps(
                {
                    "peft_type": "LORA",
                    "r": 4,
                    "lora_alpha": 4,
                    "alpha_pattern": {text[:10_000]: 1},
                    "base_model_name_or_path": text[: 1 << 20],
                }
            )
        )
        out[f"card {label}"] = just(carded(text))
    return out


def carded(text: str) -> Make:
    def make(folder: Path) -> Path:
        stored(GOOD)(folder)
        (folder / "README.md").write_text(
            "---\nbase_model:\n" + "- a\n" * 1000 + text + "\n" + "---\n" * 1000, encoding="utf-8"
        )
        return folder

    return make


def checkpoint(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    block = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0"
    table = {
        f"{block}.attn1.to_q.weight": ones(64, 64),
        f"{block}.attn2.to_k.weight": ones(64, 768),
        f"{block}.attn2.to_out.0.weight": ones(64, 64),
    }
    return table | {f"{block}.{name}": value for name, value in changes.items()}


def checkpoints() -> dict[str, Callable[[], Make]]:
    eight = torch.float8_e4m3fn
    q = "attn1.to_q"
    out = {
        "as it should be": lambda: stored(checkpoint()),
        "not finite": lambda: stored(checkpoint(**{f"{q}.weight": torch.full((64, 64), float("nan"))})),
        "infinite": lambda: stored(checkpoint(**{f"{q}.weight": torch.full((64, 64), float("inf"))})),
        "nothing": lambda: stored(checkpoint(**{f"{q}.weight": ones(0, 64)})),
        "a number": lambda: stored(checkpoint(**{f"{q}.weight": torch.tensor(1.0)})),
        "integers": lambda: stored(checkpoint(**{f"{q}.weight": torch.ones(64, 64, dtype=torch.int64)})),
        "8 bits": lambda: stored(checkpoint(**{f"{q}.weight": ones(64, 64).to(eight)})),
        "many scales": lambda: stored(
            checkpoint(**{f"{q}.weight": ones(64, 64).to(eight), f"{q}.scale_weight": ones(100_000)})
        ),
        "scale nought": lambda: stored(
            checkpoint(**{f"{q}.weight": ones(64, 64).to(eight), f"{q}.scale_weight": torch.tensor(0.0)})
        ),
        "scale not finite": lambda: stored(
            checkpoint(**{f"{q}.weight": ones(64, 64).to(eight), f"{q}.scale_weight": torch.tensor(float("nan"))})
        ),
        "scale of nothing": lambda: stored(
            checkpoint(**{f"{q}.weight": ones(64, 64).to(eight), f"{q}.scale_weight": ones(0)})
        ),
        "40000 layers": lambda: stored(
            {
                f"model.diffusion_model.input_blocks.{n}.1.transformer_blocks.0.attn1.to_q.weight": ones(2, 2)
                for n in range(40_000)
            }
        ),
        "40000 foreign layers": lambda: stored(
            {**checkpoint(), **{f"first_stage_model.{n}.weight": ones(2, 2) for n in range(40_000)}}
        ),
        "other width": lambda: stored(checkpoint(**{f"{q}.weight": ones(4, 60_000)})),
        "convolution": lambda: stored(checkpoint(**{f"{q}.weight": ones(64, 64, 3, 3)})),
        "LoRA": lambda: stored(GOOD),
        "text": lambda: plain(lambda: b"x" * 1000, "x.safetensors"),
        "10^12 numbers": lambda: raw({"model.diffusion_model.a.weight": entry([10**12], 0, 1024)}),
        "pickle": lambda: pickled(checkpoint(), name="x.ckpt"),
        "folder without an index": lambda: folder_of("[" * 100_000),
        "folder with a path": lambda: folder_of(json.dumps({"weight_map": {"a": "../../x.safetensors"}})),
        "folder with many files": lambda: folder_of(
            json.dumps({"weight_map": {str(n): f"{n}.safetensors" for n in range(100_000)}})
        ),
        "folder with numbers": lambda: folder_of(json.dumps({"weight_map": {"a": 1, "b": ["x"]}})),
    }
    return out


def folder_of(index: str) -> Make:
    def make(folder: Path) -> Path:
        unet = folder / "model" / "unet"
        unet.mkdir(parents=True)
        (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(index)
        return folder / "model"

    return make


def size_of(path: Path) -> int:
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    )


def reading_s(path: Path) -> float:
    """What reading the tensors costs by itself, in seconds of the processor."""
    began = time.process_time()
    for file in path.rglob("*.safetensors") if path.is_dir() else [path]:
        try:
            disk.load_any(file) if file.suffix == ".safetensors" else file.read_bytes()
        except (Problem, OSError):
            continue
    return time.process_time() - began


def done_with(path: Path, good: Path, base: Path, out: Path) -> dict[str, Callable[[], object]]:
    """What a user does with a LoRA or embedding file."""

    def looked() -> None:
        content = inspected(path)
        if isinstance(content, Embedding):
            said(embedding_lines(content, path.stem))
        else:
            report = inspect(content)
            said(report.messages())
            report.bars()

    def converted(target: str, options: Options | None = None) -> None:
        content = open_file(path)
        if isinstance(content, Embedding):
            for form in ("webui", "comfyui", "diffusers"):
                said(write_embedding_file(content, out / f"{form}.safetensors", form, overwrite=True).notes)
        else:
            for written in convert(
                content,
                out / f"{target}.safetensors" if target != "peft" else out / "peft",
                options or Options(target, overwrite=True),
            ):
                said(written.notes)

    acts: dict[str, Callable[[], object]] = {"inspect": looked}
    acts |= {f"convert to {target}": functools.partial(converted, target) for target in TARGETS}
    return acts | {
        "approximate": lambda: converted("kohya", Options("kohya", approximate=4, overwrite=True)),
        "merge": lambda: merge_files([(path, 0.5), (good, 0.5)], out / "merged.safetensors", Options(overwrite=True)),
        "merge with itself": lambda: merge_files(
            [(path, 0.5), (path, -0.3)], out / "merged2.safetensors", Options(overwrite=True)
        ),
        "merge small": lambda: merge_files(
            [(path, 0.5), (good, 0.5)], out / "merged3.safetensors", Options(overwrite=True), rank=2
        ),
        "resize": lambda: resize_file(path, out / "small.safetensors", Options(overwrite=True), Size(2, 2, 0.9)),
        "block weights": lambda: weighted(open_lora(path), 2.0, {"IN04": 0.5, r"(\w+\.?)+!": 1.0}),
        "compare": lambda: difference(open_lora(path), open_lora(good)),
        "bake": lambda: bake_file(base, [(path, 1.0)], out / "baked.safetensors", overwrite=True),
        "start from": lambda: by_layer(lambda family: open_lora(path, family), "sd1", [Q, K, FF, CONV], "lora"),
    }


def with_checkpoint(path: Path, good: Path, base: Path, out: Path) -> dict[str, Callable[[], object]]:
    """What a user does with a checkpoint."""
    size = Size(4)
    return {
        "bake": lambda: bake_file(path, [(good, 1.0)], out / "baked.safetensors", overwrite=True),
        "extract from": lambda: extract_file((path, base), out / "from.safetensors", Options(overwrite=True), size),
        "extract to": lambda: extract_file((base, path), out / "to.safetensors", Options(overwrite=True), size),
        "inspect": lambda: inspected(path),
    }


def said(lines: Any) -> None:
    """Every line is one, and short enough to be read."""
    for line in lines:
        text = str(line)
        if "\n" in text or len(text) > 20_000:
            raise AssertionError(f"no line: {len(text)} characters, {text[:200]!r}")


def refused_in_a_sentence(act: Callable[[], object]) -> Callable[[], object]:
    @functools.wraps(act)
    def watched() -> object:
        try:
            return act()
        except Problem as error:
            said([error])
            raise

    return watched


def made_by(make: Callable[..., Any], folder: Path) -> Path:
    """The file of a row: what is large is made by a function of no argument first."""
    maker = make() if make.__code__.co_argcount == 0 else make
    return maker(folder)


def watched(share: float, seed: int, only: str = "") -> Watch:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    watch, rng = Watch(), random.Random(seed)
    cases = [(name, make, done_with) for name, make in loras().items()] + [
        (name, make, with_checkpoint) for name, make in checkpoints().items()
    ]
    with tempfile.TemporaryDirectory() as temp:
        place = Path(temp)
        for name in ("good", "base", "wide"):
            (place / name).mkdir()
        good, base = stored(GOOD)(place / "good"), stored(checkpoint())(place / "base")
        for n, (name, make, acts) in enumerate(cases):
            if rng.random() >= share or only not in name:
                continue
            folder, out = place / f"{n}", place / f"out{n}"
            folder.mkdir()
            out.mkdir()
            path = made_by(make, folder)
            usual_s, size = reading_s(path), size_of(path)
            for what, act in acts(path, good, base, out).items():
                watch.does(f"{name}: {what}", refused_in_a_sentence(act), size, usual_s)
            for used in (folder, out):
                for file in sorted(used.rglob("*"), reverse=True):
                    file.rmdir() if file.is_dir() else file.unlink()
        if left := [
            file.name
            for file in place.iterdir()
            if not file.name.startswith(("out", "good", "base", "wide")) and not file.name.isdigit()
        ]:
            watch.wrong.append(f"written elsewhere: {left}")
    return watch


if __name__ == "__main__":
    result = watched(float(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
    print(json.dumps({"wrong": result.wrong, "count": result.count, "taken": result.taken}))
