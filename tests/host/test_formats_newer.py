"""Files of the newer transformer families: every layer, norm and bias of the host's own models, through our names and back into the host."""

from __future__ import annotations

import functools
from typing import Any
from unittest.mock import patch

import architectures
import full_size
import pytest
import torch
from lora_loom.convert import read, write
from lora_loom.convert.families import FAMILIES
from test_formats import EXACT, STRENGTH, TEXT, patched, random_file, require_changes

_HUNYUAN, _COSMOS2, _KANDINSKY5 = (
    architectures.KIN[n][1] for n in ("HunyuanVideo", "Cosmos Predict2 picture", "Kandinsky 5")
)
_FLUX1 = architectures.MODELS["Flux"][1]
# family -> (the host's model class, a small configuration)
NEWER: dict[str, tuple[str, dict[str, Any]]] = {
    "hunyuanvideo": ("HunyuanVideo", _HUNYUAN),
    "ltxv": ("LTXV", {"image_model": "ltxv", "num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2, "cross_attention_dim": 64,
                      "caption_channels": 48, "in_channels": 128}),
    "hidream": ("HiDream", {"image_model": "hidream", "attention_head_dim": 128, "axes_dims_rope": [64, 32, 32], "caption_channels": [48, 48],
                            "max_resolution": [128, 128], "in_channels": 16, "llama_layers": [0, 1], "num_attention_heads": 1, "num_routed_experts": 4,
                            "num_activated_experts": 2, "num_layers": 1, "num_single_layers": 1, "out_channels": 16, "patch_size": 2, "text_emb_dim": 48}),
    "cosmospredict2": ("CosmosT2IPredict2", _COSMOS2),
    "kandinsky5": ("Kandinsky5", _KANDINSKY5),
    "auraflow": ("AuraFlow", {"max_seq": 64, "cond_seq_dim": 48, "n_double_layers": 1, "n_layers": 2, "dim": 64, "n_heads": 2, "global_conddim": 64}),
    "pixart": ("PixArtAlpha", {"image_model": "pixart_alpha", "num_heads": 2, "hidden_size": 96, "depth": 2, "micro_condition": True, "in_channels": 4,
                               "input_size": 64, "pe_interpolation": 1, "model_max_length": 300, "caption_channels": 48, "mlp_ratio": 4}),
    "omnigen2": ("Omnigen2", {"image_model": "omnigen2", "axes_dim_rope": [16, 8, 8], "axes_lens": [1024, 1664, 1664], "ffn_dim_multiplier": None,
                              "hidden_size": 96, "in_channels": 16, "multiple_of": 64, "norm_eps": 1e-5, "num_attention_heads": 3, "num_kv_heads": 1,
                              "num_layers": 2, "num_refiner_layers": 1, "out_channels": None, "patch_size": 2, "text_feat_dim": 48,
                              "timestep_scale": 1000.0}),
    "krea2": ("Krea2", {"image_model": "krea2", "features": 64, "tdim": 32, "txtdim": 16, "heads": 2, "kvheads": 1, "multiplier": 4, "layers": 2,
                        "patch": 2, "channels": 16, "txtlayers": 3, "txtheads": 2, "txtkvheads": 2}),
    "ernieimage": ("ErnieImage", {"image_model": "ernie", "hidden_size": 64, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 96,
                                  "text_in_dim": 48, "rope_axes_dim": (8, 12, 12)}),
    "longcatimage": ("LongCatImage", {**_FLUX1, "guidance_embed": False, "vec_in_dim": None, "txt_ids_dims": [1, 2]}),
}  # fmt: skip
OLDER = {
    "SD15": "sd1", "Flux": "flux1", "Flux2": "flux2", "Chroma": "chroma", "SD3.5": "sd3", "ZImage": "z-image", "Lumina2": "lumina2",
    "QwenImage": "qwen-image", "Wan": "wan",
}  # fmt: skip


@functools.cache
def small(name: str) -> Any:
    if name in OLDER:
        return full_size.tiny(name)
    with patch.dict(architectures.MODELS, {name: (*NEWER[name], (), 0, {})}):
        return architectures.build(name)


def family_of(name: str) -> str:
    return OLDER.get(name, name)


@pytest.mark.parametrize("target", ["universal", "comfyui", "kohya"])
@pytest.mark.parametrize("name", NEWER)
def test_every_layer_of_the_hosts_model_changes_as_trained(name, target):
    patcher = small(name)
    state, wanted = random_file(
        {f"diffusion_model.{k}": s for k, s in full_size.layers(patcher.model.diffusion_model).items()}
    )
    lora = read(state, family=name)
    before, after = patched(patcher, write(lora, target))
    require_changes(before, after, {f"{key}.weight": change for key, change in wanted.items()}, 2 * EXACT)
    assert lora.notes == []


