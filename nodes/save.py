"""Save LoRA for WebUI: SD1, SD2 and SDXL in Kohya form with the header galleries read; other families with the host's native names."""

from __future__ import annotations

from pathlib import Path

from ..convert import FormatError, cast, is_lora, lora_metadata, to_file
from ..convert.families import guess_base
from ..convert.lora import DTYPES, KOHYA_PREFIXES
from ..lora_core.errors import LoomError
from ..lora_core.files import write_safetensors
from ..lora_core.names import check_name
from .host.api import io, make_input, make_output, schema, ui
from .host.paths import lora_folders
from .sockets import CATEGORY

SD_FAMILIES = ("sd1", "sd2", "sd2-v", "sdxl")


class SaveLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomSaveLora",
            display_name="Save LoRA for WebUI",
            category=CATEGORY,
            description="Writes a LoRA as one safetensors file with full metadata; in Kohya form for SD1, SD2 and SDXL, so every WebUI lists and loads it.",
            search_aliases=["export lora", "kohya", "a1111", "forge", "webui"],
            is_output_node=True,
            inputs=[
                make_input(io.LoraModel, "lora", tooltip="From Train LoRA."),
                make_input(io.String, "name", default="my_lora", tooltip="File name without folder and ending. Also the name used as <lora:name:1>."),
                make_input(io.Combo, "destination", options=list(lora_folders()), tooltip="One of the folders this ComfyUI reads LoRAs from."),
                make_input(io.Combo, "dtype", options=list(DTYPES), default="fp16", tooltip="Number format on disk. fp16 is what most files use."),
                make_input(
                    io.Combo,
                    "on_exists",
                    options=["new number", "overwrite"],
                    default="new number",
                    advanced=True,
                    tooltip="What to do when the file is there.",
                ),
                make_input(
                    io.Boolean,
                    "write_captions",
                    default=False,
                    advanced=True,
                    tooltip="Put the training tags and their counts into the file (shown as buttons in A1111).",
                ),
            ],
            outputs=[make_output(io.String, "path")],
        )

    @classmethod
    def execute(cls, lora: dict, name: str, destination: str, dtype: str, on_exists: str, write_captions: bool) -> io.NodeOutput:
        check_name("name", name)
        places = lora_folders()
        if destination not in places:
            raise LoomError(f"destination: {destination!r} is not a LoRA folder of this ComfyUI; choose one of {', '.join(places)}.")
        if not is_lora(lora):
            raise LoomError("lora: the wired value holds no LoRA weights; connect the lora output of Train LoRA.")
        try:
            tensors, lost = cast(lora if ".lora_A." in next(iter(lora)) else to_file(lora), dtype)
        except FormatError as error:
            raise LoomError(f"lora: {error}") from error
        base = getattr(lora, "base", "") or guess_base(tensors)
        if base in SD_FAMILIES and not any(key.startswith(KOHYA_PREFIXES) for key in tensors):
            raise LoomError("lora: its names are ComfyUI's own, which WebUIs do not read for this model; connect the lora output of LoRA Loom's Train LoRA.")
        path = _free_path(places[destination], name, on_exists == "overwrite")
        header = lora_metadata(tensors, path.stem, base, getattr(lora, "facts", {}), write_captions)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, tensors, header)
        note = f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, {dtype}, {lost:.2%} of the values became zero"
        return io.NodeOutput(str(path), ui=ui.PreviewText(note))


def _free_path(folder: Path, name: str, overwrite: bool) -> Path:
    path, number = folder / f"{name}.safetensors", 2
    while path.exists() and not overwrite:
        path, number = folder / f"{name}_{number}.safetensors", number + 1
    return path
