"""A setting inside a sentence is called as the reader's door shows it: the widget of a node, the label of a page's field, the key of a job file."""

import ast
import re

import pytest
from lora_loom.lora_core.config import TrainConfig, as_dict
from lora_loom.lora_core.messages.message import (
    LANGUAGES,
    NUMBER,
    PLACEHOLDER,
    SETTING,
    Message,
    Setting,
    as_in_a_job,
    table,
)
from lora_loom.nodes.host.access import shown as nodes
from lora_loom.nodes.page import names as page

# Sentences of the terminal about job files themselves.
OF_JOB_FILES = {"cli.set"}
# Fields that only a job file or a command line has: no node and no page asks for them.
OF_THE_TERMINAL = {"--package", 
    "--listen", "--out", "--password", "--port", "--repo", "--set", "--space", "accelerate", "adapter_config.json", "base_config",
    "header", "offload", "recipe", "sample", "score", "sets", "storage", "string_to_param", "text_encoder.clip_skip", "trackers",
}  # fmt: skip
# Fields of the page's own forms and requests.
OF_THE_PAGE = {"embed", "first", "runs", "save", "second", "star", "work"}


def paths(values, above=""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from paths(value, f"{above}{name}.")
        else:
            yield f"{above}{name}"


PATHS = frozenset(paths(as_dict(TrainConfig(base="x"))))
SECTIONS = "|".join(sorted({path.partition(".")[0] for path in PATHS if "." in path}))
A_PATH = re.compile(rf"(?<![\w./{{-])(?:{SECTIONS})\.[a-z_0-9]+", re.ASCII)
LEAVES = {path.rpartition(".")[2] for path in PATHS}
A_KEY = re.compile(rf"(?<![\w-])(?:{'|'.join(sorted(leaf for leaf in LEAVES if '_' in leaf))})(?!\w)", re.ASCII)


def settings_in(code):
    return set(SETTING.findall(table("en")[code]))


@pytest.fixture(scope="module")
def fields(root):
    """Every field the code gives a message, and every setting it names in one."""
    out = set()
    for part in ("lora_core", "convert", "nodes"):
        for file in (root / part).rglob("*.py"):
            for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(call, ast.Call):
                    texts = [k.value for k in call.keywords if k.arg == "field"]
                    texts += call.args[:1] if getattr(call.func, "id", "") in ("Setting", "plain_errors") else []
                    out |= {one.value for one in texts if isinstance(one, ast.Constant) and isinstance(one.value, str)}
    assert len(out) > 100
    return out - {""}


def test_no_sentence_names_a_key_of_a_job_file_where_a_door_has_a_name():
    for language in LANGUAGES:
        for code, text in table(language).items():
            if code not in OF_JOB_FILES:
                bare = SETTING.sub("", text)
                assert A_PATH.findall(bare) + A_KEY.findall(PLACEHOLDER.sub("", bare)) == [], f"{language} {code}"


def test_settings_in_sentences_are_settings_and_the_same_in_every_language():
    named = {code: settings_in(code) for code in table("en")}
    assert sum(map(bool, named.values())) > 50
    assert set().union(*named.values()) - PATHS == set()
    for language in LANGUAGES:
        for code, text in table(language).items():
            assert set(SETTING.findall(text)) == named[code], f"{language} {code}"


def test_every_field_has_a_name_in_a_graph(fields):
    known = nodes.table("en")
    assert fields - known.keys() - OF_THE_TERMINAL - OF_THE_PAGE == set()
    assert OF_THE_TERMINAL & known.keys() == set(), "a node has a widget for it now"


def doors():
    """(name of the door, what it calls settings, whether a name may stand for a key of a job file)."""
    yield "a graph", nodes.as_shown, nodes.table
    for node in ("LoraLoomTrainLora", "LoraLoomTrainEmbedding", "LoraLoomCheckDataset"):
        yield node, nodes.on(node), nodes.table
    yield "the page", page.as_shown, page.table


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_path_of_a_job_file_reaches_whoever_has_another_name_for_it(language):
    for door, names, known in doors():
        for code, text in table(language).items():
            values = {
                place: "7" for place in [*PLACEHOLDER.findall(text), *(count for count, *_ in NUMBER.findall(text))]
            }
            for path in settings_in(code) | {"optimizer.lr"}:
                told = Message(code, path, values).text(language, names)
                expected = names(path, language)
                assert told.startswith(f"{expected}: "), f"{door} {code}"
                left = {one for one in A_PATH.findall(told) if one in known(language)}
                assert left == set() or code in OF_JOB_FILES, f"{door} {code}: {told}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_name_is_a_label_and_no_key(language):
    for door, names, known in doors():
        for path in known(language):
            told = names(path, language)
            assert told, f"{door} {path}"
            assert not A_PATH.search(told), f"{door} {path}: {told}"
            assert set(told) & set("{}[]|\n") == set(), f"{door} {path}: {told}"


def test_a_node_calls_its_own_widgets_by_their_label_and_others_with_the_title_of_their_node():
    told = Message.of("setting.not_finite", field="optimizer.lr", value=float("nan"))
    assert told.text(names=nodes.on("LoraLoomTrainLora")).startswith("learning_rate: found nan")
    told = told.about("text_encoder.lr")
    assert told.text(names=nodes.on("LoraLoomTrainLora")).startswith("lr (Text Encoder Settings): ")
    assert told.text(names=nodes.on("LoraLoomTextEncoderSettings")).startswith("lr: ")
    assert told.text(names=page.as_shown).startswith("lr (Text encoders): ")
    assert told.text("zh", nodes.on("LoraLoomTextEncoderSettings")).startswith("学习率: ")
    assert told.text(names=as_in_a_job) == str(told)
    assert str(told).startswith("text_encoder.lr: ")


def test_what_no_widget_is_for_says_which_node_sets_it():
    assert nodes.as_shown("samples.width_px", "en") == "width_px (Import Settings)"
    assert nodes.as_shown("text_encoder.train", "en") == "Text Encoder Settings"
    assert nodes.as_shown("data.allow_empty_captions", "en") == "allow_empty_captions (Dataset Options)"


def test_settings_in_lists_are_named_too():
    told = Message.of("import.left_out", settings=[Setting("data.trigger"), Setting("optimizer.lr")])
    assert "trigger (Load Training Folder), learning_rate (Train LoRA)" in told.text(names=nodes.as_shown)
