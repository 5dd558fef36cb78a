"""Load Toy Model: a whole text-to-image model of 25 MB, to try everything in minutes without a GPU or a download."""

from __future__ import annotations

from ..lora_core.toy.model import MODEL
from .host.access import toy
from .host.access.api import io, make_output, schema
from .sockets import CATEGORY


class LoadToyModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomLoadToyModel",
            display_name="Load Toy Model",
            category=CATEGORY,
            description="A small model that draws emoji from their names, 128 x 128 px. To try things out.",
            search_aliases=["example model", "test model", "tiny model", "demo", "train"],
            inputs=[],
            outputs=[
                make_output(io.Model, "model", tooltip="The denoiser: a UNet of the Stable Diffusion kind."),
                make_output(io.Clip, "clip", tooltip="Its text encoder."),
                make_output(io.Vae, "vae", tooltip="Its VAE."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*toy.load(MODEL))