def extracted(name: str) -> dict[str, torch.Tensor]:
    """A file as the host's *Extract and Save Lora* makes it of a model that holds differences: norms as `.diff`, biases as `.diff_b`, in fp16."""
    from comfy_extras.nodes_lora_extract import LORAType, calc_lora_model

    row = full_size.TINY[name][1] if name in OLDER else (*NEWER[name], (), 0, {})
    with patch.dict(architectures.MODELS, {name: row}):
        differences = architectures.build(name, seed=1)
    with torch.inference_mode():
        return calc_lora_model(
            differences, 4, "diffusion_model.", "diffusion_model.", {}, LORAType.STANDARD, bias_diff=True
        )


@pytest.mark.parametrize("name", [*OLDER, *NEWER])
def test_a_file_of_the_hosts_extract_and_save_lora_does_after_reading_and_writing_what_it_did(name):
    patcher, state = small(name), extracted(name)
    assert (
        any(key.endswith((".diff", ".diff_b")) for key in state) or name == "auraflow"
    )  # whose norms have no weights and layers no biases
    _, original = patched(patcher, state)
    lora = read(state, family=family_of(name))
    assert not [note for note in lora.notes if "carried" in str(note)]
    for target in ("universal", "comfyui"):
        before, after = patched(patcher, write(lora, target))
        changed = {
            key: (original[key].double() - old.double()) / STRENGTH
            for key, old in before.items()
            if not torch.equal(old, original[key])
        }
        require_changes(before, after, changed, 4 * EXACT)


@pytest.mark.parametrize("name", ["ideogram4", "anima", "ltxav"])
def test_every_layer_of_a_large_model_has_its_name_in_the_host(name):
    """On the meta device: these have sizes of their own that no configuration makes small."""
    import comfy.supported_models as sm

    cls, config = {
        "ideogram4": ("Ideogram4", {"image_model": "ideogram4", "in_channels": 128}),
        "anima": ("Anima", {**_COSMOS2, "image_model": "anima"}),
        "ltxav": ("LTXAV", {"image_model": "ltxav", "num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2, "cross_attention_dim": 64,
                            "caption_channels": 48, "in_channels": 128, "audio_in_channels": 128, "audio_cross_attention_dim": 32,
                            "audio_attention_head_dim": 16, "audio_num_attention_heads": 2}),
    }[name]  # fmt: skip
    made = getattr(sm, cls)(dict(config))
    made.set_inference_dtype(torch.float32, None)
    model = made.get_model({}, "", device="meta")
    rng, state, layers = torch.Generator().manual_seed(0), {}, full_size.layers(model.diffusion_model)
    for key, shape in layers.items():
        down, up = full_size.factors(shape, 1, rng)
        state |= {f"diffusion_model.{key}.lora_A.weight": down, f"diffusion_model.{key}.lora_B.weight": up}
    import comfy.lora

    for target in ("universal", "comfyui", "kohya"):
        with full_size.logged() as messages:
            patches = comfy.lora.load_lora(
                write(read(state, family=name), target), comfy.lora.model_lora_keys_unet(model, {})
            )
        assert messages == []
        assert {key if isinstance(key, str) else key[0] for key in patches} == {
            f"diffusion_model.{key}.weight" for key in layers
        }
    assert FAMILIES[name].universal == "comfyui"


def extracted_texts(clip: Any) -> dict[str, torch.Tensor]:
    """In the keys of `extracted`, of text encoders: embeddings, norms, biases and projections too. The host's own decomposition of an embedding table
    would take gigabytes.
    """
    rng, state = torch.Generator().manual_seed(5), {}
    for key, value in clip.patcher.model_state_dict().items():
        name, _, part = f"text_encoders.{key}".rpartition(".")
        if part == "weight" and value.ndim > 1:
            down, up = full_size.factors(tuple(value.shape), 2, rng)
            state |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        elif part in ("weight", "bias"):
            state[f"{name}.{'diff' if part == 'weight' else 'diff_b'}"] = 0.1 * torch.randn(value.shape, generator=rng)
    return state


@pytest.mark.parametrize("target", ["universal", "kohya", "comfyui"])
@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux1"])
def test_every_part_of_the_text_encoders_keeps_its_change(family, target):
    """SD3's universal form names text projections twice, once for each program; the host says that it does not know diffusers' names."""
    make, more = TEXT[family]
    clip = full_size.tiny_clip(make, **more)
    state = extracted_texts(clip)
    _, original = patched(None, state, clip)
    lora = read(state, family=family)
    file = write(lora, target)
    named_twice = [
        key
        for key in file
        if key.startswith("text_encoder") and ".text_projection." in key and not key.startswith("text_encoders.")
    ]
    before, after = patched(None, {key: value for key, value in file.items() if key not in named_twice}, clip)
    changed = {
        key: (original[key].double() - old.double()) / STRENGTH
        for key, old in before.items()
        if not torch.equal(old, original[key])
    }
    assert any("text_projection" in key for key in changed) or family == "flux1"
    require_changes(before, after, changed, 4 * EXACT)
