"""Caption Pictures: a model the user has writes captions for the pictures of a dataset, into the text files beside them."""

from __future__ import annotations

import functools
from typing import Any

from ..lora_core.captioning.base import Captioner
from ..lora_core.captioning.shelf import opened
from ..lora_core.captioning.tagger import GENERAL_BAR
from ..lora_core.captioning.wording import SUBJECTS, Wording
from ..lora_core.messages.errors import LoomError
from .host.access.api import io, make_input, make_output, schema
from .host.access.paths import captioner_places
from .host.engine.captioner import HostCaptioner
from .host.web.dataset_routes import EDITORS
from .host.web.live import caption_progress, room_on_device
from .jobs.captioning import MOST_TOKENS, WHICH, CaptionOrder, captioned
from .jobs.datasets import PictureSets
from .sockets import CATEGORY, dataset_input, dataset_output, in_english, in_words, report_output

WIRED = "the model at clip"


def opened_captioner(order: CaptionOrder, clip: Any) -> Captioner:
    """The captioner an order names: the wired model, or one of the folders of models. Raises LoomError."""
    if order.captioner == WIRED:
        if clip is None:
            raise LoomError("captioning.no_clip", field="captioner", choice=WIRED)
        return HostCaptioner(clip, order.max_tokens)
    places = captioner_places()
    device = room_on_device(places.get(order.captioner))
    character = order.wording.subject != "character"  # who is to be learned is named by the trigger
    return opened(order.captioner, places, device, order.max_tokens, order.bar, character)


class CaptionPictures(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        text = functools.partial(make_input, io.String, multiline=True, default="")
        return schema(
            node_id="LoraLoomCaptionPictures",
            display_name="Caption Pictures",
            category=CATEGORY,
            description="Writes captions with a model you have: a vision-language model loaded by ComfyUI, or a tagger or captioner in models/captioners. "
            "Captions go into the .txt files beside the pictures; Undo in the Dataset Editor takes them back. Nothing is downloaded.",
            search_aliases=[
                "auto caption",
                "tagger",
                "wd14",
                "blip",
                "florence",
                "vlm",
                "interrogate",
                "describe",
                "joycaption",
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                dataset_input(),
                make_input(
                    io.Combo,
                    "captioner",
                    options=[WIRED, *captioner_places()],
                    tooltip="Who writes: the vision-language model wired to clip, or a tagger or captioner from models/captioners.",
                ),
                make_input(
                    io.Combo,
                    "subject",
                    options=list(SUBJECTS),
                    default="everything",
                    tooltip="What the LoRA shall learn. What belongs to it is left out of the captions, so that it goes into the trigger word.",
                ),
                make_input(
                    io.Combo,
                    "which",
                    options=list(WHICH),
                    default=WHICH[0],
                    tooltip="Pictures without a caption alone, or all of them: then captions that are there are replaced.",
                ),
                text(
                    "leave_out",
                    tooltip="Words and phrases that no caption shall have, between commas; * stands for any letters.",
                ),
                make_input(io.String, "prepend", default="", tooltip="Put before every caption."),
                make_input(io.String, "append", default="", tooltip="Put behind every caption."),
                text(
                    "instruction",
                    advanced=True,
                    tooltip="What the model is asked instead of the words for the chosen subject. Taggers are not asked.",
                ),
                make_input(
                    io.Float,
                    "threshold",
                    default=GENERAL_BAR,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="How sure a tagger must be of a tag.",
                ),
                make_input(
                    io.Int,
                    "max_tokens",
                    default=200,
                    min=1,
                    max=MOST_TOKENS,
                    advanced=True,
                    tooltip="The longest answer of a model that writes sentences, in tokens.",
                ),
                make_input(
                    io.Clip, "clip", optional=True, tooltip="A vision-language model, from ComfyUI's own Load CLIP."
                ),
            ],
            outputs=[
                dataset_output(),
                report_output("How many captions were written, and for which pictures none."),
                make_output(io.Int, "written", tooltip="How many captions were written."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        """Never the same: captions may be gone since."""
        return float("nan")

    @classmethod
    def execute(
        cls,
        dataset: PictureSets,
        captioner: str,
        subject: str,
        which: str,
        leave_out: str,
        prepend: str,
        append: str,
        instruction: str,
        threshold: float,
        max_tokens: int,
        clip: Any = None,
    ) -> io.NodeOutput:
        wording = Wording(subject, instruction, leave_out, prepend, append)
        order = CaptionOrder(captioner, wording, which, threshold, max_tokens)
        show = caption_progress(cls.hidden.unique_id)
        result = captioned(EDITORS, EDITORS.open(dataset.sets), order, lambda: opened_captioner(order, clip), show)
        lines = result.messages()
        return io.NodeOutput(dataset, in_english(lines), result.written, ui=in_words(lines))
