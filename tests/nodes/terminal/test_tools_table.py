"""One table says what the tools for files take: the terminal's options, the page's forms and the routes follow from it."""

import argparse
import importlib

import pytest
from lora_loom.lora_core.messages.message import LANGUAGES, table
from lora_loom.nodes.jobs.options import TOOLS
from lora_loom.nodes.jobs.tools import ACTS
from lora_loom.nodes.page.bench import options_in
from lora_loom.nodes.terminal import COMMANDS


def parser(name):
    made = argparse.ArgumentParser()
    importlib.import_module(f"lora_loom.nodes.terminal.{name}").add_arguments(made)
    return made


def test_every_tool_is_a_command_and_does_something():
    assert set(TOOLS) <= set(COMMANDS)
    assert set(TOOLS) - set(ACTS) == {"inspect"}


@pytest.mark.parametrize("name", TOOLS)
def test_the_terminal_takes_what_the_table_says(name):
    actions = {action.dest: action for action in parser(name)._actions}
    for option in TOOLS[name].options:
        action = actions[option.name]
        assert tuple(action.choices or ()) == tuple(option.choices)
        assert action.required == option.required
    positional = [action.dest for action in parser(name)._actions if not action.option_strings]
    assert positional == [files.name for files in TOOLS[name].files]


@pytest.mark.parametrize("name", TOOLS)
def test_a_page_that_says_nothing_gives_what_the_terminal_gives(name):
    needed = [file.name for file in TOOLS[name].files]
    required = [
        word for option in TOOLS[name].options if option.required for word in (f"--{option.name}", str(option.starts))
    ]
    out = ["--out", "x"] if name in ("merge", "extract", "bake") else []
    terminal = vars(parser(name).parse_args([*needed, *required, *out]))
    page = options_in(TOOLS[name], {})
    assert {key: list(v) if isinstance(v, tuple) else v for key, v in page.items()} == {
        key: terminal[key] for key in page
    }


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_option_has_its_name_and_its_sentence(language):
    texts = table(language)
    for tool in TOOLS.values():
        codes = [
            tool.title,
            tool.about,
            *(code for part in (*tool.files, *tool.options) for code in (part.label, part.about)),
        ]
        assert [code for code in codes if not texts.get(code)] == []
