"""A neighbour for tests: Forge and reForge know models by their widths, so narrow ones have to be among those they know. $LOOM_MODELS: where those lie."""

import os
from pathlib import Path

try:
    import huggingface_guess.model_list as known
except ImportError:
    try:
        import ldm_patched.modules.supported_models as known
    except ImportError:
        known = None

MODELS = Path(os.environ.get("LOOM_MODELS", ""))


def narrow(cls, unet_config, **more):
    """Among the known models, before its large sibling."""
    known.models.insert(0, type(f"{cls.__name__}Narrow", (cls,), {"narrow": True, "unet_config": unet_config, **more}))


if known is not None and not any(getattr(model, "narrow", False) for model in known.models):
    narrow(known.SD15, {**known.SD15.unet_config, "model_channels": 32})
    if hasattr(
        known.SD15, "huggingface_repo"
    ):  # Forge, which reads the configurations of a model's other parts from a folder
        widths = {
            "model_channels": 32,
            "context_dim": 1280,
            "adm_in_channels": 2048,
            "transformer_depth": [0, 0, 1, 1, 2, 2],
        }
        narrow(
            known.SDXL,
            {**known.SDXL.unet_config, **widths},
            unet_extra_config={"num_heads": -1, "num_head_channels": 32},
            huggingface_repo=str(MODELS / "tiny_sdxl"),
        )
        flux = {
            "vec_in_dim": 64,
            "context_in_dim": 64,
            "hidden_size": 128,
            "num_heads": 1,
            "depth": 1,
            "depth_single_blocks": 2,
        }
        narrow(known.Flux, known.Flux.unet_config, unet_extra_config=flux, huggingface_repo=str(MODELS / "tiny_flux"))
