"""Save LoRA and Save Embedding: from the wire into one of the folders this ComfyUI reads, with header, card and preview picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..convert import FormatError, Lora, cast, is_lora, lora_metadata, read, write
from ..convert.embedding import EMBEDDING_TARGETS, bundled, trigger_problems
from ..convert.families import UNKNOWN, known_family
from ..convert.files.jobs import free_path, write_embedding_file
from ..convert.files.jobs import write_card as write_card_beside
from ..convert.lora import DTYPES
from ..convert.metadata import converted_metadata
from ..convert.report import triggers
from ..convert.writers import TARGETS
from ..lora_core.disk.files import write_safetensors
from ..lora_core.messages.errors import LoomError
from ..lora_core.messages.figures import figure, percent
from ..lora_core.messages.message import Message
from ..lora_core.names import check_name
from ..lora_core.pictures.previews import first_picture, write_preview
from .host.access.api import io, make_input, make_output, schema
from .host.access.paths import embedding_folders, file_names_in, lora_folders
from .sockets import CATEGORY, Embedding, EmbeddingSocket, LoraWeights, in_words, path_output, plain_errors

ON_EXISTS = ("new number", "overwrite")
LORA_FORMS = tuple(t for t in TARGETS if t != "peft")


def destination_input(places: dict[str, Path], what: str) -> Any:
    return make_input(
        io.Combo, "destination", options=list(places), tooltip=f"One of the folders this ComfyUI reads {what} from."
    )


def on_exists_input() -> Any:
    return make_input(
        io.Combo,
        "on_exists",
        options=list(ON_EXISTS),
        default=ON_EXISTS[0],
        advanced=True,
        tooltip="What to do when the file is there.",
    )


def place_for(
    places: dict[str, Path], destination: str, name: str, overwrite: bool, suffix: str = ".safetensors"
) -> Path:
    """The file to write in a chosen folder: `name`, with a number where that is taken, unless it may be overwritten. The folder then exists."""
    check_name("name", name)
    if destination not in places:
        raise LoomError("destination.unknown", field="destination", destination=repr(destination), allowed=places)

    def taken(path: Path) -> bool:
        return not overwrite and (path.exists() or bool(suffix and path.with_suffix(".preview.png").exists()))

    path = free_path(places[destination], name, suffix, taken)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


class SaveLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomSaveLora",
            display_name="Save LoRA for WebUI",
            category=CATEGORY,
            description="Writes a LoRA as one safetensors file with full metadata, in the form you choose.",
            search_aliases=["export lora", "kohya", "a1111", "forge", "webui", "diffusers"],
            is_output_node=True,
            inputs=[
                make_input(
                    io.LoraModel, "lora", tooltip="From Train LoRA, Merge LoRAs, or ComfyUI's own training node."
                ),
                make_input(
                    io.String,
                    "name",
                    default="my_lora",
                    tooltip="File name without folder and ending. Also the name used as <lora:name:1>.",
                ),
                destination_input(lora_folders(), "LoRAs"),
                make_input(
                    io.Combo,
                    "dtype",
                    options=list(DTYPES),
                    default="fp16",
                    tooltip="Number format on disk. fp16 is what most files use.",
                ),
                make_input(
                    io.Image,
                    "preview",
                    optional=True,
                    tooltip="Picture shown beside the file in model lists; the first one is taken.",
                ),
                on_exists_input(),
                make_input(
                    io.Boolean,
                    "write_captions",
                    default=False,
                    advanced=True,
                    tooltip="Put the training tags and their counts into the file (shown as buttons in A1111).",
                ),
                make_input(
                    io.Combo,
                    "form",
                    options=list(LORA_FORMS),
                    default="universal",
                    advanced=True,
                    tooltip="Names of the layers: universal is read by ComfyUI and diffusers, for SD1, SD2 and SDXL by WebUIs and "
                    "kohya's scripts too; those want kohya for other models.",
                ),
                make_input(
                    io.String,
                    "activation_text",
                    default="",
                    advanced=True,
                    tooltip="Trigger words for the card; empty takes the training's trigger.",
                ),
                make_input(
                    io.Float,
                    "preferred_weight",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    advanced=True,
                    tooltip="Strength written on the card.",
                ),
                make_input(
                    Embedding,
                    "embedding",
                    optional=True,
                    tooltip="Bundled into the file as <name>_emb. A1111 from 1.7 loads it with the LoRA; Forge and diffusers may refuse such a file.",
                ),
                make_input(
                    io.Boolean,
                    "write_card",
                    default=True,
                    advanced=True,
                    tooltip="Write <name>.json for A1111 and Forge. Your edits there stay.",
                ),
            ],
            outputs=[path_output()],
        )

    @classmethod
    @plain_errors("lora")
    def execute(
        cls,
        lora: dict,
        name: str,
        destination: str,
        dtype: str,
        form: str = "universal",
        on_exists: str = ON_EXISTS[0],
        activation_text: str = "",
        preferred_weight: float = 1.0,
        write_card: bool = True,
        write_captions: bool = False,
        preview: torch.Tensor | None = None,
        embedding: EmbeddingSocket | None = None,
    ) -> io.NodeOutput:
        path = place_for(lora_folders(), destination, name, on_exists == "overwrite")
        if not is_lora(lora):
            raise LoomError("lora.no_weights", field="lora")
        canonical = _canonical(lora)
        tensors, lost = cast(write(canonical, form), dtype)
        if embedding is not None:
            tensors |= bundled({f"{path.stem}_emb": embedding.embedding})
        if isinstance(lora, LoraWeights) and lora.facts:
            facts = lora.facts if embedding is None else {**lora.facts, "triggers": [f"{path.stem}_emb"]}
            header = lora_metadata(tensors, path.stem, lora.base, facts, write_captions)
        else:
            header = converted_metadata({}, tensors, path.stem, canonical.family)
        write_safetensors(path, tensors, header)
        if embedding is not None:
            canonical.notes.append(Message.of("note.bundled", embedding=f"{path.stem}_emb"))
        size = figure(path.stat().st_size / 1e6)
        notes = [
            Message.of("save.written", file=path.name, size=size, type=dtype, lost=percent(lost)),
            *canonical.notes,
        ]
        if write_card:
            words = tuple(w.strip() for w in activation_text.split(",") if w.strip()) or triggers(header)
            _attempt(notes, lambda: write_card_beside(path, canonical.family, words, preferred_weight))
        if preview is not None:
            _attempt(notes, lambda: write_preview(path.with_suffix(".preview.png"), first_picture(preview)))
        return io.NodeOutput(str(path), ui=in_words(notes))


def _canonical(lora: dict) -> Lora:
    """The wired LoRA in canonical form. One of our runs on a family without a table keeps the names it was trained under."""
    base = getattr(lora, "base", "")
    try:
        return read(dict(lora), family=known_family(base) if base else "")
    except FormatError:
        if base:
            return read(dict(lora), family=UNKNOWN)
        raise


def _attempt(notes: list[Message], act: Any) -> None:
    """Runs what must not lose a file that is written already; a failure becomes a note."""
    try:
        act()
    except (FormatError, LoomError) as error:
        notes.append(error.message)


class SaveEmbedding(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomSaveEmbedding",
            display_name="Save Embedding",
            category=CATEGORY,
            description="Writes a textual-inversion embedding. The file's name is its trigger: embedding:name here, just the name in A1111 and Forge.",
            search_aliases=["textual inversion", "embedding", "export embedding", "a1111", "webui", "ti"],
            is_output_node=True,
            inputs=[
                make_input(Embedding, "embedding", tooltip="From Convert Embedding or from training."),
                make_input(
                    io.String,
                    "name",
                    default="my_emb",
                    tooltip="File name without ending, and the trigger: small letters, digits, _ and -.",
                ),
                destination_input(embedding_folders(), "embeddings"),
                make_input(
                    io.Combo,
                    "form",
                    options=list(EMBEDDING_TARGETS),
                    default="webui",
                    tooltip="webui: A1111, Forge, kohya and ComfyUI. diffusers: for load_textual_inversion.",
                ),
                on_exists_input(),
            ],
            outputs=[path_output(), make_output(io.String, "token", tooltip="What to write in a ComfyUI prompt.")],
        )

    @classmethod
    @plain_errors("embedding")
    def execute(
        cls, embedding: EmbeddingSocket, name: str, destination: str, form: str, on_exists: str
    ) -> io.NodeOutput:
        path = place_for(embedding_folders(), destination, name, on_exists == "overwrite")
        written = write_embedding_file(embedding.embedding, path, form, overwrite=on_exists == "overwrite")
        loras = {Path(file).stem for file in file_names_in("loras")}
        use = Message.of("save.embedding_use", file=path.name, word=f"embedding:{path.stem}")
        notes = [use, *written.notes, *trigger_problems(path.stem, loras)]
        return io.NodeOutput(str(path), f"embedding:{path.stem}", ui=in_words(notes))
