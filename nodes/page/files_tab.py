"""The part of the page for files: a tab for each tool of the terminal, and ZipLoRA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from ...lora_core.messages.message import Message
from ..jobs.options import TOOLS, Files, Option, Tool
from .bench import worked
from .desk import Desk
from .inputs import answering, in_rows, input_for
from .library import Library
from .words import Words

ZIPPED = (
    Files("first", "tab.zip_first", "tab.zip_first_about"),
    Files("second", "tab.zip_second", "tab.zip_second_about"),
)
Starts = Callable[[Any, Mapping[str, Any], str, Any], None]  # (button, its inputs, kind of job, where it is said)


class FilesTab:
    """Drawn into the page of a desk. `starts`: makes a button start a job of the page, for what learns on a lent model."""

    def __init__(self, desk: Desk, words: Words, library: Library, starts: Starts):
        self._desk, self._words, self._library, self._starts = desk, words, library, starts
        self._lists: list[tuple[Any, str]] = []  # inputs that list files, and of which role

    def draw(self) -> None:
        """A tab for each tool, on what the host lists or anything by its path."""
        again = gr.Button(self._words.label("tab.refresh"), size="sm", elem_id="lora_loom_refresh")
        with gr.Tabs(elem_id="lora_loom_tools"):
            for tool in TOOLS.values():
                with gr.Tab(self._words.label(tool.title), elem_id=f"lora_loom_tool_{tool.name}"):
                    self._tool(tool)
            with gr.Tab(self._words.label("tab.zip"), elem_id="lora_loom_tool_zip"):
                self._zip()
        again.click(self._listed, [], [component for component, _ in self._lists], queue=False)

    def _listed(self) -> Any:
        """The lists of files as they are now."""
        updates = [gr.update(choices=self._library.names(role)) for _, role in self._lists]
        return updates if len(updates) != 1 else updates[0]

    def _file_input(self, files: Files, element: str, several: bool = False) -> Any:
        """A file of a list or by its path; `several`: lines of text, to which a list adds: older gradios take no words of their own beside choices."""
        label = self._words.label
        about = {"label": label(files.label), "info": label(files.about)}
        lines = gr.Textbox("", lines=3, elem_id=element, **about) if several else None
        chosen = gr.Dropdown(
            self._library.names(files.role),
            value=None,
            allow_custom_value=True,
            elem_id=f"{element}_add" if several else element,
            **({"label": label("tool.add")} if several else about),
        )
        self._lists.append((chosen, files.role))
        if lines is None:
            return chosen
        chosen.change(_with_line, [lines, chosen], [lines], queue=False)
        return lines

    def _tool(self, tool: Tool) -> None:
        """Made of the table the terminal's options are made of."""
        gr.HTML(self._words.sentence(Message.of(tool.about)))
        inputs = {
            files.name: self._file_input(files, f"lora_loom_{tool.name}_{files.name}", files.many and not tool.each)
            for files in tool.files
        }
        for row in in_rows(tool.options):
            with gr.Row():
                inputs |= {option.name: self._option(option, tool.name) for option in row}
        button = gr.Button(self._words.label(tool.title), variant="primary", elem_id=f"lora_loom_{tool.name}")
        report = gr.HTML(elem_id=f"lora_loom_{tool.name}_report")

        def answer(values: Mapping[str, Any]) -> str:
            return self._words.report(worked(self._desk, tool.name, values).lines)

        button.click(answering(self._words, answer, list(inputs)), list(inputs.values()), [report], queue=False)

    def _option(self, option: Option, tool: str) -> Any:
        texts = {
            "label": self._words.label(option.label),
            "info": self._words.label(option.about),
            "elem_id": f"lora_loom_{tool}_{option.name}",
        }
        if option.many:
            return gr.Textbox("", lines=2, **texts)
        return input_for(option.kind, option.starts or option.default, option.choices, texts)

    def _zip(self) -> None:
        """ZipLoRA, which learns on the model of a run: its pictures are those of the first tab and of a second folder."""
        label = self._words.label
        gr.HTML(self._words.sentence(Message.of("tab.zip_about")))
        first, second = (self._file_input(files, f"lora_loom_zip_{files.name}") for files in ZIPPED)
        folder = gr.Textbox(
            label=label("tab.zip_folder"),
            info=label("tab.zip_folder_about"),
            max_lines=1,
            elem_id="lora_loom_zip_folder",
        )
        with gr.Row():
            steps = gr.Number(100, label=label("tab.zip_steps"), precision=0, elem_id="lora_loom_zip_steps")
            similarity = gr.Number(0.01, label=label("tab.zip_similarity"), elem_id="lora_loom_zip_similarity")
        button = gr.Button(label("tab.zip"), variant="primary", elem_id="lora_loom_zip")
        said = gr.HTML(elem_id="lora_loom_zip_report")
        more = {"first": first, "second": second, "folder": folder, "steps": steps, "similarity": similarity}
        self._starts(button, more, "zip", said)


def _with_line(text: str, name: str | None) -> str:
    """The text with one more line; as it is where nothing is chosen."""
    return "\n".join([*filter(None, (text or "").split("\n")), name]) if name else text or ""
