"""Files made of anything: what is read and written again has every key's effect or the key itself, or the user is told. Nothing is lost in silence."""

import random as dice

import pytest
import torch
from lora_cases import dense, kohya, loha, lokr, lora, random
from lora_loom.convert import FormatError, read, write
from lora_loom.convert.families import FAMILIES, UNKNOWN
from lora_loom.convert.lora import OTHER
from lora_loom.convert.writers import carried

LAYERS = {
    "sd1": ["lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2",
            "diffusion_model.input_blocks.1.1.norm", "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0",
            "lora_te_text_model_encoder_layers_3_mlp_fc1"],
    "flux1": ["transformer.transformer_blocks.3.attn.to_add_out", "diffusion_model.double_blocks.4.img_mlp.2", "lora_unet_single_blocks_5_linear2",
              "diffusion_model.double_blocks.1.img_attn.norm.query_norm", "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"],
    "wan": ["diffusion_model.blocks.0.self_attn.q", "lora_unet_blocks_1_cross_attn_k", "transformer.blocks.2.attn1.to_v", "diffusion_model.blocks.1.norm3"],
    UNKNOWN: ["model.layer.0", "lora_unet_strange_1", "transformer.odd_blocks.3.attn.to_q", "a.b.norm"],
}  # fmt: skip
STRANGE = [
    "module.step",
    "lora_unet_x.unheard_of",
    "some.layer.oft_R.weight",
    "y.lora_A.bias",
    "a.set_weight",
    "logit_scale",
    "b.boft_R",
    "c.w_odd",
]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def module_keys(rng, name, seed):
    """The keys of one random module over a 12 x 10 layer, or of a norm's change."""
    if "norm" in name:
        return {f"{name}.diff": random(seed, 12), f"{name}.diff_b": random(seed + 1, 12)}
    kind = rng.choice(["lora", "a_b", "loha", "lokr", "diff", "biased"])
    alpha = rng.choice([None, 1.0, 3.5])
    if kind == "a_b":
        made = lora(12, 10, seed=seed)
        return {
            f"{name}.lora_A.weight": made.parts["down"],
            f"{name}.lora_B.weight": made.parts["up"],
            f"{name}.lora_B.bias": random(seed + 2, 12),
        }
    if kind == "diff":
        return {f"{name}.diff": random(seed, 12, 10)}
    made = {"lora": lora(12, 10, alpha=alpha, seed=seed), "biased": lora(12, 10, alpha=alpha, seed=seed), "loha": loha(12, 10, alpha=alpha, seed=seed),
            "lokr": lokr("full", "low", alpha=alpha, seed=seed)}[kind]  # fmt: skip
    return kohya(name, made) | ({f"{name}.diff_b": random(seed + 2, 12)} if kind == "biased" else {})


def mixture(family, seed):
    rng = dice.Random(seed)
    state = {}
    for n, name in enumerate(rng.sample(LAYERS[family], rng.randint(1, len(LAYERS[family])))):
        state |= module_keys(rng, name, 10 * seed + n)
    for n, key in enumerate(rng.sample(STRANGE, rng.randint(0, 4))):
        state[key] = random(seed + n, rng.randint(1, 5), rng.randint(1, 5)).to(
            rng.choice([*DTYPES, torch.float8_e4m3fn, torch.int8])
        )
    return state


def effects(lora_):
    """Canonical name -> (change of the weight, change of the bias) of every module of a known kind."""
    out = {}
    for name, module in lora_.modules.items():
        if module.kind != OTHER:
            out[name] = dense(module) if module.changes_weight else None, module.parts.get("diff_b")
    return out


