"""Kandinsky 2.2 and Würstchen v2 with tiny random weights in diffusers layout, both stages of each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from shapes import MODEL
from tiny_flow import CLIP
from torch import nn


def index(folder, name):
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name}))
    return folder


def kandinsky(place: Path) -> tuple[Path, Path]:
    """(prior, decoder) below `place`."""
    from diffusers import DDPMScheduler, PriorTransformer, UnCLIPScheduler, UNet2DConditionModel, VQModel
    from transformers import (
        CLIPImageProcessor,
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    torch.manual_seed(0)
    prior, decoder = place / "kandinsky_prior", place / "kandinsky_decoder"
    network = PriorTransformer(
        num_attention_heads=2, attention_head_dim=16, num_layers=2, embedding_dim=32, num_embeddings=77
    )
    network.clip_mean.data.fill_(0.1)
    network.clip_std.data.fill_(0.8)
    network.save_pretrained(prior / "prior")
    CLIPTextModelWithProjection(CLIPTextConfig(**CLIP)).save_pretrained(prior / "text_encoder")
    CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            projection_dim=32,
        )
    ).save_pretrained(prior / "image_encoder")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        prior / "image_processor"
    )
    UnCLIPScheduler(prediction_type="sample", clip_sample=True, clip_sample_range=5.0).save_pretrained(
        prior / "scheduler"
    )
    shutil.copytree(MODEL / "tokenizer", prior / "tokenizer")
    UNet2DConditionModel(
        in_channels=4, out_channels=8, addition_embed_type="image", down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), mid_block_type="UNetMidBlock2DSimpleCrossAttn", block_out_channels=(32, 64),
        layers_per_block=1, encoder_hid_dim=32, encoder_hid_dim_type="image_proj", cross_attention_dim=32, attention_head_dim=4,
        resnet_time_scale_shift="scale_shift", class_embed_type=None,
    ).save_pretrained(decoder / "unet")  # fmt: skip
    VQModel(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), norm_num_groups=8, norm_type="spatial",
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"), num_vq_embeddings=12, vq_embed_dim=4, latent_channels=4,
    ).save_pretrained(decoder / "movq")  # fmt: skip
    DDPMScheduler(
        beta_schedule="linear", beta_start=0.00085, beta_end=0.012, variance_type="learned_range"
    ).save_pretrained(decoder / "scheduler")
    return index(prior, "KandinskyV22PriorPipeline"), index(decoder, "KandinskyV22Pipeline")


class TinyEncoder(nn.Module):
    """In place of EfficientNetV2-S, whose package is not needed here."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 32, stride=32)

    def forward(self, x):
        return self.conv(x)


def wuerstchen(place: Path) -> tuple[Path, Path]:
    """(prior, decoder) below `place`, without the picture encoder, whose package is not needed here."""
    from diffusers import DDPMWuerstchenScheduler
    from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
    from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_diffnext import WuerstchenDiffNeXt
    from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_prior import WuerstchenPrior as Network
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    prior, decoder = place / "wuerstchen_prior", place / "wuerstchen_decoder"
    Network(c_in=16, c=32, c_cond=32, c_r=16, depth=2, nhead=2).save_pretrained(prior / "prior")
    WuerstchenDiffNeXt(
        c_cond=32,
        c_hidden=[32, 32],
        nhead=[-1, 2],
        blocks=[1, 1],
        level_config=["CT", "CTA"],
        inject_effnet=[False, True],
        clip_embd=32,
    ).save_pretrained(decoder / "decoder")
    PaellaVQModel(levels=2, bottleneck_blocks=1, embed_dim=16, latent_channels=4, num_vq_embeddings=12).save_pretrained(
        decoder / "vqgan"
    )
    for place in (prior, decoder):
        CLIPTextModel(CLIPTextConfig(**CLIP)).save_pretrained(place / "text_encoder")
        DDPMWuerstchenScheduler().save_pretrained(place / "scheduler")
        shutil.copytree(MODEL / "tokenizer", place / "tokenizer")
    return index(prior, "WuerstchenPriorPipeline"), index(decoder, "WuerstchenDecoderPipeline")
