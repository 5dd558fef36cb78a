"""One job through both doors: SD1.5 and SDXL, tiny, as one checkpoint file that the headless door reads and the host's own classes hold."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import comfy.sd
import full_size
import pytest
import runs
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from lora_loom.convert import products
from lora_loom.lora_core.backends.diffusers_backend import DiffusersBackend
from lora_loom.lora_core.config import parse
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.training.job import Job
from lora_loom.lora_core.training.trainer import train
from lora_loom.nodes.host.engine.backend import HostBackend
from lora_loom.nodes.jobs.headless import open_base
from safetensors.torch import save_file
from shapes import MODEL
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

LOSS_TOLERANCE = (
    1e-5  # two implementations of one network in fp32, a little further apart after each of six AdamW steps
)
TEXT = {"vocab_size": 619, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 77, "bos_token_id": 617, "eos_token_id": 618,
        "pad_token_id": 618, "intermediate_size": 64}  # fmt: skip
UNETS = {
    "SD15": dict(block_out_channels=(32, 64, 128, 128), cross_attention_dim=48, attention_head_dim=8),
    "SDXL": dict(
        block_out_channels=(32, 64, 128), cross_attention_dim=48, attention_head_dim=(1, 1, 2), use_linear_projection=True,
        transformer_layers_per_block=(1, 1, 2),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), addition_embed_type="text_time", addition_time_embed_dim=256,
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), projection_class_embeddings_input_dim=2816,
    ),
}  # fmt: skip


def open_clip(model) -> dict[str, torch.Tensor]:
    """A text encoder's weights under the names SDXL checkpoints have for their second one."""
    state = {k.removeprefix("text_model."): v for k, v in model.state_dict().items()}
    out = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"], "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"], "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T.contiguous(),
    }  # fmt: skip
    names = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    for n in range(TEXT["num_hidden_layers"]):
        for kind in ("weight", "bias"):
            layer = f"encoder.layers.{n}"
            out |= {f"transformer.resblocks.{n}.{b}.{kind}": state[f"{layer}.{a}.{kind}"] for a, b in names.items()}
            out[f"transformer.resblocks.{n}.attn.in_proj_{kind}"] = torch.cat(
                [state[f"{layer}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
            )
    return out


class OneBase:
    """A checkpoint file, a folder with only its configs and tokenizers, and the host's MODEL and VAE with the same weights."""

    def __init__(self, name, place):
        torch.manual_seed(0)
        self.patcher = full_size.tiny(name)
        with torch.inference_mode():
            for key, p in self.patcher.model.diffusion_model.named_parameters():
                if p.ndim > 1:  # as lively as a trained network, not louder: rounding grows with what lies behind it
                    p.mul_(0.8 if "emb" not in key else 1.0)
        two = name == "SDXL"
        self.folder, self.file = place / name, place / f"{name}.safetensors"
        vae = AutoencoderKL(block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                            latent_channels=4, layers_per_block=2, scaling_factor=0.13025 if two else 0.18215)  # fmt: skip
        first = CLIPTextModel(CLIPTextConfig(hidden_size=16 if two else 48, **TEXT))
        second = CLIPTextModelWithProjection(
            CLIPTextConfig(hidden_size=32, projection_dim=1280, hidden_act="gelu", **TEXT)
        )
        dims = {"ddconfig": {"double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 1, 1, 1],
                             "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}, "embed_dim": 4}  # fmt: skip
        self.vae = comfy.sd.VAE(sd=vae.state_dict(), config={"params": dims}, dtype=torch.float32)
        state = {f"model.diffusion_model.{k}": v for k, v in self.patcher.model.diffusion_model.state_dict().items()}
        state |= {f"first_stage_model.{k}": v for k, v in self.vae.first_stage_model.state_dict().items()}
        texts = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in first.state_dict().items()}
        if two:
            state |= {f"conditioner.embedders.0.transformer.{k}": v for k, v in texts.items()}
            state |= {f"conditioner.embedders.1.model.{k}": v for k, v in open_clip(second).items()}
        else:
            state |= {f"cond_stage_model.transformer.{k}": v for k, v in texts.items()}
        save_file({k: v.clone().contiguous() for k, v in state.items()}, self.file)

        parts = {
            "unet": UNet2DConditionModel(**UNETS[name]),
            "vae": vae,
            "text_encoder": first,
            **({"text_encoder_2": second} if two else {}),
        }
        kinds = {
            "vae": ["diffusers", "AutoencoderKL"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "scheduler": ["diffusers", "DDPMScheduler"],
        }
        for part, model in parts.items():
            model.save_pretrained(self.folder / part)
            for weights in (self.folder / part).glob("*.safetensors"):
                weights.unlink()  # configs alone
        for suffix in ("", "_2")[: 1 + two]:
            shutil.copytree(MODEL / "tokenizer", self.folder / f"tokenizer{suffix}")
            kind = type(parts[f"text_encoder{suffix}"]).__name__
            kinds |= {
                f"text_encoder{suffix}": ["transformers", kind],
                f"tokenizer{suffix}": ["transformers", "CLIPTokenizer"],
            }
        noise = DDPMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
        )
        noise.save_pretrained(self.folder / "scheduler")
        index = {
            "_class_name": "StableDiffusionXLPipeline" if two else "StableDiffusionPipeline",
            "_diffusers_version": "0.30.0",
            **kinds,
        }
        (self.folder / "model_index.json").write_text(json.dumps(index))


class TextOf:
    """A CLIP that says what the headless encoders say (their agreement with the host's is tested on the toy)."""

    patcher, cond_stage_model, tokenizer, layer_idx = (
        SimpleNamespace(backup={}, patches={}),
        torch.nn.Module(),
        None,
        None,
    )

    def __init__(self, backend):
        self._backend = backend

    def tokenize(self, text):
        return text

    @torch.no_grad()
    def encode_from_tokens_scheduled(self, text):
        made = self._backend.encode([text])
        return [[made.hidden, {"pooled_output": made.pooled}]]


@pytest.mark.parametrize("name", UNETS)
def test_a_node_run_and_a_headless_run_agree(name, tmp_path):
    base = OneBase(name, tmp_path)
    headless = open_base(parse({"base": str(base.file), "base_config": str(base.folder)}), "cpu")
    assert isinstance(headless, DiffusersBackend)
    assert headless.family == ("sdxl" if name == "SDXL" else "sd1")
    config = runs.toy_config(
        optimizer={"lr": 1e-4}, data={"folder": runs.toy_config().data.folder, "resolution": 128, "bucket_step_px": 64}
    )
    dataset = scan(config.data)

    def export(state, facts):
        return products(state, "run", headless.family, facts)

    first = train(Job(config, headless, dataset, tmp_path / "headless"), tmp_path / "headless" / "run", export)
    with torch.inference_mode(), torch.inference_mode(False):
        host = HostBackend(base.patcher, TextOf(headless), base.vae)
        second = train(Job(config, host, dataset, tmp_path / "host"), tmp_path / "host" / "run", export)
    assert max(first.losses) > 0.1
    apart = [abs(a - b) for a, b in zip(first.losses, second.losses, strict=True)]
    worst = max(apart)
    print(name, "losses", first.losses[0], "...", first.losses[-1], "apart by", " ".join(f"{d:.0e}" for d in apart))
    assert worst <= LOSS_TOLERANCE
    ours, theirs = second.tensors, first.tensors
    assert ours.keys() == theirs.keys()
    assert all(
        torch.allclose(ours[k], theirs[k], rtol=0, atol=2 * 6 * 1e-4) for k in ours
    )  # an entry without gradient may step the other way
