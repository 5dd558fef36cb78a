"""Which WebUI this is, told by what it is made of, and where it keeps what runs write."""

from __future__ import annotations

import enum
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

from ....lora_core.messages.errors import LoomError


class WebUI(enum.Enum):
    """The WebUIs whose models can be lent; the value is what a person calls it."""

    A1111 = "AUTOMATIC1111"
    FORGE = "Forge"
    REFORGE = "reForge"
    CLASSIC = "Forge classic"


def webui_here() -> WebUI:
    """By its own packages, not by its name: Forge brings `backend`, the others ComfyUI's modules as `ldm_patched`, of which older ones lack injections.

    Raises LoomError for others.
    """
    if _has("backend.diffusion_engine") and _has("modules_forge"):
        return WebUI.FORGE
    if _has("ldm_patched.modules.patcher_extension"):
        return WebUI.REFORGE
    if _has("ldm_patched.modules.model_patcher"):
        return WebUI.CLASSIC
    if _has("modules.sd_hijack") and _has("modules.sd_models"):
        return WebUI.A1111
    raise LoomError("webui.unknown")


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def version() -> str:
    """Name and version, as a run's log tells them."""
    from modules import launch_utils

    return f"{webui_here().value} {launch_utils.git_tag()}"


def data_root() -> Path:
    """Where runs and pictures of ours lie: beside the host's data, never below a folder it serves."""
    from modules import paths

    return Path(paths.data_path) / "lora_loom"


def runs_root() -> Path:
    """Where run folders lie."""
    return data_root() / "runs"


def loras_folder() -> Path:
    from modules import shared

    return Path(shared.cmd_opts.lora_dir)


def embeddings_folder() -> Path:
    from modules import shared

    return Path(shared.cmd_opts.embeddings_dir)


def models_folder() -> Path:
    """Where the host has a folder for each kind of model."""
    from modules import paths

    return Path(paths.models_path)


def checkpoints() -> dict[str, Path]:
    """The checkpoints the host lists, by name."""
    from modules import sd_models

    return {info.name_for_extra: Path(info.filename) for info in sd_models.checkpoints_list.values()}


def model_file(model: Any) -> str:
    """The name of the file the host has loaded a model from; empty where it does not say."""
    return Path(str(getattr(getattr(model, "sd_checkpoint_info", None), "filename", ""))).name


def loaded_model() -> Any:
    """What the host has loaded, without making it load anything; None where there is nothing."""
    from modules import sd_models

    return sd_models.model_data.sd_model


def wanted_model() -> Any:
    """The same, after the host has loaded its first one where it has not yet."""
    from modules import sd_models

    return sd_models.model_data.get_sd_model()


def pictures_end_in_noise() -> bool:
    """Whether the option *Noise schedule for sampling* has every picture begin at pure noise, whatever the model was trained with."""
    from modules import shared

    return bool(shared.opts.data.get("sd_noise_schedule") == "Zero Terminal SNR")


def lora_extension() -> Any:
    """The host's own Lora extension; None where it is switched off. Another extension may have a module of the same name."""
    module = sys.modules.get("networks")
    return module if hasattr(module, "load_networks") else None


def refresh_lists() -> None:
    """Makes the host read its folders of LoRAs and embeddings again, so that new files can be named in a prompt at once. Under the host's lock."""
    networks = lora_extension()
    if networks is not None:
        networks.list_available_networks()
    for database in _embedding_databases():
        reload = database.load_textual_inversion_embeddings
        reload(**({"force_reload": True} if "force_reload" in inspect.signature(reload).parameters else {}))


def _embedding_databases() -> list[Any]:
    if webui_here() is WebUI.FORGE:
        names = ("text_processing_engine", "text_processing_engine_l", "text_processing_engine_g")
        engines = [getattr(loaded_model(), name, None) for name in names]
        return [engine.embeddings for engine in engines if engine is not None]
    from modules import sd_hijack

    return [sd_hijack.model_hijack.embedding_db] if loaded_model() is not None else []
