"""The card that WebUIs show beside a LoRA: ours fills what is empty, and what the user wrote stays."""

import json

import pytest
from lora_loom.convert import FormatError
from lora_loom.convert.card import card, merged
from lora_loom.convert.files.jobs import write_card

OURS = card("sdxl", ("zog", "red hat"), "made of clay", 0.8, "blurry")


def test_a_card_has_the_keys_that_a1111_writes():
    assert OURS == {
        "description": "made of clay", "sd version": "SDXL", "activation text": "zog, red hat", "preferred weight": 0.8, "negative text": "blurry", "notes": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("family", "version"),
    [
        ("sd1", "SD1"),
        ("sd2", "SD2"),
        ("sdxl", "SDXL"),
        ("flux1", "Flux"),
        ("sd3", "SD3"),
        ("wan", "Unknown"),
        ("never heard of", "Unknown"),
    ],
)
def test_the_version_is_one_that_webuis_know(family, version):
    assert card(family)["sd version"] == version


def combined(theirs) -> dict:
    return json.loads(merged(theirs if isinstance(theirs, str) else json.dumps(theirs), OURS))


@pytest.mark.parametrize("nothing", ["", " \n", "{}"])
def test_without_a_card_ours_is_written_whole(nothing):
    assert combined(nothing) == OURS


def test_every_value_the_user_has_set_stays():
    theirs = {
        "description": "mine",
        "sd version": "SD1",
        "activation text": "my words",
        "preferred weight": 0.3,
        "negative text": "my negative",
        "notes": "n",
    }
    assert combined(theirs) == theirs


@pytest.mark.parametrize("key", OURS)
@pytest.mark.parametrize("empty", ["", None])
def test_empty_values_are_filled_in(key, empty):
    assert combined({key: empty})[key] == OURS[key]


def test_some_values_set_and_others_not():
    assert combined({"activation text": "my words", "description": ""}) == {**OURS, "activation text": "my words"}


@pytest.mark.parametrize("value", [7, 0, "", None, [], {"a": [1, "ä"]}, False])
def test_keys_we_do_not_know_keep_their_value_whatever_it_is(value):
    got = combined({"own key": value})
    assert got == {**OURS, "own key": value}
    assert type(got["own key"]) is type(value)


def test_a_version_or_weight_that_a1111_writes_for_not_set_is_filled_in():
    got = combined({"sd version": "Unknown", "preferred weight": 0, "notes": "n"})
    assert (got["sd version"], got["preferred weight"], got["notes"]) == ("SDXL", 0.8, "n")
    assert combined({"preferred weight": 0.0})["preferred weight"] == 0.8


def test_a_weight_that_we_wrote_before_gives_way_and_another_stays():
    def weight(theirs, written):
        return json.loads(merged(json.dumps({"preferred weight": theirs}), OURS, written))["preferred weight"]

    assert (weight(1.0, 1.0), weight(0.5, 1.0), weight(1.0, 0.5), weight(1.0, 0.0)) == (0.8, 0.5, 1.0, 1.0)


def test_letters_of_every_language_stay_readable():
    text = merged('{"notes": "größe 猫"}', OURS)
    assert "größe 猫" in text
    assert "\n" in text


@pytest.mark.parametrize("text", ["no json", "{", "[1]", '"text"', "3", "null"])
def test_what_is_no_card_raises(text):
    with pytest.raises(ValueError, match="."):
        merged(text, OURS)


# --- on disk ------------------------------------------------------------------------------------------------------------------------------


def test_a_card_is_written_beside_the_lora_under_its_name(tmp_path):
    place = write_card(tmp_path / "my.lora v1.safetensors", "sd1", ("zog",), 0.7, "clay")
    assert place == tmp_path / "my.lora v1.json"
    assert json.loads(place.read_text(encoding="utf-8")) == card("sd1", ("zog",), "clay", 0.7)
    assert [p.name for p in tmp_path.iterdir()] == [place.name]


def test_writing_a_card_again_keeps_what_was_written_in_between(tmp_path):
    place = write_card(tmp_path / "x.safetensors", "sd1", ("zog",))
    place.write_text(
        json.dumps({**json.loads(place.read_text()), "notes": "mine ö", "own": 1}, ensure_ascii=False), encoding="utf-8"
    )
    write_card(tmp_path / "x.safetensors", "sd1", ("other",), 0.5)
    told = json.loads(place.read_text(encoding="utf-8"))
    assert (told["notes"], told["own"], told["activation text"], told["preferred weight"]) == ("mine ö", 1, "zog", 1.0)


@pytest.mark.parametrize(
    "content",
    [b"no json", b"[1]", b"\xff\xfe\x00", b'{"a": "\xff"}', b"[" * 100_000],
    ids=["text", "list", "bytes", "latin", "deep"],
)
def test_a_card_that_cannot_be_read_is_refused_by_name_and_left_alone(content, tmp_path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(FormatError, match="x.json: is there but is not a card"):
        write_card(tmp_path / "x.safetensors", "sd1", ("zog",))
    assert (tmp_path / "x.json").read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