@pytest.mark.parametrize("target", ["universal", "kohya", "comfyui"])
@pytest.mark.parametrize("family", LAYERS)
def test_a_mixture_read_and_written_loses_nothing(family, target):
    refusals = []
    for seed in range(40):
        state = mixture(family, seed)
        try:
            first = read(state, family=family)
        except FormatError as error:
            refusals.append((str(error), state))
            continue
        file = write(first, target)
        for key in carried(first):
            assert torch.equal(file[key].reshape(-1).view(torch.uint8), state[key].reshape(-1).view(torch.uint8)), (
                seed,
                key,
            )
        if set(STRANGE) & state.keys():
            assert {"note.foreign", "note.unknown_kind"} & {note.code for note in first.notes}
        again = effects(read(file, family=family))
        for name, (change, bias) in effects(first).items():
            for one, two in zip((change, bias), again[name]):
                assert (one is None) == (two is None), (seed, name)
                if one is not None:
                    torch.testing.assert_close(two.double(), one.double(), rtol=1e-5, atol=1e-5)
    for sentence, state in refusals:  # by a name of the file
        assert any(key.split(".lora")[0].split(".diff")[0] in sentence for key in state), sentence


def test_a_mixture_of_an_unknown_model_is_the_same_file_again():
    for seed in range(40):
        state = mixture(UNKNOWN, seed)
        file = write(read(state, family=UNKNOWN))
        assert file.keys() == state.keys()
        assert all(
            torch.equal(file[k].reshape(-1).view(torch.uint8), v.reshape(-1).view(torch.uint8))
            for k, v in state.items()
        )


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FOREIGN = {
    "HunyuanDiT, diffusers": [
        (f"blocks.{n}.attn{a}.{p}", (1408, 1024 if (a, p[:4]) in ((2, "to_k"), (2, "to_v")) else 1408)) for n in range(3) for a in (1, 2) for p in ATTENTION
    ],
    "HunyuanDiT, first attention": [(f"blocks.{n}.attn1.{p}", (1408, 1408)) for n in range(3) for p in ATTENTION],
    "CogVideoX 5B": [(f"transformer_blocks.{n}.attn1.{p}", (3072, 3072)) for n in range(3) for p in ATTENTION],
    "CogVideoX 2B": [(f"transformer_blocks.{n}.attn1.{p}", (1920, 1920)) for n in range(3) for p in ATTENTION],
    "CogView 4": [(f"transformer_blocks.{n}.attn1.{p}", (4096, 4096)) for n in range(3) for p in ATTENTION],
    "Sana": [(f"transformer_blocks.{n}.attn{a}.{p}", (2240, 2240)) for n in range(3) for a in (1, 2) for p in ATTENTION],
    "Mochi": [(f"transformer_blocks.{n}.attn1.{p}", (3072, 3072)) for n in range(3) for p in (*ATTENTION, "add_q_proj")],
    "HunyuanImage 2.1": [(f"transformer_blocks.{n}.attn.{p}", (3584, 3584)) for n in range(3) for p in (*ATTENTION, "add_q_proj")],
    "HunyuanImage, native": [(f"double_blocks.{n}.img_attn.qkv", (10752, 3584)) for n in range(3)],
    "HunyuanVideo 1.5": [(f"double_blocks.{n}.img_attn.proj", (2048, 2048)) for n in range(3)],
    "Bria": [(f"transformer_blocks.{n}.attn.{p}", (3456, 3456)) for n in range(3) for p in ATTENTION],
    "a wider Wan": [(f"blocks.{n}.self_attn.{p}", (4096, 4096)) for n in range(3) for p in "qkvo"],
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model."])
@pytest.mark.parametrize("model", FOREIGN)
def test_an_attention_file_of_a_model_without_a_table_stays_what_it_is(model, prefix):
    state = {}
    for name, (out, into) in FOREIGN[model]:
        state |= {
            f"{prefix}{name}.lora_A.weight": torch.ones(1, into).half(),
            f"{prefix}{name}.lora_B.weight": torch.ones(out, 1).half(),
        }
    lora_ = read(state)
    assert lora_.family == UNKNOWN
    assert lora_.notes
    assert write(lora_).keys() == state.keys()
    assert UNKNOWN not in FAMILIES
