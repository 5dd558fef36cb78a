"""What old libraries lack is done in another way, and what is missing is named. `.ci/old` runs everything with libraries that really are old."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
from lora_loom.lora_core import compat
from lora_loom.lora_core.messages.errors import LoomError


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
    with pytest.raises(LoomError, match=r"PyTorch \S+ cannot split a model across processes; install 2\.6 or newer"):
        compat.fully_shard()
