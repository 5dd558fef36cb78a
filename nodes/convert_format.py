"""Convert LoRA, Convert Embedding and Inspect: files of any program in, files of the chosen one out, and what is in a file."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..convert.embedding import EMBEDDING_TARGETS
from ..convert.families import FAMILIES, UNKNOWN
from ..convert.files.jobs import Options, convert, inspected, open_embedding, open_file, open_lora, write_embedding_file
from ..convert.lora import DTYPES, Lora
from ..convert.merge import weighted
from ..convert.report import embedding_lines, inspect
from ..convert.writers import TARGETS
from ..lora_core.messages.errors import LoomError
from ..lora_core.pictures.plots import bars
from .host.access.api import io, make_input, make_output, schema, ui
from .host.access.paths import embedding_folders, file_names_in, lora_folders, model_file
from .save import destination_input, on_exists_input, place_for
from .sockets import (
    CATEGORY,
    Embedding,
    EmbeddingSocket,
    in_english,
    in_words,
    lora_output,
    on_the_wire,
    path_output,
    plain_errors,
    report_output,
)
from .widgets import NO_FILE

AUTO = "auto"
_EMBEDDING_PREFIX = "embedding: "


def lora_input(name: str = "file", optional: bool = False) -> Any:
    files, tooltip = file_names_in("loras"), "A LoRA file this ComfyUI knows."
    if optional:
        return make_input(io.Combo, name, options=[NO_FILE, *files], default=NO_FILE, tooltip=tooltip)
    return make_input(io.Combo, name, options=files, tooltip=tooltip)


def family_input() -> Any:
    return make_input(
        io.Combo,
        "base_model",
        options=[AUTO, *FAMILIES, UNKNOWN],
        default=AUTO,
        advanced=True,
        tooltip="What the LoRA is for; auto finds out, except from a few files.",
    )


def approximate_input() -> Any:
    return make_input(
        io.Int,
        "approximate_rank",
        default=0,
        min=0,
        max=1024,
        zero="off",
        advanced=True,
        tooltip="Turns LoHa, LoKr and full differences into a LoRA of this rank, for programs that know nothing else. 0: no.",
    )


def chosen_family(base_model: str) -> str:
    return "" if base_model == AUTO else base_model


class ConvertLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomConvertLora",
            display_name="Convert LoRA",
            category=CATEGORY,
            description='Reads a LoRA of any program and writes it for another; cures "lora key not loaded". Bundled embeddings become files of their own.',
            search_aliases=[
                "lora key not loaded",
                "kohya to diffusers",
                "diffusers to kohya",
                "peft",
                "onetrainer",
                "simpletuner",
            ],
            is_output_node=True,
            inputs=[
                lora_input(),
                make_input(
                    io.Combo,
                    "form",
                    options=list(TARGETS),
                    default="universal",
                    tooltip="universal is read by ComfyUI and diffusers, for SD1, SD2 and SDXL by WebUIs and kohya's scripts too; "
                    "those want kohya for other models. peft writes a directory for each component.",
                ),
                make_input(io.String, "name", default="converted", tooltip="File name without folder and ending."),
                destination_input(lora_folders(), "LoRAs"),
                make_input(io.Combo, "dtype", options=list(DTYPES), default="fp16", tooltip="Number format on disk."),
                make_input(
                    io.Float,
                    "scale",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    advanced=True,
                    tooltip="Multiplies the effect.",
                ),
                make_input(
                    io.String,
                    "block_weights",
                    default="",
                    advanced=True,
                    tooltip="Factors by block, such as IN04=0.5, OUT05=0, BASE=0.8, or a pattern of layer names =factor; separated by commas.",
                ),
                family_input(),
                approximate_input(),
                make_input(
                    io.Boolean,
                    "keep_captions",
                    default=False,
                    advanced=True,
                    tooltip="Keep tags and dataset folders of the old header.",
                ),
                on_exists_input(),
                make_input(
                    io.Boolean,
                    "drop_unknown",
                    default=False,
                    advanced=True,
                    tooltip="Leave out keys that the model does not have, and say how many.",
                ),
            ],
            outputs=[lora_output(), path_output(), report_output()],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str = "", **_: Any) -> str:
        return stamp("loras", file)

    @classmethod
    @plain_errors("file")
    def execute(
        cls,
        file: str,
        form: str,
        name: str,
        destination: str,
        dtype: str,
        scale: float,
        block_weights: str,
        base_model: str,
        approximate_rank: int,
        keep_captions: bool,
        on_exists: str,
        drop_unknown: bool = False,
    ) -> io.NodeOutput:
        source = model_file("loras", file)
        path = place_for(
            lora_folders(), destination, name, on_exists == "overwrite", "" if form == "peft" else ".safetensors"
        )
        options = Options(form, dtype, approximate_rank, keep_captions, on_exists == "overwrite")
        lora = weighted(open_lora(source, chosen_family(base_model), drop_unknown), scale, block_factors(block_weights))
        written = convert(lora, path, options, next(iter(embedding_folders().values())))
        file_content = open_file(path)
        if not isinstance(file_content, Lora):
            raise LoomError("file.not_as_lora", field="file", file=file)
        notes = [*(note for file in written for note in file.notes), *inspect(file_content).messages()]
        lines = [*(file.path.name for file in written), *notes]
        return io.NodeOutput(on_the_wire(file_content), str(path), in_english(lines), ui=in_words(lines))


def block_factors(text: str) -> dict[str, float]:
    """`IN04=0.5, OUT05=0` as a table. Raises LoomError for anything else."""
    out = {}
    for item in (i.strip() for i in text.split(",") if i.strip()):
        block, equals, number = item.rpartition("=")
        try:
            out[block.strip()] = float(number)
        except ValueError:
            equals = ""
        if not equals:
            raise LoomError("block_weights.unreadable", field="block_weights", item=repr(item))
    return out


def stamp(kind: str, choice: str) -> str:
    """Changes when the file does, so an edited file is read again."""
    if not choice or choice == NO_FILE:
        return ""
    try:
        stat = model_file(kind, choice).stat()
    except (LoomError, OSError):
        return "missing"
    return f"{stat.st_size}-{stat.st_mtime_ns}"


class ConvertEmbedding(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomConvertEmbedding",
            display_name="Convert Embedding",
            category=CATEGORY,
            description="Reads an embedding of any program (A1111 .pt, diffusers, kohya, OneTrainer, SDXL pairs) and writes it for another.",
            search_aliases=["textual inversion", "embedding", "learned_embeds", "emb_params"],
            is_output_node=True,
            inputs=[
                make_input(
                    io.Combo,
                    "file",
                    options=file_names_in("embeddings"),
                    tooltip="An embedding file this ComfyUI knows.",
                ),
                make_input(
                    io.Combo, "form", options=list(EMBEDDING_TARGETS), default="webui", tooltip="Program it is for."
                ),
                make_input(
                    io.String, "name", default="converted_emb", tooltip="File name without ending, and the trigger."
                ),
                destination_input(embedding_folders(), "embeddings"),
                on_exists_input(),
            ],
            outputs=[
                make_output(Embedding, "embedding", tooltip="The vectors, for Save Embedding or Save LoRA."),
                path_output(),
                report_output(),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str = "", **_: Any) -> str:
        return stamp("embeddings", file)

    @classmethod
    @plain_errors("file")
    def execute(cls, file: str, form: str, name: str, destination: str, on_exists: str) -> io.NodeOutput:
        embedding = open_embedding(model_file("embeddings", file))
        path = place_for(embedding_folders(), destination, name, on_exists == "overwrite")
        write_embedding_file(embedding, path, form, overwrite=on_exists == "overwrite")
        lines = [path.name, *embedding_lines(embedding, path.stem)]
        return io.NodeOutput(EmbeddingSocket(embedding), str(path), in_english(lines), ui=in_words(lines))


class Inspect(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = [*file_names_in("loras"), *(_EMBEDDING_PREFIX + f for f in file_names_in("embeddings"))]
        return schema(
            node_id="LoraLoomInspect",
            display_name="Inspect LoRA/Embedding",
            category=CATEGORY,
            description="Which model a file is for, its ranks and trigger words, how much each block changes, which programs read it, and what is wrong.",
            search_aliases=["lora info", "metadata", "trigger words", "lora key not loaded", "embedding info"],
            is_output_node=True,
            inputs=[
                make_input(io.Combo, "file", options=files, tooltip="A LoRA or embedding this ComfyUI knows."),
                family_input(),
            ],
            outputs=[
                report_output(),
                make_output(io.String, "trigger", tooltip="What to write in a prompt to call it up."),
                make_output(io.Image, "picture", tooltip="How much each block changes, as bars."),
                make_output(
                    io.LoraModel, "lora", tooltip="The LoRA itself, for Zip LoRAs or Save LoRA; empty for an embedding."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str = "", **_: Any) -> str:
        is_embedding = file.startswith(_EMBEDDING_PREFIX)
        return stamp("embeddings" if is_embedding else "loras", file.removeprefix(_EMBEDDING_PREFIX))

    @classmethod
    @plain_errors("file")
    def execute(cls, file: str, base_model: str) -> io.NodeOutput:
        is_embedding = file.startswith(_EMBEDDING_PREFIX)
        path = model_file("embeddings" if is_embedding else "loras", file.removeprefix(_EMBEDDING_PREFIX))
        file_content = inspected(path, chosen_family(base_model))
        if isinstance(file_content, Lora):
            report = inspect(file_content)
            lines, trigger = [path.name, *report.messages()], ", ".join(report.triggers)
            rows, title = [(b.name, b.norm) for b in report.blocks], "Norm of the change of weights, by block"
        else:
            lines, trigger = [path.name, *embedding_lines(file_content, path.stem)], f"embedding:{path.stem}"
            rows = [
                (f"{encoder} {n}", float(v.float().norm()))
                for encoder, vectors in file_content.vectors.items()
                for n, v in enumerate(vectors)
            ]
            title = "Norm of each vector"
        picture = torch.from_numpy(np.asarray(bars(rows, title)).astype(np.float32) / 255)[None]
        display = in_words(lines, **ui.PreviewImage(picture, cls=cls).as_dict())
        lora = on_the_wire(file_content) if isinstance(file_content, Lora) else {}
        return io.NodeOutput(in_english(lines), trigger, picture, lora, ui=display)
