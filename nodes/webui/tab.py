"""The tab LoRA Loom: what to train on and for how long, every other setting in sections made of the config's table, and the run below them.

What a run does (chart, samples, messages, buttons) is drawn by js/, which javascript/lora_loom.mjs puts into the place left for it.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ...convert.forms import TARGETS
from ...lora_core.messages.errors import Problem, message_of
from ...lora_core.messages.message import LANGUAGES, Message, table
from ..jobs.presets import PRESETS
from ..jobs.settings import automatic
from .fields import Field, changed, sections, translated
from .jobs import RUNS, Order, picture_sets
from .library import converted, inspected, lora_names
from .pictures import stored

log = logging.getLogger(__name__)
TITLE, ELEMENT = "LoRA Loom", "lora_loom"
FIRST_PRESET = "concept"
MEMORY = ("tab.fast", "tab.less_memory")  # whether blocks are made again in the backward pass
SECTIONS = {
    "training": "tab.section_training", "data": "tab.section_data", "adapter": "tab.section_adapter", "text_encoder": "tab.section_text_encoder",
    "embedding": "tab.section_embedding", "optimizer": "tab.section_optimizer", "schedule": "tab.section_schedule",
    "objective": "tab.section_objective", "prior": "tab.section_prior", "validation": "tab.section_validation", "save": "tab.section_save",
    "samples": "tab.section_samples", "cache": "tab.section_cache",
}  # fmt: skip
FIRST_PATHS = ("data.folder", "name", "data.trigger", "preset", "steps", "checkpointing", "samples.prompt")


def language() -> str:
    """That of the host's page, where we speak it."""
    from modules import shared

    chosen = str(getattr(shared.opts, "localization", "") or "").lower()
    return next((name for name in LANGUAGES if chosen.startswith(name)), LANGUAGES[0])


def word(code: str) -> str:
    """A label of the tab."""
    return table(language())[code]


def tabs() -> list[tuple[Any, str, str]]:
    """What the host's `on_ui_tabs` takes."""
    with gr.Blocks(analytics_enabled=False) as tab, gr.Tabs(elem_id="lora_loom_tabs"):
        with gr.Tab(word("tab.train"), elem_id="lora_loom_tab_train"):
            _train()
        with gr.Tab(word("tab.runs"), elem_id="lora_loom_tab_runs"):
            gr.HTML(_place("lora_loom_runs"))
        with gr.Tab(word("tab.files"), elem_id="lora_loom_tab_files"):
            _files()
    for component in tab.blocks.values():  # the host keeps defaults by label, which two settings may share
        component.do_not_save_to_config = True
    return [(tab, TITLE, ELEMENT)]


def _place(element: str) -> str:
    """Where js/ puts a part."""
    return f'<div id="{element}"><noscript>{html.escape(word("tab.needs_script"))}</noscript></div>'


# ---- training --------------------------------------------------------------------------------------------------------


def _train() -> None:
    with gr.Row():
        with gr.Column():
            files = gr.File(label=word("tab.pictures"), file_count="multiple", elem_id="lora_loom_pictures")
            folder = gr.Textbox(label=word("tab.folder"), info=word("tab.folder_info"), elem_id="lora_loom_folder")
        with gr.Column():
            name = gr.Textbox("my_lora", label=word("tab.name"), elem_id="lora_loom_name")
            trigger = gr.Textbox(label=word("tab.trigger"), info=word("tab.trigger_info"), elem_id="lora_loom_trigger")
            with gr.Row():
                preset = gr.Dropdown(
                    [*PRESETS], value=FIRST_PRESET, label=word("tab.preset"), elem_id="lora_loom_preset"
                )
                steps = gr.Number(0, label=word("tab.steps"), precision=0, elem_id="lora_loom_steps")
            memory = gr.Radio(
                [word(choice) for choice in MEMORY],
                value=word(MEMORY[0]),
                label=word("tab.memory"),
                type="index",
                elem_id="lora_loom_memory",
            )
            prompt = gr.Textbox(label=word("tab.prompt"), lines=2, elem_id="lora_loom_prompt")
    plan = gr.HTML(elem_id="lora_loom_plan")
    start = gr.Button(word("tab.start"), variant="primary", elem_id="lora_loom_start")
    status = gr.HTML(elem_id="lora_loom_said")
    gr.HTML(_place("lora_loom_panel"))
    with gr.Accordion(word("tab.more"), open=False, elem_id="lora_loom_more"):
        more = _sections()
    inputs = [folder, name, trigger, preset, steps, memory, prompt, *(component for _, component in more)]
    paths = [*FIRST_PATHS, *(field.path for field, _ in more)]
    files.change(_received, [files], [folder, status], queue=False)
    for component in (folder, trigger, preset, steps):
        component.change(_of_inputs(paths, planned), inputs, [plan], queue=False)
    start.click(_of_inputs(paths, started), inputs, [status], queue=False)


