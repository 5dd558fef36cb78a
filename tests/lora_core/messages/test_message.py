import json
from pathlib import Path

import pytest
from lora_loom.convert import FormatError
from lora_loom.lora_core.messages import message as messages
from lora_loom.lora_core.messages.errors import LoomError, Problem, message_of
from lora_loom.lora_core.messages.message import MOST_CHARACTERS, NUMBER, Message, Setting


@pytest.fixture
def sentences(monkeypatch):
    tables = {
        "en": {
            "rank": "{rank} is larger than {layer} allows.",
            "about": "{about}: {error}",
            "use": "use {option}.",
            "all": "{things}",
        },
        "ja": {
            "rank": "{layer} には {rank} は大きすぎます。",
            "about": "{about}：{error}",
            "use": "{option} を使う。",
            "all": "{things}",
        },
    }
    monkeypatch.setattr(messages, "table", tables.__getitem__)
    return tables


def test_a_message_is_the_sentence_of_its_code_after_its_field(sentences):
    message = Message.of("rank", field="adapter.rank", rank=64, layer="q")
    assert str(message) == "adapter.rank: 64 is larger than q allows."
    assert message.text("ja") == "adapter.rank: q には 64 は大きすぎます。"


def test_a_message_inside_a_message_is_said_in_the_same_language(sentences):
    inner = LoomError("rank", rank=64, layer="q")
    outer = Message.of("about", about="a.safetensors", error=inner)
    assert outer.text("ja") == "a.safetensors：q には 64 は大きすぎます。"
    assert str(Message.of("all", things=[inner, inner])) == "; ".join([str(inner)] * 2)
    assert str(Message.of("all", things=("a", "b"))) == "a, b"


def test_a_door_puts_its_own_names_of_settings_in_place(sentences):
    sentences["en"]["lower"] = "lower {@optimizer.lr} or {option}."
    message = Message.of("about", field="family", about="a", error=Message.of("use", option=Setting("family")))
    lower = Message.of("lower", option=[Setting("family"), "x"])

    def names(name, language):
        return f"{language}<{name}>"

    assert str(message) == "family: a: use family."
    assert str(lower) == "lower optimizer.lr or family, x."
    assert message.text("ja", names) == "ja<family>: a：ja<family> を使う。"
    assert lower.text("en", names) == "lower en<optimizer.lr> or en<family>, x."
    assert lower.as_json(names)["text"] == lower.text("en", names)
    assert lower.as_json()["values"]["option"] == [{"setting": "family"}, "x"]


def test_what_stands_in_a_place_is_no_setting(sentences):
    assert str(Message.of("use", option="{@optimizer.lr}")) == "use {@optimizer.lr}."


def test_a_message_is_json_and_bears_its_english(sentences):
    message = Message.of("about", field="x", about=Path("a") / "b", error=Message.of("use", option=Setting("family")))
    told = json.loads(json.dumps(message.as_json()))
    inner = {"code": "use", "field": "", "values": {"option": {"setting": "family"}}}
    values = {"about": str(Path("a") / "b"), "error": inner}
    assert told == {"code": "about", "field": "x", "values": values, "text": str(message)}


@pytest.mark.parametrize(("value", "text"), [
    (3, "3"), (0.5, "0.5"), ((3, 4), "(3, 4)"), ([], ""), (["a"], "a"), ({"a": 1, "b": 2}, "a, b"), (Path("x"), "x"), (ValueError("bad"), "bad"),
    (None, "None"),
])  # fmt: skip
def test_values_of_every_kind_print_as_python_prints_them(sentences, value, text):
    message = Message.of("all", things=value)
    assert str(message) == text
    json.dumps(message.as_json())


def test_a_code_without_a_sentence_and_a_missing_value_are_found_at_once():
    with pytest.raises(KeyError, match="no.such"):
        LoomError("no.such")
    with pytest.raises(KeyError, match="layer"):
        LoomError("lora.unknown_layer")


def test_an_error_prints_as_its_sentence_and_keeps_its_message():
    error = FormatError("rank.unusable", field="approximate", rank=0)
    assert str(error) == "approximate: 0 is not a rank; give 1 or more."
    assert (error.message.code, error.message.field, error.message.values) == (
        "rank.unusable",
        "approximate",
        {"rank": 0},
    )
    assert isinstance(error, ValueError)
    assert str(LoomError(error.message)) == str(error)


def test_foreign_errors_are_told_by_their_kind_and_memory_by_what_to_do():
    class OutOfMemoryError(RuntimeError):
        pass

    assert str(message_of(KeyError("x"))) == "KeyError: 'x'"
    assert str(message_of(OutOfMemoryError("CUDA"))).startswith("batch_size: there is not enough memory")
    assert message_of(Problem("file.empty")) == Message("file.empty")
    assert len(str(message_of(ValueError("x" * 10**6)))) < 2000


@pytest.mark.parametrize(
    ("count", "text"),
    [(1, "1 caption is cut"), ("1", "1 caption is cut"), (0, "0 captions are cut"), (2, "2 captions are cut")],
)
def test_a_sentence_speaks_of_one_thing_and_of_several(sentences, count, text):
    sentences["en"]["cut"] = "{count} [count:caption is|captions are] cut"
    assert str(Message.of("cut", count=count)) == text


def test_what_stands_in_a_sentence_is_not_read_as_one(sentences):
    assert str(Message.of("use", option="[count:a|b] {option}")) == "use [count:a|b] {option}."


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.12345678901234567, "0.123"),
        (4518.812345678901, "4520"),
        (1.2345678e-05, "1.2345678e-05"),
        (0.0002, "0.0002"),
        (float("nan"), "nan"),
    ],
)
def test_a_number_that_was_computed_is_told_with_three_digits_one_that_was_given_as_it_is(sentences, number, text):
    assert str(Message.of("use", option=number)) == f"use {text}."


def test_every_choice_between_one_and_several_hangs_on_a_value_of_its_sentence():
    english = messages.table("en")
    bare = {code for code, text in english.items() if NUMBER.search(text)}
    assert len(bare) > 60
    for code in bare:
        text = english[code]
        assert {m[1] for m in NUMBER.finditer(text)} <= set(messages.PLACEHOLDER.findall(text)), code
    others = [
        code
        for language in ("zh", "ko", "ja")
        for code, text in messages.table(language).items()
        if NUMBER.search(text)
    ]
    assert others == []


def test_no_value_makes_a_sentence_long_or_breaks_its_line():
    long = Message.of(
        "setting.choice", field="a\nb" * MOST_CHARACTERS, value="x\n" * 10**6, allowed=["y" * 500] * 10**5
    )
    assert len(str(long)) < 8 * MOST_CHARACTERS
    assert "\n" not in str(long)
    assert str(long).count("…") == 3
    assert len(str(Message.of("setting.range", value=10**20_000, low="0", high="1"))) < 200
    kept = ["abc"] * 3
    assert Message.of("setting.choice", value="x", allowed=kept).values["allowed"] == tuple(kept)


@pytest.mark.parametrize(("value", "told"), [(float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "-inf")])
def test_a_value_that_is_no_number_travels_as_a_word(value, told):
    """JSON has none: a page would get no answer, and a run folder no record of how the run ended."""
    data = Message.of("validation.not_finite", step=3, loss=value).as_json()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["values"]["loss"] == told
    assert told in data["text"]
