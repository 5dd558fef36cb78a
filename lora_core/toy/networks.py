"""The three networks of the emoji model, as diffusers and transformers name them, untrained. SD 1's shape: f = 8, four latent channels, CLIP text."""

from __future__ import annotations

from typing import Any

LATENT_CHANNELS = 4
LATENT_SIDE = 16
TEXT_WIDTH = 128
TEXT_LAYERS = 2


def new_vae() -> Any:
    """3.2 M parameters. SD's readers give every norm 32 groups: with 32 channels each would be levelled alone, and a picture's mean colour lost.

    (What is left then smuggles it through in a stain in a corner.)
    """
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(64, 64, 64, 128),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=32,
        sample_size=128,
    )


def new_unet() -> Any:
    """8.5 M parameters. Words are read at 8 x 8 and 4 x 4; the level of 16 x 16 only unfolds what these say."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=1,
        block_out_channels=(64, 128, 192),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=32,
    )


def new_text_encoder(vocabulary: int, bos: int, eos: int) -> Any:
    """0.4 M parameters and those of its words. `vocabulary`: how many tokens; `bos`, `eos`: which begin and end a text."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=TEXT_LAYERS,
            num_attention_heads=4,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            projection_dim=TEXT_WIDTH,
            bos_token_id=bos,
            eos_token_id=eos,
            pad_token_id=eos,
        )
    )


def new_schedule() -> Any:
    """SD 1's noise levels, predicted as noise."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
