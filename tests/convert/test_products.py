"""What a small module would be multiplied out to: done by its factors where that is exact, refused where it is out of proportion."""

from __future__ import annotations

import math

import pytest
import torch
from lora_cases import random
from lora_loom.convert import FormatError, read
from lora_loom.convert import lora as canonical
from lora_loom.convert.files.checkpoints import checkpoint
from lora_loom.convert.lora import Lora, Module, approximation, delta, factored, low_rank
from lora_loom.convert.merge import MAX_MADE, merge, squared_norm
from lora_loom.convert.readers import MAX_LAYERS
from lora_loom.lora_core.algebra import loha as formulas


def a_loha(out: int, inside: int, ranks: tuple[int, int] = (3, 2), kernel: tuple[int, ...] = ()) -> Module:
    area, parts = math.prod(kernel), {}
    for n, rank in enumerate(ranks, 1):
        parts |= {f"hada_w{n}_a": random(n, out, rank), f"hada_w{n}_b": random(n + 5, rank, inside * area)}
    return Module("loha", parts, 2.0, kernel)


def a_lokr(**parts: tuple[int, ...]) -> Module:
    return Module("lokr", {name: random(n, *size) for n, (name, size) in enumerate(parts.items())}, 1.5)


@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_a_loha_as_factors_is_the_same_change(kernel):
    module = a_loha(8, 6, kernel=kernel)
    as_factors = factored(module)
    assert as_factors.kind == "lora"
    assert as_factors.rank == 6
    torch.testing.assert_close(delta(as_factors), delta(module), rtol=1e-5, atol=1e-6)
    assert factored(module, most=10) is None


@pytest.mark.parametrize("ranks", [(1, 1), (2, 5), (9, 9)])
def test_the_norm_of_a_loha_is_exact_by_factors_and_by_rows(ranks):
    module = a_loha(40, 30, ranks)
    assert squared_norm(module) == pytest.approx(float(delta(module).double().square().sum()), rel=1e-5)


@pytest.mark.parametrize("tucker", [False, True])
def test_a_norm_out_of_proportion_to_its_factors_is_told_from_some_rows(monkeypatch, tucker):
    parts = {name: random(n, 3, 900) for n, name in enumerate(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"))}
    module = (
        Module("loha", {**parts, "hada_t1": random(7, 3, 3, 2, 2), "hada_t2": random(8, 3, 3, 2, 2)})
        if tucker
        else a_loha(900, 700, (8, 8))
    )
    exact, rows = squared_norm(module), []
    monkeypatch.setattr(formulas, "WORK", 1000)
    monkeypatch.setattr(formulas, "WORK_A_NUMBER", 40)
    real = formulas._matrix
    monkeypatch.setattr(formulas, "_matrix", lambda p, n: rows.append(p["hada_w1_a"].shape[int(tucker)]) or real(p, n))
    assert squared_norm(module) == pytest.approx(exact, rel=0.3)
    assert 0 < sum(rows) / 2 < 450


@pytest.mark.parametrize(
    "parts",
    [
        {"lokr_w1": (4, 3), "lokr_w2": (8, 6)}, {"lokr_w1": (4, 3), "lokr_w2": (8, 6, 3, 3)},
        {"lokr_w1_a": (4, 2), "lokr_w1_b": (2, 3), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 6)},
    ],
)  # fmt: skip
def test_the_best_lora_of_a_lokr_by_its_factors_is_that_of_its_change(monkeypatch, parts):
    module = a_lokr(**parts)
    wanted, error = low_rank(delta(module), 3)
    with monkeypatch.context() as patch:
        patch.setattr(canonical, "MAX_DENSE", 100)
        patch.setattr(canonical, "low_rank", None)
        found, told = approximation(module, 3)
    assert found.rank == 3
    assert told == pytest.approx(error, abs=1e-4)
    torch.testing.assert_close(delta(found), delta(wanted), rtol=1e-3, atol=1e-4)


def test_a_small_module_of_a_huge_layer_is_refused_where_it_would_be_multiplied_out_and_merged_by_factors_where_they_are_small():
    huge = Module("lokr", {"lokr_w1": torch.ones(100, 100), "lokr_w2": torch.ones(100, 100)})
    with pytest.raises(FormatError, match="would be multiplied out to 100000000 numbers from the 20000 it holds"):
        delta(huge)
    large = a_loha(5000, 4000, (1, 1))
    both = merge([(Lora("sd1", {"a": large}), 1.0), (Lora("sd1", {"a": large}), -0.5)]).lora.modules["a"]
    assert both.kind == "lora"
    assert squared_norm(both) == pytest.approx(squared_norm(large) / 4, rel=1e-3)


def test_an_exact_sum_far_larger_than_its_summands_asks_for_a_rank(monkeypatch):
    modules = {str(n): a_loha(64, 64) for n in range(4)}
    monkeypatch.setattr("lora_loom.convert.merge.MAX_MADE", 10_000)
    pair = [(Lora("sd1", modules), 1.0), (Lora("sd1", modules), 0.5)]
    with pytest.raises(FormatError, match="rank: the exact sum has 12288 numbers by layer 2, .* choose a rank above 0"):
        merge(pair)
    assert merge(pair, rank=4).lora.modules.keys() == modules.keys()
    assert MAX_MADE > 10_000


def test_a_core_of_a_large_kernel_is_not_multiplied_into_its_factor():
    parts = {"down": torch.ones(4, 32, 1, 1), "up": torch.ones(32, 4, 1, 1), "mid": torch.ones(4, 4, 500, 500)}
    tucker = Module("lora", parts, 4.0)
    for act in (lambda: canonical.plain(tucker), lambda: canonical.added([tucker, tucker])):
        with pytest.raises(FormatError, match="would be multiplied out to 32000000 numbers"):
            act()


def test_a_file_of_more_layers_than_any_model_has_is_refused():
    table = {f"x.{n}.lora_{side}.weight": torch.ones(1, 1) for n in range(MAX_LAYERS + 1) for side in ("A", "B")}
    with pytest.raises(
        FormatError, match=f"it holds adapters for {MAX_LAYERS + 1} layers, and at most {MAX_LAYERS} are read"
    ):
        read(table)


def test_the_index_of_a_folder_that_nests_without_end_is_told(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text("[" * 100_000)
    with pytest.raises(FormatError, match="index"), checkpoint(tmp_path):
        pass
