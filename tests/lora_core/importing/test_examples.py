"""Every configuration the projects ship themselves. They lie in a folder of their own, never here: $PROGRAMS_DIR or ~/programs, a checkout each."""

import collections
import json
import os
import re
from pathlib import Path

import pytest
import yaml
from lora_loom.lora_core.importing.programs import PROGRAMS, Text, imported
from lora_loom.lora_core.importing.result import require_job
from lora_loom.lora_core.importing.rows import Fate

PLACE = Path(os.environ.get("PROGRAMS_DIR") or Path.home() / "programs")
FENCE = re.compile(r"^[ \t]*```[^\n]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
DIFFUSERS = ("text_to_image", "dreambooth", "advanced_diffusion_training", "textual_inversion", "kandinsky2_2")
SCRIPT = re.compile(r"(train_dreambooth_lora\w*|train_text_to_image\w*lora\w*|textual_inversion\w*)\.py")
NETWORK = re.compile(r"(train_network|train_textual_inversion)\.py[^\n]*\\?\n?.*--")


def folder(name):
    place = PLACE / name
    if not place.is_dir():
        pytest.skip(f"no checkout of {name} in {PLACE}")
    return place


def blocks(place, pattern, wanted):
    """The fenced blocks of Markdown files that `wanted` takes."""
    for file in sorted(place.glob(pattern)):
        for n, block in enumerate(FENCE.findall(file.read_text(encoding="utf-8", errors="replace"))):
            if wanted(block):
                yield Text(f"{file.relative_to(place)} block {n}", block)


def files(place, *patterns):
    for pattern in patterns:
        for file in sorted(place.glob(pattern)):
            yield Text(str(file.relative_to(place)), file.read_text(encoding="utf-8", errors="replace"))


def carried_over(texts, program, tmp_path, read=lambda path: None):
    """How many there are; each is one of `program` and makes a job. With the keys that no table knows."""
    unknown, count = collections.Counter(), 0
    for text in texts:
        result = imported([text], read)
        assert result.program == PROGRAMS[program].title, text.name
        require_job(result, tmp_path)
        unknown.update(line.key for line in result.lines if line.fate is Fate.UNKNOWN)
        count += 1
    return count, dict(unknown)


def test_the_commands_of_diffusers_guides(tmp_path):
    place = folder("diffusers")
    texts = [
        t
        for part in DIFFUSERS
        for t in blocks(place, f"examples/{part}/**/README*.md", lambda b: SCRIPT.search(b) and "launch" in b)
    ]
    count, unknown = carried_over(texts, "diffusers", tmp_path)
    assert count >= 30
    assert unknown == {}


def test_the_commands_and_dataset_configs_of_kohya_s_guides(tmp_path):
    place = folder("sd-scripts")

    def wanted(block):
        return NETWORK.search(block) or ("[[datasets]]" in block and "\u2500" not in block)  # which draws a tree

    count, unknown = carried_over(blocks(place, "**/*.md", wanted), "kohya", tmp_path)
    assert count >= 30
    assert unknown.keys() <= {"datasets[0].subsets[0].interpolation_type"}  # what the loader itself does not know


def test_the_presets_of_onetrainer(tmp_path):
    count, unknown = carried_over(files(folder("onetrainer"), "training_presets/**/*.json"), "onetrainer", tmp_path)
    assert count >= 50
    assert unknown == {}


def is_yaml(text):
    """Whether it can be read at all; one of ai-toolkit's own cannot."""
    try:
        return bool(yaml.safe_load(text.text))
    except yaml.YAMLError:
        return False


def test_the_examples_of_ai_toolkit(tmp_path):
    texts = [
        t for t in files(folder("ai-toolkit"), "config/examples/**/*.y*ml") if "sd_trainer" in t.text and is_yaml(t)
    ]
    count, unknown = carried_over(texts, "ai_toolkit", tmp_path)
    assert count >= 18
    assert unknown == {}


def test_the_examples_of_simpletuner_with_their_backends(tmp_path):
    place = folder("SimpleTuner")

    def whole(text):
        try:
            return bool(json.loads(text.text))
        except ValueError:
            return False  # one of them ends in a comma

    def read(path):
        for file in (place / path, place / "simpletuner" / path.removeprefix("config/")):
            if file.is_file():
                return file.read_text(encoding="utf-8")
        return None

    texts = filter(whole, files(place, "config/config.json.example", "simpletuner/examples/*/config.json"))
    count, unknown = carried_over(texts, "simpletuner", tmp_path, read)
    assert count >= 100
    assert unknown == {}
