"""Which program a configuration is of, and how it is read: one function for files, one for a text that somebody pasted."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath

from ..messages.errors import LoomError
from ..messages.message import Message
from . import ai_toolkit, diffusers, kohya, onetrainer, simpletuner
from .result import Configuration, Imported, carried
from .rows import Row, Settings, Value
from .texts import as_json, as_toml, as_yaml, options_of, require_bounded, words_of


@dataclasses.dataclass(frozen=True)
class Text:
    """One text of a configuration, and what it is called."""

    name: str
    text: str


Reader = Callable[[str], "str | None"]  # the text of a file that a configuration names, or None


@dataclasses.dataclass(frozen=True)
class Program:
    """A program whose configurations are read, with its tables."""

    title: str
    rows: Mapping[str, Row]
    set_rows: Mapping[str, Row]


PROGRAMS = {
    name: Program(module.TITLE, module.ROWS, module.SET_ROWS)
    for name, module in (
        ("diffusers", diffusers),
        ("kohya", kohya),
        ("onetrainer", onetrainer),
        ("ai_toolkit", ai_toolkit),
        ("simpletuner", simpletuner),
    )
}


def imported(texts: Sequence[Text], read: Reader = lambda path: None) -> Imported:
    """The job that one configuration, with the files that go with it, describes. Raises LoomError where it is of no program we know."""
    sources = [_source(Text(text.name, require_bounded(text.text, text.name))) for text in texts if text.text.strip()]
    if not sources:
        raise LoomError("import.empty")
    main = next((source for source in sources if source.program), None)
    alone = main is None and sources[0].part in PARTS
    if alone:  # folders without a configuration, whose program's defaults are then not known either
        main = Source(sources[0].name, {}, PARTS[sources[0].part])
    if main is None:
        raise LoomError("import.unknown", file=sources[0].name, programs=[p.title for p in PROGRAMS.values()])
    beside = [source for source in sources if source is not main]
    others = {source.part: source.value for source in beside if source.part}
    unused = [source.name for source in beside if not source.part]
    configuration = READ[main.program](main, others, read)
    notes = [*configuration.notes, *(Message.of("import.unused", file=name) for name in unused)]
    program = PROGRAMS[main.program]
    rows = (
        {name: dataclasses.replace(row, default=None) for name, row in program.rows.items()} if alone else program.rows
    )
    return carried(program.title, rows, program.set_rows, dataclasses.replace(configuration, notes=notes))


@dataclasses.dataclass(frozen=True)
class Source:
    """A text that was read. `program`: whose main configuration it is; `part`: what it is beside one (datasets, concepts, backends, samples, lycoris)."""

    name: str
    value: Value
    program: str = ""
    part: str = ""
    script: str = ""


ENV = {
    "MODEL_FAMILY",
    "MODEL_TYPE",
    "DATA_BACKEND_CONFIG",
    "DATALOADER_CONFIG",
    "TRAINING_NUM_PROCESSES",
}  # one of them is in every env of SimpleTuner


def _source(text: Text) -> Source:
    start = text.text.lstrip()[:1]
    if start == "{":
        return _of_json(text.name, as_json(text.text, text.name))
    table = _toml(text)
    if not table and re.match(r"\s*\[\[?[ \t]*[A-Za-z_]", text.text):
        return _of_table(text.name, as_toml(text.text, text.name))  # which says what is wrong with it
    if start == "[" and not table:
        return _of_json(text.name, as_json(text.text, text.name))
    command, variables = ([], {}) if table else words_of(text.text, text.name)
    if command:
        return _of_command(text.name, command)
    if table:
        return _of_table(text.name, table)
    if ENV & variables.keys():
        return Source(text.name, simpletuner.of_variables(variables), "simpletuner")
    if re.match(r"\s*--[A-Za-z]", text.text):  # the options of a command without it
        return _of_options(text.name, text.text)
    value = as_yaml(text.text, text.name)
    if isinstance(value, Mapping):
        return _of_json(text.name, value)
    raise LoomError("import.unknown", file=text.name, programs=[p.title for p in PROGRAMS.values()])


def _toml(text: Text) -> Settings:
    """The text as TOML; nothing where it is none."""
    try:
        return as_toml(text.text, text.name)
    except LoomError:
        return {}


def _of_command(name: str, words: list[str]) -> Source:
    script, settings = options_of(words)
    if script in kohya.SCRIPTS:
        return Source(name, settings, "kohya", script=script)
    if diffusers.SCRIPT.fullmatch(script):
        return Source(name, settings, "diffusers", script=script)
    raise LoomError("import.script", file=name, script=script, programs=[p.title for p in PROGRAMS.values()])


def _of_options(name: str, text: str) -> Source:
    words, _ = words_of(f"train_.py {' '.join(text.split())}", name)
    _, settings = options_of(words)
    ours = sum(key in kohya.ROWS or key in kohya.SET_ROWS for key in settings)
    theirs = sum(key in diffusers.ROWS for key in settings)
    program = "kohya" if ours > theirs else "diffusers"
    return Source(
        name,
        settings,
        program,
        script="train_dreambooth_lora_sdxl_advanced.py" if program == "diffusers" else "train_network.py",
    )


def _of_json(name: str, value: Value) -> Source:
    """A value of JSON or YAML, by the keys it has."""
    if isinstance(value, list):
        first = value[0] if value and isinstance(value[0], Mapping) else {}
        if "prompt" in first:
            return Source(name, value, part="samples")
        concepts = (
            isinstance(first.get("image"), Mapping)
            or isinstance(first.get("text"), Mapping)
            or ("path" in first and "id" not in first)
        )
        return Source(name, value, part="concepts" if concepts else "backends")
    if not isinstance(value, Mapping):
        raise LoomError("import.unknown", file=name, programs=[p.title for p in PROGRAMS.values()])
    keys = {str(key).lstrip("-") for key in value}
    if "config" in keys and "job" in keys or "process" in keys:
        return Source(name, value, "ai_toolkit")
    if keys & {"training_method", "base_model_name", "output_model_destination", "concept_file_name"}:
        return Source(name, value, "onetrainer")
    if keys & {"model_family", "data_backend_config"} or any(str(key).startswith("--") for key in value):
        return Source(name, {str(key).lstrip("-"): inner for key, inner in value.items()}, "simpletuner")
    if "algo" in keys:
        return Source(name, value, part="lycoris")
    return _of_table(name, value)


def _of_table(name: str, value: Settings) -> Source:
    """A TOML, by the keys it has: kohya's dataset config, SimpleTuner's config, else kohya's config."""
    if "datasets" in value and not any(key in kohya.ROWS for key in value):
        return Source(name, value, part="datasets")
    plain: dict[str, Value] = {}
    for key, inner in value.items():  # kohya's tools take no notice of sections
        if isinstance(inner, Mapping) and key not in ("general", "datasets"):
            plain |= inner
        else:
            plain[key] = inner
    if {"model_family", "data_backend_config"} & plain.keys():
        return Source(name, plain, "simpletuner")
    hits = sum(key in kohya.ROWS or key in kohya.SET_ROWS for key in plain)
    if hits < max(1, len(plain) // 3):
        raise LoomError("import.unknown", file=name, programs=[p.title for p in PROGRAMS.values()])
    return Source(
        name, plain, "kohya", script="train_textual_inversion.py" if "token_string" in plain else "train_network.py"
    )


def _named(settings: Settings, key: str, read: Reader) -> Text | None:
    """The text of the file that a setting names, where it can be read."""
    path = settings.get(key)
    if not isinstance(path, str) or not path:
        return None
    text = read(path)
    last = PureWindowsPath(PurePosixPath(path).name).name
    return None if text is None else Text(last, require_bounded(text, last))


PARTS = {
    "datasets": "kohya",
    "concepts": "onetrainer",
    "backends": "simpletuner",
}  # lists of folders, and whose they are
Others = Mapping[str, Value]


def _kohya(main: Source, others: Others, read: Reader) -> Configuration:
    settings = main.value if isinstance(main.value, Mapping) else {}
    notes = []
    config = _named(settings, "config_file", read)
    if config is not None:
        value = _source(config).value
        settings = {
            **(value if isinstance(value, Mapping) else {}),
            **{k: v for k, v in settings.items() if k != "config_file"},
        }
    elif settings.get("config_file"):
        notes.append(Message.of("import.file_missing", key="config_file", file=str(settings["config_file"])))
    datasets = others.get("datasets")
    if datasets is None and (named := _named(settings, "dataset_config", read)) is not None:
        datasets = as_json(named.text, named.name) if named.name.endswith(".json") else as_toml(named.text, named.name)
    elif datasets is None and settings.get("dataset_config"):
        notes.append(Message.of("import.file_missing", key="dataset_config", file=str(settings["dataset_config"])))
    if datasets is None and "datasets" in settings:
        datasets = {key: settings[key] for key in ("general", "datasets") if key in settings}
        settings = {key: value for key, value in settings.items() if key not in ("general", "datasets")}
    configuration = kohya.configuration_of(settings, datasets if isinstance(datasets, Mapping) else None, main.script)
    prompts = _named(settings, "sample_prompts", read)
    if prompts is not None and prompts.name.endswith(".txt"):
        configuration = kohya.with_prompts(configuration, prompts.text)
    elif settings.get("sample_prompts"):
        notes.append(Message.of("import.file_missing", key="sample_prompts", file=str(settings["sample_prompts"])))
        configuration = dataclasses.replace(
            configuration,
            settings={key: value for key, value in configuration.settings.items() if key != "sample_prompts"},
        )
    return dataclasses.replace(configuration, notes=notes)


def _diffusers(main: Source, others: Others, read: Reader) -> Configuration:
    return diffusers.configuration_of(main.value if isinstance(main.value, Mapping) else {}, main.script)


def _onetrainer(main: Source, others: Others, read: Reader) -> Configuration:
    config = main.value if isinstance(main.value, Mapping) else {}
    notes = []
    lists: dict[str, Value] = {}
    for key, part in (("concept_file_name", "concepts"), ("sample_definition_file_name", "samples")):
        lists[part] = others.get(part)
        if lists[part] is None and (named := _named(config, key, read)) is not None:
            lists[part] = as_json(named.text, named.name)
        elif lists[part] is None and config.get(key) and not config.get(part):
            notes.append(Message.of("import.file_missing", key=key, file=str(config[key])))
    return dataclasses.replace(onetrainer.configuration_of(config, lists["concepts"], lists["samples"]), notes=notes)


def _ai_toolkit(main: Source, others: Others, read: Reader) -> Configuration:
    return ai_toolkit.configuration_of(main.value if isinstance(main.value, Mapping) else {})


def _simpletuner(main: Source, others: Others, read: Reader) -> Configuration:
    config = main.value if isinstance(main.value, Mapping) else {}
    notes = []
    lists: dict[str, Value] = {}
    for key, part in (("data_backend_config", "backends"), ("lycoris_config", "lycoris")):
        lists[part] = others.get(part)
        if lists[part] is None and (named := _named(config, key, read)) is not None:
            lists[part] = as_json(named.text, named.name)
        elif lists[part] is None and config.get(key):
            notes.append(Message.of("import.file_missing", key=key, file=str(config[key])))
    return dataclasses.replace(simpletuner.configuration_of(config, lists["backends"], lists["lycoris"]), notes=notes)


READ: Mapping[str, Callable[[Source, Others, Reader], Configuration]] = {
    "diffusers": _diffusers,
    "kohya": _kohya,
    "onetrainer": _onetrainer,
    "ai_toolkit": _ai_toolkit,
    "simpletuner": _simpletuner,
}
