"""Ten thousand damaged copies of good files, in four parts: each is refused with the one error type, or read as the safetensors library reads it."""

import json
import random
import re
import resource
import struct

import pytest
import torch
from lora_cases import a_b, kohya, loha, lora
from lora_cases import random as numbers
from lora_loom.convert import FormatError, read, write
from lora_loom.convert.embedding import is_embedding, read_embedding, unbundled
from lora_loom.convert.files.disk import header, load
from safetensors import SafetensorError
from safetensors.torch import load as library_load
from safetensors.torch import save as library_save

COUNT, PARTS = 10_000, 4
IN_PARTS = [
    pytest.param(part, marks=[pytest.mark.slow] if part else []) for part in range(PARTS)
]  # the first in every run
Q = "mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
BLOCK = "transformer.transformer_blocks.0"
KOHYA = {
    **kohya(f"lora_unet_{Q}", lora(6, 6, alpha=1.0)), **kohya("lora_unet_conv_in", lora(4, 4, kernel=(3, 3), alpha=2.0)),
    **kohya("lora_unet_mid_block_resnets_0_conv1", loha(4, 4, kernel=(3, 3), alpha=1.0)), **kohya("lora_te_text_model_encoder_layers_0_mlp_fc1", lora(8, 4)),
}  # fmt: skip
FILES = {
    "kohya": (KOHYA, {"ss_network_dim": "2", "format": "pt"}),
    "flux": ({**a_b(f"{BLOCK}.attn.to_q", lora(6, 6)), **a_b(f"{BLOCK}.attn.to_k", lora(6, 6, seed=1)), **a_b("transformer.norm_out.linear", lora(8, 4))},
             {"lora_adapter_metadata": json.dumps({"transformer.r": 2, "transformer.lora_alpha": 1, "transformer.alpha_pattern": {"to_q": 3}})}),
    "native": ({**kohya("diffusion_model.double_blocks.0.img_attn.qkv", lora(9, 4)),
                **kohya("diffusion_model.final_layer.adaLN_modulation.1", lora(8, 4))}, {}),
    "peft": ({**a_b("base_model.model.conv_in", lora(4, 4, kernel=(3, 3))), "base_model.model.conv_in.lora_magnitude_vector": torch.ones(1, 4, 1, 1)}, {}),
    "embedding": ({"clip_l": numbers(1, 2, 768)[:, :64].contiguous()}, {"modelspec.title": "zog"}),
    "bundle": ({**kohya(f"lora_unet_{Q}", lora(6, 6, alpha=1.0)), "bundle_emb.zog.string_to_param.*": numbers(2, 1, 64)}, {"ss_output_name": "zog"}),
}  # fmt: skip
ORIGINALS = {
    name: library_save({k: v.contiguous() for k, v in tensors.items()}, metadata)
    for name, (tensors, metadata) in FILES.items()
}
TYPES = [
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "I32",
    "I16",
    "I8",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "U16",
    "C64",
    "x",
    "",
    None,
    3,
    [],
    {},
]
NUMBERS = [0, 1, 2, 3, 255, 2**31, 2**32, 2**62, 2**63, 2**64, -1, 1.0, True, None, "1", [], {}]


def edited(data: bytes, rng: random.Random) -> bytes:
    """The file with an edited header and the same data section."""
    length = struct.unpack("<Q", data[:8])[0]
    table, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    names = [n for n in table if n != "__metadata__"]
    one, two = table[rng.choice(names)], table[rng.choice(names)]
    kind = rng.randrange(9)
    if kind == 0:
        one["shape"], two["shape"] = two["shape"], one["shape"]
    elif kind == 1:
        one["data_offsets"], two["data_offsets"] = two["data_offsets"], one["data_offsets"]
    elif kind == 2:
        one["dtype"] = rng.choice(TYPES)
    elif kind == 3:
        one["shape"] = rng.choice(
            [one["shape"][::-1], [1, *one["shape"]], [*one["shape"], 1], one["shape"][:-1], [], [0, *one["shape"]]]
        )
    elif kind == 4 and one["shape"]:
        one["shape"][rng.randrange(len(one["shape"]))] = rng.choice(NUMBERS)
    elif kind == 5:
        one["data_offsets"][rng.randrange(2)] = rng.choice([*NUMBERS, 4, 8, 16, len(rest)])
    elif kind == 6:
        old = rng.choice(names)
        new = rng.choice(
            [
                old[:-1],
                old.upper(),
                f"{old}.weight",
                f"base_model.model.{old}",
                old.replace("0", "9" * rng.randrange(1, 30)),
                "",
                *names,
            ]
        )
        table[new] = table.pop(old)
    elif kind == 7:
        table["__metadata__"] = rng.choice(
            [
                {},
                [],
                None,
                {"a": 1},
                {"lora_adapter_metadata": rng.choice(["{", "[]", "3", '{"transformer.lora_alpha": {}}'])},
            ]
        )
    elif rng.randrange(2):  # the same bytes under a type as wide: the one edit that leaves a valid file
        swap = {"F32": "I32", "I32": "F32", "F16": "BF16", "BF16": "I16"}
        one["dtype"] = swap.get(one["dtype"], one["dtype"])
    else:
        del table[rng.choice(names)]
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + rest


