"""The page LoRA Loom in gradio: what to train on and for how long, every other setting in sections made of the config's table, runs, tools for files.

What a run does (chart, samples, messages, buttons), the list of runs and the caption editor are drawn by js/, into places left for them.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ...lora_core.config import AS_SET, MEASURE, MEMORY, DataConfig
from ...lora_core.data.captions import decoded
from ...lora_core.data.lint import beside_loaded, look
from ...lora_core.data.sheet import sheet
from ...lora_core.importing.programs import Text, imported
from ...lora_core.importing.result import require_job
from ...lora_core.messages.errors import LoomError, Problem, message_of
from ...lora_core.messages.message import Message, Setting
from ..jobs.presets import PRESETS
from ..jobs.settings import automatic
from .desk import Desk, Order, picture_sets
from .fields import LEFT_OPEN, Field, changed, sections
from .files_tab import FilesTab
from .inputs import Answer, answering, in_rows, input_for
from .library import Library
from .names import SECTIONS, as_shown, label
from .pictures import stored
from .words import Words

TITLE, ELEMENT = "LoRA Loom", "lora_loom"
FIRST_PRESET = "concept"
IN_WORDS = {AS_SET: "tab.memory_as_set", MEASURE: "tab.memory_measure"}  # choices of memory that name no size
# What the line before a run says hangs on these.
PLANNED = ("data.folder", "data.trigger", "preset", "steps", "adapter.rank", "optimizer.name", "optimizer.lr", "method")
VARIANTS = '[[runs]]\nname = "rank 8"\nadapter = { rank = 8 }\n\n[[runs]]\nname = "rank 32"\nadapter = { rank = 32 }\n'


class Tab:
    """The page of a desk. `blocks()` makes it, as often as the host asks."""

    def __init__(self, desk: Desk):
        self.desk, self.words, self.library = desk, Words(desk.host.language()), Library(desk.host)
        self.asks_base = not desk.host.base
        self._inputs: dict[str, Any] = {}  # of a job, by config path

    def blocks(self, script: str = "") -> Any:
        """The page. `script`: JavaScript that runs once it is there, where the host loads none itself."""
        with gr.Blocks(analytics_enabled=False, title=TITLE) as page:
            with gr.Tabs(elem_id="lora_loom_tabs"):
                with gr.Tab(self._label("tab.train"), elem_id="lora_loom_tab_train"):
                    self._train()
                with gr.Tab(self._label("tab.runs"), elem_id="lora_loom_tab_runs"):
                    self._place("lora_loom_runs")
                with gr.Tab(self._label("tab.files"), elem_id="lora_loom_tab_files"):
                    FilesTab(self.desk, self.words, self.library, self._starts).draw()
            if script:
                page.load(None, None, None, **{_script_keyword(page.load): script})
        for component in page.blocks.values():  # the host keeps defaults by label, which two settings may share
            component.do_not_save_to_config = True
        return page

    def _place(self, element: str) -> None:
        """Left for js/, whose looks are its own: newer gradios would dress buttons and pictures in it as theirs."""
        plain = "apply_default_css" in inspect.signature(gr.HTML.__init__).parameters
        gr.HTML(self.words.place(element), **({"apply_default_css": False} if plain else {}))

    def _label(self, code: str) -> str:
        return self.words.label(code)

    # ---- training ----------------------------------------------------------------------------------------------------

    def _train(self) -> None:
        with gr.Row():
            with gr.Column():
                dropped, check = self._pictures()
                plan = gr.HTML(elem_id="lora_loom_plan")
            with gr.Column():
                self._first()
                start = gr.Button(self._label("tab.start"), variant="primary", elem_id="lora_loom_start")
                said = gr.HTML(elem_id="lora_loom_said")
        findings = gr.HTML(elem_id="lora_loom_seen")
        self._place("lora_loom_editor")
        self._place("lora_loom_panel")
        with gr.Accordion(self._label("tab.more"), open=False, elem_id="lora_loom_more"):
            self._sections()
        with gr.Accordion(self._label("tab.before"), open=False, elem_id="lora_loom_before"):
            self._tries()
        with gr.Accordion(self._label("tab.import"), open=False, elem_id="lora_loom_import"):
            self._import()
        taken = gr.Textbox(label="", elem_id="lora_loom_taken")  # js/ writes into it
        taken.change(self._settings_taken, [taken], self._values, queue=False)
        folder = self._inputs["data.folder"]
        dropped.change(self._received, [dropped], [folder, said], queue=False)
        for path in PLANNED:
            self._inputs[path].change(self._answering(self._planned), self._values, [plan], queue=False)
        check.click(self._answering(self._checked), self._values, [findings], queue=False)
        start.click(self._answering(self._started), self._values, [said], queue=False)

    @property
    def _values(self) -> list[Any]:
        return list(self._inputs.values())

    def _pictures(self) -> tuple[Any, Any]:
        """Where pictures come from; (the place to drop them, the button that looks at them)."""
        label = self._label
        dropped = gr.File(label=label("tab.pictures"), file_count="multiple", elem_id="lora_loom_pictures", height=150)
        self._inputs["data.folder"] = gr.Textbox(
            label=label("tab.folder"), info=label("tab.folder_info"), max_lines=1, elem_id="lora_loom_folder"
        )
        with gr.Row():
            check = gr.Button(label("tab.check"), size="sm", elem_id="lora_loom_check")
            gr.Button(label("tab.captions"), size="sm", elem_id="lora_loom_captions")
        return dropped, check

    def _first(self) -> None:
        """What everybody is asked."""
        label, inputs = self._label, self._inputs
        if self.asks_base:
            bases = list(self.desk.host.bases())
            inputs["base"] = gr.Dropdown(
                bases,
                value=bases[0] if bases else None,
                label=label("tab.base"),
                info=label("tab.base_info"),
                allow_custom_value=True,
                elem_id="lora_loom_base",
            )
        inputs["name"] = gr.Textbox("my_lora", label=label("tab.name"), max_lines=1, elem_id="lora_loom_name")
        inputs["data.trigger"] = gr.Textbox(
            label=label("tab.trigger"), info=label("tab.trigger_info"), max_lines=1, elem_id="lora_loom_trigger"
        )
        with gr.Row():
            inputs["preset"] = gr.Dropdown(
                [*PRESETS], value=FIRST_PRESET, label=label("tab.preset"), elem_id="lora_loom_preset"
            )
            inputs["steps"] = gr.Number(0, label=label("tab.steps"), precision=0, elem_id="lora_loom_steps")
        choices = [label(IN_WORDS[choice]) if choice in IN_WORDS else choice for choice in MEMORY]
        inputs["memory"] = gr.Dropdown(
            choices,
            value=choices[0],
            label=label("tab.memory"),
            info=label("tab.memory_info"),
            type="index",
            elem_id="lora_loom_memory",
        )
        inputs["samples.prompt"] = gr.Textbox(label=label("tab.prompt"), lines=2, elem_id="lora_loom_prompt")

    def _sections(self) -> None:
        """An accordion for each part of the config, with an input for each of its settings."""
        for section, fields in sections(self.asks_base).items():
            with gr.Accordion(self._label(SECTIONS[section]), open=False):
                for row in in_rows(fields):
                    with gr.Row():
                        self._inputs |= {field.path: self._input(field) for field in row}

    def _input(self, field: Field) -> Any:
        """The setting with its name, its sentence and its bounds; they are checked again when a run starts."""
        words = self.words
        texts = {
            "label": label(field, words.language),
            "info": words.of_settings(field.help),
            "elem_id": _element(field.path),
        }
        return input_for(field.kind, field.default, field.choices, texts, field.lines)

    def _tries(self) -> None:
        """What is tried before a run, and several runs at once: each is a job of its own, shown where runs are."""
        label = self._label
        with gr.Row():
            with gr.Column():
                steps = gr.Number(60, label=label("tab.test_steps"), precision=0, elem_id="lora_loom_test_steps")
                rate = gr.Button(label("tab.find_rate"), size="sm", elem_id="lora_loom_find_rate")
                measure = gr.Button(label("tab.measure"), size="sm", elem_id="lora_loom_measure")
            with gr.Column():
                variants = gr.Textbox(
                    VARIANTS,
                    label=label("tab.variants"),
                    info=label("tab.variants_info"),
                    lines=8,
                    elem_id="lora_loom_variants",
                )
                sweep = gr.Button(label("tab.sweep"), size="sm", elem_id="lora_loom_sweep")
        said = gr.HTML(elem_id="lora_loom_try_said")
        for button, more, work in (
            (rate, {"steps": steps}, "find-lr"),
            (measure, {}, "check"),
            (sweep, {"runs": variants}, "sweep"),
        ):
            self._starts(button, more, work, said)

    def _starts(self, button: Any, more: Mapping[str, Any], work: str, said: Any) -> None:
        """The button asks for a job of the kind `work`, with what else that asks."""

        def answer(values: Mapping[str, Any]) -> str:
            options = {name: values[f"more.{name}"] for name in more}
            return self._added(self.order_of(values, work, options))

        paths = [*self._inputs, *(f"more.{name}" for name in more)]
        button.click(self._answering(answer, paths), [*self._values, *more.values()], [said], queue=False)

    def _answering(self, answer: Answer, paths: Sequence[str] = ()) -> Callable[..., str]:
        """`answer`, called with the page's inputs by the paths of their settings, or by `paths`."""
        return answering(self.words, answer, paths or self._inputs)

    def order_of(self, values: Mapping[str, Any], work: str = "train", more: Mapping[str, Any] | None = None) -> Order:
        """What the page asks for; `memory` comes as the number of its choice, 0 steps are for the preset to say."""
        first: dict[str, Any] = {
            "data.folder": str(values["data.folder"] or "").strip(),
            "name": str(values["name"] or "").strip(),
            "data.trigger": str(values["data.trigger"] or "").strip(),
            "samples.prompt": str(values["samples.prompt"] or ""),
        }
        if self.asks_base:
            first["base"] = str(values["base"] or "").strip()
        if int(values["steps"] or 0) > 0:
            first["steps"] = int(values["steps"])
        if values["memory"]:
            first["memory"] = MEMORY[int(values["memory"])]
        return Order({**changed(values), **first}, str(values["preset"] or FIRST_PRESET), work=work, more=more or {})

    def _started(self, values: Mapping[str, Any]) -> str:
        return self._added(self.order_of(values))

    def _added(self, order: Order) -> str:
        """Starts the job or queues it, and says which. Raises LoomError."""
        before = self.desk.add(order)
        return self.words.sentence(Message.of("tab.queued", count=before) if before else Message.of("tab.started"))

    def _planned(self, values: Mapping[str, Any]) -> str:
        """What will happen, before anything does: pictures, steps, rank, learning rate. Raises LoomError."""
        order = self.order_of(values)
        if order.needs_pictures and not order.settings["data.folder"]:
            return ""
        sets = picture_sets(order.settings, self.desk.runs_root())
        pictures = sets.opened(needed=order.needs_pictures).pictures
        chosen = {**automatic(order.preset, len(pictures), order.settings), **order.settings}
        rate = f"{chosen['optimizer.lr']:g}" if chosen["optimizer.lr"] else "auto"
        figures = {"steps": chosen["steps"], "rank": chosen["adapter.rank"], "lr": rate}
        if not pictures:
            return self.words.sentence(Message.of("tab.plan_prompts", **figures))
        captioned = sum(any(caption.text.strip() for caption in picture.captions) for picture in pictures)
        return self.words.sentence(Message.of("tab.plan", pictures=len(pictures), captioned=captioned, **figures))

    def _checked(self, values: Mapping[str, Any]) -> str:
        """What a good trainer would notice in the pictures, on one sheet and in words. Raises LoomError."""
        order = self.order_of(values)
        if not order.settings["data.folder"]:
            raise LoomError("upload.none", field="data.folder")
        default = DataConfig()
        size = int(order.settings.get("data.resolution", 0)) or default.resolution
        step = int(order.settings.get("data.bucket_step_px", default.bucket_step_px))
        sets = self.desk.shown_sets(order.settings)
        sized = sets.changed(resolution=size, bucket_step_px=step)
        report = beside_loaded(look(sized.opened(), None, lambda done, of: None), sets.opened())
        return self.words.report(report.messages(), sheet(report, names=as_shown))

    def _received(self, files: Any) -> tuple[Any, str]:
        """Dropped files into a folder of their own, whose path goes into the field for it."""
        names = [str(getattr(file, "name", file)) for file in files or ()]
        if not names:
            return gr.update(), ""
        try:
            read = [(Path(name).name, Path(name).read_bytes()) for name in names]
            folder = stored(read, self.desk.host.data_root())
        except (Problem, OSError) as error:
            return gr.update(), self.words.sentence(message_of(error), "error")
        return str(folder), ""

    # ---- settings of other trainers ----------------------------------------------------------------------------------

    def _import(self) -> None:
        """A configuration of another trainer, pasted or as files, into the page's fields."""
        label = self._label
        with gr.Row():
            text = gr.Textbox(
                label=label("tab.config"), info=label("tab.config_info"), lines=6, elem_id="lora_loom_config"
            )
            files = gr.File(
                label=label("tab.config_files"), file_count="multiple", elem_id="lora_loom_config_files", height=150
            )
        take = gr.Button(label("tab.take_over"), size="sm", elem_id="lora_loom_take_over")
        report = gr.HTML(elem_id="lora_loom_import_report")
        take.click(self._taken_over, [text, files], [report, *self._values], queue=False)

    def _taken_over(self, text: str, files: Any) -> list[Any]:
        """What became of each setting, and the fields with their new values."""
        paths = [Path(str(getattr(file, "name", file))) for file in files or ()]
        try:
            texts = [Text("text", text)] if (text or "").strip() else []
            texts += [Text(path.name, decoded(path.read_bytes())[0]) for path in paths]
            result = imported(texts, lambda name: None)
            require_job(result, Path())
        except (Problem, OSError) as error:
            return [self.words.sentence(message_of(error), "error"), *(gr.update() for _ in self._inputs)]
        values, lines = result.paths(), result.messages()
        beside = [path for path in values if path not in self._inputs]
        if beside:
            lines.insert(1, Message.of("tab.left_out", settings=[Setting(path) for path in beside]))
        return [self.words.report(lines), *(self._update(path, values) for path in self._inputs)]

    def _settings_taken(self, text: str) -> list[Any]:
        """The fields with what a try has found out, as js/ hands it over; the others as they are."""
        try:
            result = json.loads(text or "{}")
        except ValueError:
            result = {}
        values = result if isinstance(result, dict) else {}
        return [self._update(path, values) if path in values else gr.update() for path in self._inputs]

    def _update(self, path: str, values: Mapping[str, Any]) -> Any:
        """A field after an import: with its new value, else as the program would have it, the first rows as they were."""
        if path == "memory":
            return gr.update()
        if path in values:
            return gr.update(value=values[path])
        known = {field.path: field for fields in sections(self.asks_base).values() for field in fields}
        return gr.update(value=known[path].default) if path in known and path not in LEFT_OPEN else gr.update()


def _element(path: str) -> str:
    return f"lora_loom_{path.replace('.', '_')}"


def _script_keyword(event: Callable[..., Any]) -> str:
    """What this gradio calls the JavaScript of an event."""
    return "js" if "js" in inspect.signature(event).parameters else "_js"
