import json
import os

import numpy as np
import pytest
import torch
from lora_loom.lora_core.captioning import shelf
from lora_loom.lora_core.captioning.tagger import Tagger, padded, spoken
from lora_loom.lora_core.captioning.vision import VisionModel
from lora_loom.lora_core.captioning.wording import Wording
from lora_loom.lora_core.messages.errors import LoomError
from PIL import Image
from tiny_captioners import COLOURS, TAGS, colour_tagger, picture, random_tagger, table, taught_captioner

CPU = torch.device("cpu")


def onnx():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    pytest.importorskip("transformers")
    return taught_captioner(tmp_path_factory.mktemp("models") / "captioners" / "taught")


def refused(work, code):
    with pytest.raises(LoomError) as error:
        work()
    assert error.value.message.code == code, error.value
    return str(error.value)


def test_a_tagger_names_what_it_is_sure_of_and_the_colours_are_the_right_way_round(tmp_path):
    onnx()
    tagger = Tagger(colour_tagger(tmp_path))
    assert tagger.caption(picture("red"), "") == "colour chan, long hair, ^_^, red background"
    assert tagger.caption(picture("blue"), "") == "colour chan, long hair, ^_^, blue background"
    assert (
        Tagger(colour_tagger(tmp_path), character=False).caption(picture("green"), "")
        == "long hair, ^_^, green background"
    )
    assert Wording("character").finisher(True)(tagger.caption(picture("red"), "")) == "colour chan, ^_^, red background"


def test_a_tagger_s_answers_are_those_of_its_network_for_the_picture_as_its_makers_prepare_it(tmp_path):
    onnx()
    import onnxruntime

    file = random_tagger(tmp_path)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 64, 3), np.uint8))
    square = Image.new("RGB", (64, 64), (255, 255, 255))
    square.paste(image, (0, 12))
    pixels = np.asarray(square.resize((32, 32), Image.Resampling.BICUBIC), np.float32)[None, :, :, [2, 1, 0]]
    wanted = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, {"picture": pixels})[
        0
    ][0]
    assert np.array_equal(Tagger(file).shares(image), wanted)
    assert padded(image, 32).shape == (32, 32, 3)
    sure = [f"tag {n:03} word" for n in np.argsort(-wanted, kind="stable") if wanted[n] >= 0.6]
    assert sure
    assert Tagger(file, bar=0.6).caption(image, "") == ", ".join(sure)


def test_names_are_written_as_captions_write_them():
    assert [spoken(n) for n in ("long_hair", "^_^", "o_o", ">_<", "1girl", "looking_at_viewer")] == [
        "long hair", "^_^", "o_o", ">_<", "1girl", "looking at viewer",
    ]  # fmt: skip


def test_what_is_no_tagger_is_told_in_a_sentence(tmp_path):
    onnx()
    file = colour_tagger(tmp_path / "a")
    (tmp_path / "a" / "selected_tags.csv").unlink()
    assert "selected_tags.csv" in refused(lambda: Tagger(file), "captioning.table_missing")
    table(tmp_path / "a" / "selected_tags.csv", TAGS[:3])
    assert "names 3" in refused(lambda: Tagger(file), "captioning.other_table")
    (tmp_path / "a" / "selected_tags.csv").write_text("a,b\n1,2\n")
    refused(lambda: Tagger(file), "captioning.no_table")
    (tmp_path / "a" / "selected_tags.csv").write_bytes(b"\xff\xfe\x00name")
    refused(lambda: Tagger(file), "captioning.no_table")
    table(tmp_path / "a" / "selected_tags.csv", TAGS)
    file.write_bytes(file.read_bytes()[:50])
    refused(lambda: Tagger(file), "captioning.no_model")


def test_a_tagger_reads_no_file_outside_of_its_folder(tmp_path):
    onnx()
    (tmp_path / "secret").write_bytes(np.zeros(3 * len(TAGS), np.float32).tobytes())
    for place in ("../secret", str(tmp_path / "secret")):
        refused(lambda place=place: Tagger(colour_tagger(tmp_path / "a", outside=place)), "captioning.no_model")


def test_without_the_package_one_sentence_names_it(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"")
    table(tmp_path / "selected_tags.csv", TAGS)
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    assert "onnxruntime" in refused(lambda: Tagger(tmp_path / "model.onnx"), "package.missing")


def test_a_model_on_disk_says_what_it_was_taught_and_changes_no_random_state(taught):
    before = torch.get_rng_state()
    model = VisionModel(taught, CPU)
    for colour in COLOURS:
        assert model.caption(picture(colour), "") == f"a plain {colour} picture"
    assert torch.equal(torch.get_rng_state(), before)


def test_pickles_code_of_its_own_and_files_elsewhere_are_refused(taught, tmp_path):
    import shutil

    def copy(name):
        return shutil.copytree(taught, tmp_path / "models" / "captioners" / name)

    pickled = copy("pickled")
    for file in pickled.glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    assert "safetensors" in refused(lambda: VisionModel(pickled, CPU), "captioning.no_safetensors")

    coded, ran = copy("coded"), tmp_path / "ran"
    config = json.loads((coded / "config.json").read_text())
    config |= {"model_type": "its_own", "auto_map": {"AutoConfig": "code.C", "AutoModelForImageTextToText": "code.M"}}
    (coded / "config.json").write_text(json.dumps(config))
    (coded / "code.py").write_text(f"open({str(ran)!r}, 'w')")
    assert "config.json" in refused(lambda: VisionModel(coded, CPU), "captioning.own_code")
    assert not ran.exists()

    linked = copy("linked")
    (tmp_path / "elsewhere.json").write_text("{}")
    (linked / "vocab.json").symlink_to(tmp_path / "elsewhere.json")
    assert "vocab.json" in refused(lambda: VisionModel(linked, CPU), "captioning.links_outside")

    broken = copy("broken")
    (broken / "config.json").write_text('{"model_type": "no_such"}')
    refused(lambda: VisionModel(broken, CPU), "captioning.no_model")


def test_captioners_are_found_below_their_folders_and_nowhere_else(taught, tmp_path):
    onnx()
    models = tmp_path / "models"
    tagger = colour_tagger(models / "captioners" / "wd")
    colour_tagger(models / "checkpoints" / "wd")
    colour_tagger(tmp_path / "outside")
    (models / "captioners" / "bare.onnx").write_bytes(b"")
    (models / "captioners" / "link").symlink_to(tmp_path / "outside")
    (models / "captioners" / "loop").symlink_to(models / "captioners")
    os.makedirs(models / "LLM" / "vision")
    for name in ("config.json", "preprocessor_config.json"):
        (models / "LLM" / "vision" / name).write_text("{}")
    known = shelf.captioners(shelf.known_roots([models]))
    assert known == {"captioners/wd/model.onnx": tagger, "LLM/vision": models / "LLM" / "vision"}
    assert isinstance(shelf.opened("captioners/wd/model.onnx", known, CPU, 10), Tagger)
    for name in ("../outside/model.onnx", str(tagger), "captioners/wd"):
        refused(lambda name=name: shelf.opened(name, known, CPU, 10), "captioning.unknown")