def mutated(data: bytes, rng: random.Random) -> bytes:
    kind = rng.randrange(8)
    place = rng.randrange(len(data))
    early = rng.randrange(min(len(data), 600))  # the header, where damage does more
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + rng.randbytes(rng.randrange(1, 20)) + data[place:]
    if kind == 2:
        return data[:place] + b"\0" * rng.randrange(1, 200) + data[place + rng.randrange(1, 200) :]
    if kind == 3:
        end = min(len(data), place + rng.randrange(1, 200))
        return data[:place] + b"\0" * (end - place) + data[end:]
    if kind == 4:
        return data + rng.randbytes(rng.randrange(1, 40))
    if kind == 5:
        out = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            out[rng.randrange(min(len(data), 600))] ^= 1 << rng.randrange(8)
        return bytes(out)
    if kind == 6:
        return data[:early] + bytes([rng.choice(b'{}[],:"0129-eE.\\ntf')]) + data[early + 1 :]
    return edited(data, rng)


def bits(value: torch.Tensor) -> torch.Tensor:
    return value.reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("name", FILES)
def test_the_files_are_good_before_they_are_damaged(name, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(ORIGINALS[name])
    tensors, metadata = load(path)
    assert metadata == FILES[name][1]
    if name == "embedding":
        assert read_embedding(tensors).vectors["clip_l"].shape == (2, 64)
    else:
        assert read(tensors, metadata).modules
        assert write(read(tensors, metadata), "kohya")


def taken_in(path):
    """The tensors of a file that is read, understood and written again."""
    tensors, metadata = load(path)
    if is_embedding(tensors):
        read_embedding(tensors)
        return tensors
    lora = read(tensors, metadata)
    for state in lora.embeddings.values():
        read_embedding(state)
    write(lora, "universal")
    return tensors


@pytest.mark.parametrize("part", IN_PARTS)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused_in_our_words_or_read_as_the_library_reads_it(name, part, tmp_path, hang_guard):
    rng = random.Random(f"{name} {part}")
    path = tmp_path / "x.safetensors"
    memory, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    count = -(-COUNT // len(FILES) // PARTS)
    for n in range(count):
        data = mutated(ORIGINALS[name], rng)
        path.write_bytes(data)
        try:
            with hang_guard():
                tensors = taken_in(path)
        except FormatError as error:
            refused += bool(str(error))
            tensors = None
        except Exception as error:
            raise AssertionError(f"mutation {n} of {name} raised {type(error).__name__}: {error}") from error
        if tensors is None:
            continue
        try:
            theirs = library_load(data)
        except SafetensorError:
            pytest.fail(f"mutation {n} of {name} was read, though the library refuses it")
        assert set(tensors) == set(theirs), n
        for key, value in theirs.items():
            assert (tensors[key].dtype, tensors[key].shape) == (value.dtype, value.shape), n
            assert torch.equal(bits(tensors[key]), bits(value)), n
    assert (
        refused > count // 3
    )  # the damage is real; what is left are flips in the numbers and edits that keep the file valid
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) << 10 < (256 << 20) + 3 * len(ORIGINALS[name])


@pytest.mark.parametrize("name", FILES)
def test_the_header_alone_is_read_or_refused_too(name, tmp_path):
    rng = random.Random(f"{name} header")
    path = tmp_path / "x.safetensors"
    for _ in range(300):
        path.write_bytes(mutated(ORIGINALS[name], rng))
        try:
            entries, metadata = header(path)
        except FormatError:
            continue
        assert all(isinstance(k, str) for k in entries)
        assert all(isinstance(v, str) for v in metadata.values())


def test_bundles_are_parted_from_their_file_whatever_their_keys_are():
    rng = random.Random(5)
    for _ in range(500):
        key = "bundle_emb." + "".join(rng.choice("a.*_ -clip_l") for _ in range(rng.randrange(12)))
        token, _, part = key.removeprefix("bundle_emb.").partition(".")
        if not (token and part):
            with pytest.raises(FormatError, match=re.escape(key)):
                unbundled({key: torch.ones(1, 768)})
            continue
        rest, found = unbundled({key: torch.ones(1, 768), "x": torch.ones(1)})
        assert set(rest) == {"x"}
        assert len(found) == 1
