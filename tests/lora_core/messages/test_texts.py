"""Every message has a sentence in every language, and every sentence is said by our code."""

import ast
import json
import re

import pytest
from lora_loom.lora_core.messages.message import LANGUAGES, PLACEHOLDER, SETTING, table

ERRORS = {
    "Problem",
    "LoomError",
    "Fault",
    "PatternError",
    "ConfigError",
    "PictureError",
    "FormatError",
    "NonFiniteError",
    "Conflict",
    "Refused",
}
PARTS = ("lora_core", "convert", "nodes", "__main__.py")


def trees(root):
    for part in PARTS:
        place = root / part
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            yield path.relative_to(root).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def is_message(call):
    """Whether a call makes a message or an error that carries one."""
    if isinstance(call.func, ast.Name):
        return call.func.id in ERRORS
    return (
        isinstance(call.func, ast.Attribute)
        and call.func.attr == "of"
        and getattr(call.func.value, "id", "") == "Message"
    )


def codes_in(node):
    """The codes an argument may be: one, or one of two."""
    if isinstance(node, ast.IfExp):
        return [*codes_in(node.body), *codes_in(node.orelse)]
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


@pytest.fixture(scope="module")
def calls(root):
    """(where, codes, names of the values or None where they come from a table, the first argument) of every message in the code."""
    out = []
    for path, tree in trees(root):
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and is_message(call):
                status = isinstance(call.func, ast.Name) and call.func.id == "Refused"
                arguments = call.args[1:] if status else call.args
                names = {k.arg for k in call.keywords} - {"field"}
                out.append(
                    (f"{path}:{call.lineno}", codes_in(arguments[0]), None if None in names else names, arguments[0])
                )
    return out


def test_every_code_in_the_code_has_a_sentence_with_the_values_it_is_given(calls):
    english = table("en")
    assert len(calls) > 400
    for where, codes, names, _ in calls:
        for code in codes:
            assert code in english, where
            assert names is None or names == set(PLACEHOLDER.findall(english[code])), f"{where} {code}"


def test_no_sentence_stands_where_a_code_belongs(calls):
    assert [where for where, _, _, argument in calls if isinstance(argument, ast.JoinedStr | ast.BinOp)] == []


def test_every_sentence_is_said_somewhere(root):
    constants = {node.value for _, tree in trees(root) for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert table("en").keys() - constants == set()


def test_codes_are_areas_and_nouns():
    assert [code for code in table("en") if not re.fullmatch(r"[a-z_0-9]+(\.[a-z_0-9]+)+", code)] == []


@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "en"])
def test_every_message_is_translated_with_its_values(language):
    english, ours = table("en"), table(language)
    assert list(ours) == list(english) == sorted(english)
    assert {code for code in ours if not ours[code].strip()} == set()
    different = [
        code for code in ours if set(PLACEHOLDER.findall(ours[code])) != set(PLACEHOLDER.findall(english[code]))
    ]
    assert different == []
    print(f"{language}: {len(ours)} messages")


@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "en"])
def test_messages_are_really_translated(language):
    """The same as in English are only those without a word."""
    same = [code for code, text in table(language).items() if text == table("en")[code]]
    words = {code: re.findall(r"[A-Za-z]{2,}", PLACEHOLDER.sub("", table("en")[code])) for code in same}
    assert {code: found for code, found in words.items() if found} == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_places_are_plain_and_files_are_written_alike(root, language):
    path = root / "lora_core" / "messages" / "texts" / f"{language}.json"
    texts = json.loads(path.read_text(encoding="utf-8"))
    assert path.read_text(encoding="utf-8") == json.dumps(texts, ensure_ascii=False, indent=1) + "\n"
    for code, text in texts.items():
        assert not re.search(r"[{}]", SETTING.sub("", PLACEHOLDER.sub("", text))), code
