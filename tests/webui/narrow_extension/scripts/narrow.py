"""A neighbour for tests: narrow models become known to the hosts. Forge and its forks know models by their widths, A1111 asks OpenCLIP for its encoders.

$LOOM_MODELS: where the models lie.
"""

import inspect
import json
import os
import tempfile
from pathlib import Path

try:
    import huggingface_guess.model_list as known
except ImportError:
    try:
        import ldm_patched.modules.supported_models as known
    except ImportError:
        known = None

MODELS = Path(os.environ.get("LOOM_MODELS", ""))
HEADS = {"unet_extra_config": {"num_heads": -1, "num_head_channels": 32}}
FLUX = {"vec_in_dim": 64, "context_in_dim": 64, "hidden_size": 128, "num_heads": 1, "depth": 1, "depth_single_blocks": 2}  # fmt: skip
WIDTHS = {  # class of a model -> what is narrow in its network
    "SD15": {"model_channels": 32},
    "SD15_instructpix2pix": {"model_channels": 32},
    "SD20": {"model_channels": 32},
    "SDXL": {"model_channels": 32, "context_dim": 1280, "adm_in_channels": 2048, "transformer_depth": [0, 0, 1, 1, 2, 2]},
    "SDXLRefiner": {"model_channels": 32, "context_dim": 1024, "adm_in_channels": 2304, "transformer_depth": [0, 0, 1, 1, 1, 1, 0, 0]},
}  # fmt: skip
TEXT = {"vocab_size": 49408, "max_position_embeddings": 77, "hidden_act": "gelu", "eos_token_id": 49407, "layer_norm_eps": 1e-5}  # fmt: skip


def narrow(name, **more):
    """Among the known models, before its large sibling."""
    large = getattr(known, name)
    config = {**large.unet_config, **WIDTHS.get(name, {})}
    known.models.insert(0, type(f"{name}Narrow", (large,), {"narrow": True, "unet_config": config, **more}))


def of_forge():
    """Which reads the configurations of a model's other parts from a folder."""
    narrow("SD15")
    narrow("SDXL", huggingface_repo=str(MODELS / "tiny_sdxl"), **HEADS)
    narrow("SD20", huggingface_repo=str(MODELS / "tiny_sd2"), **HEADS)
    narrow("SDXLRefiner", huggingface_repo=str(MODELS / "tiny_refiner"), **HEADS)
    narrow("Flux", huggingface_repo=str(MODELS / "tiny_flux"), unet_extra_config=FLUX)


def of_its_forks():
    """Which have the widths of text encoders in their classes."""
    import ldm_patched.modules.sdxl_clip as of_sdxl

    try:
        import ldm_patched.modules.text_encoders.sd2_clip as of_sd2
    except ImportError:  # Forge classic
        import ldm_patched.modules.sd2_clip as of_sd2

    narrow("SD15")
    if hasattr(known, "SD15_instructpix2pix"):
        narrow("SD15_instructpix2pix")
    narrow("SDXL", **HEADS)
    narrow("SD20", **HEADS)
    of_sdxl.SDXLClipG = encoder(False, hidden_size=512, intermediate_size=2048, num_attention_heads=8, num_hidden_layers=12)  # fmt: skip
    of_sd2.SD2ClipHModel = encoder(True, hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=3)  # fmt: skip


def encoder(layer_norm, **widths):
    """A text encoder whose last layer but one is read."""
    from ldm_patched.modules.sd1_clip import SDClipModel

    config = {**TEXT, **widths, "projection_dim": widths["hidden_size"]}
    has_options = "model_options" in inspect.signature(SDClipModel.__init__).parameters

    class Narrow(SDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None, **_):
            ids = {"start": 49406, "end": 49407, "pad": 0}
            more = {"model_options": model_options or {}} if has_options else {}
            super().__init__(
                device=device, layer="hidden", layer_idx=-2, textmodel_json_config=config if has_options else in_a_file(config),
                dtype=dtype, special_tokens=ids, layer_norm_hidden_state=layer_norm, **more,
            )  # fmt: skip

    return Narrow


def in_a_file(config):
    """As an older host reads it."""
    file = Path(tempfile.mkdtemp(prefix="loom_narrow_")) / "config.json"
    file.write_text(json.dumps(config))
    return str(file)


if known is None:  # A1111
    import open_clip

    open_clip.add_model_config(Path(__file__).resolve().parents[1] / "loom-narrow.json")
elif not any(getattr(model, "narrow", False) for model in known.models):
    of_forge() if hasattr(known.SD15, "huggingface_repo") else of_its_forks()
