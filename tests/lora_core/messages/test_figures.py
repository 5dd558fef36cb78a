"""Figures have three digits, and a sentence about a number reads right for one and for several."""

import ast
import json
import re

import pytest
from lora_loom.lora_core.messages.figures import figure, percent
from lora_loom.lora_core.messages.message import NUMBER, PLACEHOLDER, Message, table

# Places that hold how many of something there are.
COUNTS = frozenset((
    "all", "captioned", "channels", "clip_g", "clip_l", "clips", "controls", "count", "cut", "default", "epochs", "frames", "inputs", "missing",
    "nothing", "otherwise", "outputs", "per_epoch", "pictures", "pieces", "processes", "repeats", "same", "samples", "shards", "skipped", "steps",
    "tokens", "unknown", "values", "vectors",
))  # fmt: skip
# Sentences whose count stands where nothing depends on it: without a noun and a verb of its own, or not about a number at all.
ALIKE = {
    "controls.count", "lint.fewer",
    "base.folders_missing", "base.weights_missing", "data.animated", "data.counts", "data.excluded", "data.no_caption", "data.no_caption_trigger",
    "data.no_mask", "data.pairs", "film.broken_off", "data.profile_converted", "data.profile_damaged", "data.small_kept", "data.small_scaled_up", 
    "embedding.unequal", "lint.duplicate_of_many", "lint.more", "loader.too_many_keys", "module.part_missing", "note.bundles",
    "note.embeddings_unmerged", "save.no_such_step", "step.failed", "step.not_finite", "tab.plan", "toy.other_encoder", "validation.one_picture",
}  # fmt: skip


@pytest.mark.parametrize(("number", "text"), [
    (0.041234, "0.0412"), (4.5188, "4.52"), (1234.5, "1230"), (0.0000123456, "1.23e-05"), (12, "12"), (0.0, "0"), (-3.14159, "-3.14"), (99.96, "100"),
    (float("nan"), "nan"), (float("-inf"), "-inf"), (1.0, "1"), (123456789.0, "123000000"),
])  # fmt: skip
def test_a_figure_has_three_digits(number, text):
    assert figure(number) == text


def test_a_share_is_told_in_percent_with_three_digits():
    assert [percent(share) for share in (0.041234, 1.0, 0.00012345)] == ["4.12 %", "100 %", "0.0123 %"]


def test_no_message_is_given_a_figure_with_more_digits(root):
    """Formats with a fixed number of places, inside of what makes a message, are for clocks and whole numbers alone."""
    fixed = re.compile(r":[,]?\.(?!3g|1e)\d+[fge%]\}")
    for part in ("lora_core", "convert", "nodes"):
        for path in (root / part).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            for call in ast.walk(ast.parse(text)):
                if not isinstance(call, ast.Call) or ast.unparse(call.func) not in MAKERS:
                    continue
                found = fixed.findall(ast.get_source_segment(text, call) or "")
                assert found == [], f"{path.name}:{call.lineno}"


NOUNS = "layer|picture|caption|key|module|file|token|step|value|epoch|mask|variant|weight|channel|vector|process|setting|number|piece|embedding"
MAKERS = (
    "Message.of",
    "LoomError",
    "FormatError",
    "ConfigError",
    "PictureError",
    "Refused",
    "NonFiniteError",
    "Fault",
    "PatternError",
)


def counted_in(text):
    return set(PLACEHOLDER.findall(text)) & COUNTS


def test_every_count_in_an_english_sentence_has_its_form_for_one():
    english = table("en")
    for code, text in english.items():
        forms = {match[1] for match in NUMBER.finditer(text)}
        if code not in ALIKE:
            assert counted_in(text) - forms == set(), f"{code}: {text}"


def test_every_sentence_that_is_listed_as_alike_has_such_a_count():
    for code in ALIKE:
        text = table("en")[code]
        assert counted_in(text) - {match[1] for match in NUMBER.finditer(text)}, f"{code} needs not be listed"


def test_a_place_given_by_counting_is_known_as_a_count(root):
    """`count=len(...)` and `sum(...)`: whoever writes a new one names it among COUNTS, and so writes its forms."""
    names = set()
    for part in ("lora_core", "convert", "nodes"):
        for path in (root / part).rglob("*.py"):
            for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(call, ast.Call) and ast.unparse(call.func) in MAKERS:
                    for keyword in call.keywords:
                        if isinstance(keyword.value, ast.Call) and ast.unparse(keyword.value.func) in ("len", "sum"):
                            names.add(keyword.arg)
    assert len(names) > 5
    after_their_field = {"captions", "masks", "conditioning", "latents"}  # "masks: 3 came with 4 pictures"
    of_something_long = {"length", "size"}  # characters or bytes, beyond a limit
    assert names - COUNTS - after_their_field - of_something_long == {"layers", "rows"}  # also lists
    assert {match[1] for text in table("en").values() for match in NUMBER.finditer(text)} >= {"layers", "rows"}


@pytest.mark.parametrize(("count", "text"), [
    (1, "1 epoch of 1 picture (with repeats), 1 x 1 at a time, is 1 step"), (2, "2 epochs of 2 pictures (with repeats), 2 x 2 at a time, are 2 steps"),
])  # fmt: skip
def test_a_sentence_about_several_numbers_counts_each(count, text):
    assert str(Message.of("length.epochs", epochs=count, pictures=count, batch=count, accum=count, steps=count)) == text


def test_no_sentence_says_one_of_several():
    """With every count at 1: no plural noun behind it."""
    plural = re.compile(rf"(?<![\w.:=(-])1 (?:(?!with)\w+ )?(?:{NOUNS})s\b")
    for code, text in table("en").items():
        told = str(Message(code, "", {place: 1 if place in COUNTS else "x" for place in PLACEHOLDER.findall(text)}))
        assert plural.findall(told) == [], f"{code}: {told}"


def test_every_count_in_a_text_of_the_page_has_its_form_for_one(root):
    texts = json.loads((root / "js" / "locales" / "en.json").read_text(encoding="utf-8"))
    counts = {"all", "captions", "count", "done", "files", "pictures", "steps", "total"}
    assert len(texts) > 200
    for key, text in texts.items():
        forms = {match[1] for match in NUMBER.finditer(text)}
        for place, word in re.findall(r"\{(\w+)\} (\w+s)\b", NUMBER.sub("", text)):
            assert place not in counts - forms or word in ("is", "s"), f"{key}: {text}"