def _sections() -> list[tuple[Field, Any]]:
    """An accordion for each part of the config, with an input for each of its settings."""
    made = []
    for section, fields in sections().items():
        with gr.Accordion(word(SECTIONS[section]), open=False):
            made += [(field, _input(field)) for field in fields]
    return made


def _translated(text: str) -> str:
    return translated(language()).get(text, text) if language() != LANGUAGES[0] else text


def _input(field: Field) -> Any:
    """The setting with its name, its sentence and its bounds; they are checked again when a run starts."""
    options = {"label": _translated(field.label), "info": _translated(field.help), "elem_id": _element(field.path)}
    if field.choices:
        return gr.Dropdown([*field.choices], value=field.default, **options)
    if field.kind is bool:
        return gr.Checkbox(field.default, **options)
    if field.kind in (int, float):
        return gr.Number(field.default, precision=0 if field.kind is int else None, **options)
    return gr.Textbox(field.default, **options)


def _element(path: str) -> str:
    return f"lora_loom_{path.replace('.', '_')}"


def _of_inputs(paths: Sequence[str], answer: Callable[[Mapping[str, Any]], str]) -> Callable[..., str]:
    """`answer`, called with the page's inputs by the paths of their settings; what it raises is told in its place."""

    def called(*values: Any) -> str:
        try:
            return answer(dict(zip(paths, values, strict=True)))
        except Problem as error:
            return _told(error.message, "error")

    return called


def _told(message: Message, kind: str = "info") -> str:
    return f'<p class="lora_loom_{kind}">{html.escape(message.text(language()))}</p>'


def order_of(values: Mapping[str, Any]) -> Order:
    """What the page asks for; `memory` comes as the number of its choice, 0 steps are for the preset to say."""
    first: dict[str, Any] = {
        "data.folder": str(values["data.folder"]).strip(),
        "name": str(values["name"]).strip(),
        "data.trigger": str(values["data.trigger"]).strip(),
        "samples.prompt": str(values["samples.prompt"]),
    }
    if int(values["steps"] or 0) > 0:
        first["steps"] = int(values["steps"])
    if values["checkpointing"]:
        first["checkpointing"] = True
    return Order({**changed(values), **first}, str(values["preset"] or FIRST_PRESET))


def started(values: Mapping[str, Any]) -> str:
    """Starts the run or queues it, and says which. Raises LoomError."""
    before = RUNS.add(order_of(values))
    return _told(Message.of("tab.queued", count=before) if before else Message.of("tab.started"))


def planned(values: Mapping[str, Any]) -> str:
    """What will happen, before anything does: pictures, steps, rank, learning rate. Raises LoomError."""
    order = order_of(values)
    if not order.values["data.folder"]:
        return ""
    pictures = picture_sets(order).opened().pictures
    filled = automatic(order.preset, len(pictures), order.values.get("optimizer.name", "adamw"))
    chosen = {**filled, **order.values}
    captioned = sum(any(caption.text.strip() for caption in picture.captions) for picture in pictures)
    return _told(
        Message.of(
            "tab.plan",
            pictures=len(pictures),
            captioned=captioned,
            steps=chosen["steps"],
            rank=chosen["adapter.rank"],
            lr=f"{chosen['optimizer.lr'] or 0:g}" if chosen["optimizer.lr"] else "auto",
        )
    )


def _received(files: Any) -> tuple[Any, str]:
    """Dropped files into a folder of their own, whose path goes into the field for it."""
    names = [str(getattr(file, "name", file)) for file in files or ()]
    if not names:
        return gr.update(), ""
    try:
        folder = stored([(Path(name).name, Path(name).read_bytes()) for name in names])
    except (Problem, OSError) as error:
        return gr.update(), _told(message_of(error), "error")
    return str(folder), ""


# ---- files -----------------------------------------------------------------------------------------------------------


def _files() -> None:
    """Inspect and convert what lies among the host's LoRAs, or anywhere by its path."""
    with gr.Row():
        file = gr.Dropdown(
            lora_names(),
            label=word("tab.lora"),
            allow_custom_value=True,
            elem_id="lora_loom_file",
            info=word("tab.lora_info"),
        )
        again = gr.Button(word("tab.refresh"), elem_id="lora_loom_refresh")
    with gr.Row():
        look = gr.Button(word("tab.inspect"), elem_id="lora_loom_inspect")
        target = gr.Dropdown([*TARGETS], value="kohya", label=word("tab.target"), elem_id="lora_loom_target")
        convert = gr.Button(word("tab.convert"), elem_id="lora_loom_convert")
    report = gr.HTML(elem_id="lora_loom_report")
    again.click(lambda: gr.update(choices=lora_names()), [], [file], queue=False)
    look.click(_reported(inspected), [file], [report], queue=False)
    convert.click(_reported(converted), [file, target], [report], queue=False)


def _reported(work: Callable[..., str]) -> Callable[..., str]:
    def called(*values: Any) -> str:
        try:
            return f"<pre>{html.escape(work(*map(str, values)))}</pre>"
        except (Problem, ValueError, OSError) as error:
            return _told(message_of(error), "error")

    return called
