"""What old libraries lack is done in another way, and what is missing is named. `.ci/old` runs everything with libraries that really are old."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
from lora_loom.lora_core import compat
from lora_loom.lora_core.messages.errors import LoomError
from PIL import Image, ImageDraw, ImageFont


def test_where_there_are_no_fused_kernels_adamw_steps_as_without_them(monkeypatch):
    """As PyTorch before 2.4 on the CPU: it refuses, after it has written `fused` into the groups it was given."""
    plain = torch.optim.AdamW

    def old(groups, fused, **options):
        for group in groups:
            group.setdefault("fused", fused)
        if fused:
            raise RuntimeError("`fused=True` requires all the params to be on supported devices: ['cuda']")
        return plain(groups, fused=fused, **options)

    monkeypatch.setattr(torch.optim, "AdamW", old)
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = compat.adamw([{"params": [weight], "lr": 0.1}], True)
    assert [group["fused"] for group in optimizer.param_groups] == [False]
    weight.grad = torch.ones(3)
    optimizer.step()
    assert (weight < 1).all()


def test_before_selective_checkpointing_a_block_is_made_again_as_a_whole(monkeypatch):
    dear = {torch.ops.aten.addmm.default}
    assert set(compat.keeping(dear)) == {"context_fn"} or not hasattr(torch.utils.checkpoint, "CheckpointPolicy")
    monkeypatch.delattr(torch.utils.checkpoint, "CheckpointPolicy", raising=False)
    assert compat.keeping(dear) == {}


@pytest.fixture
def bitmap(monkeypatch):
    """The font of Pillow before 10.1, which takes no size."""
    make = getattr(ImageFont, "load_default_imagefont", ImageFont.load_default)
    monkeypatch.setattr(ImageFont, "load_default", lambda: make())
    return compat.font(14)


def test_the_font_of_old_pillow_writes_every_text(bitmap):
    image = Image.new("RGB", (200, 40), "white")
    pen = ImageDraw.Draw(image)
    pen.text((5, 5), "zog 猫 ✓", fill="black", font=bitmap)
    assert image.getextrema()[0][0] < 128
    assert pen.textlength("猫猫", font=bitmap) == pen.textlength("??", font=bitmap) > 0


@pytest.mark.skipif(
    hasattr(ImageFont, "load_default_imagefont"), reason="newer Pillow has a font with anchors; .ci/old runs this"
)
@pytest.mark.parametrize(("anchor", "left"), [("la", 100), ("ma", 85), ("ra", 70)])
def test_the_font_of_old_pillow_keeps_to_its_anchor(bitmap, anchor, left):
    image = Image.new("L", (200, 20), 255)
    ImageDraw.Draw(image).text((100, 2), "HHHHH", fill=0, font=bitmap, anchor=anchor)
    box = Image.eval(image, lambda value: 255 - value).getbbox()
    assert abs(box[0] - left) <= 3
    assert 24 <= box[2] - box[0] <= 34


def without(monkeypatch, *names):
    """As if these modules were not installed."""
    load = importlib.import_module

    def lacking(name, *args):
        if name in names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return load(name, *args)

    monkeypatch.setattr(importlib, "import_module", lacking)


def test_toml_is_read_by_whichever_reader_is_there(monkeypatch):
    text = 'name = "zog"\n[data]\nrepeats = 2\n'
    wanted = {"name": "zog", "data": {"repeats": 2}}
    readers = [name for name in compat.TOML if name in sys.modules or importlib.util.find_spec(name.partition(".")[0])]
    for n in range(len(readers)):
        with monkeypatch.context() as patch:
            without(patch, *readers[:n])
            assert compat.parse_toml(text) == wanted
    with pytest.raises(ValueError, match="Invalid value"):
        compat.parse_toml("name = ")
    without(monkeypatch, *compat.TOML)
    with pytest.raises(LoomError, match="needs the Python package tomli, .* pip install tomli"):
        compat.parse_toml(text)


def test_a_package_that_is_missing_is_named_and_so_is_one_that_one_of_its_own_lacks(monkeypatch):
    assert compat.needed("json").dumps([]) == "[]"
    without(monkeypatch, "accelerate.tracking")
    with pytest.raises(LoomError, match="needs the Python package accelerate, which is not installed here"):
        compat.needed("accelerate.tracking")


def test_a_package_that_is_too_old_is_named_with_its_version(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.9.1.dev0")
    compat.needed("json", since="0.9")
    with pytest.raises(LoomError, match=r"needs json 0\.33 or newer, and 0\.9\.1\.dev0 is installed"):
        compat.needed("json", since="0.33")


def test_a_model_is_split_over_processes_or_the_pytorch_that_can_is_named(monkeypatch):
    fsdp = importlib.import_module("torch.distributed.fsdp")
    if hasattr(fsdp, "fully_shard"):
        assert compat.fully_shard() is fsdp.fully_shard
    monkeypatch.delattr(fsdp, "fully_shard", raising=False)
    with pytest.raises(LoomError, match=r"PyTorch \S+ cannot split a model over processes; install 2\.6 or newer"):
        compat.fully_shard()
