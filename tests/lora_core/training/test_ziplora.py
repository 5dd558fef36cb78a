import copy
from pathlib import Path

import pytest
import torch
from lora_loom.lora_core.adapters import AdapterSet, attach
from lora_loom.lora_core.backends.base import weights_fingerprint
from lora_loom.lora_core.config import DataConfig
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.events import Control, Listener
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.training.job import Job
from lora_loom.lora_core.training.ziplora import FIRST, MERGED, SECOND, ZipAdapter, zip_config, zip_loras
from shapes import set_folder
from torch import nn


def factors(out, into, rank, kernel=(), seed=0, size=0.3):
    rng = torch.Generator().manual_seed(seed)
    return size * torch.randn(rank, into, *kernel, generator=rng), size * torch.randn(
        out, rank, *[1] * len(kernel), generator=rng
    )


@pytest.mark.parametrize(
    ("layer", "x", "kernel"),
    [(nn.Linear(6, 5), (2, 3, 6), ()), (nn.Conv2d(6, 5, 3, stride=2, padding=1), (2, 6, 8, 8), (3, 3))],
)
def test_the_merged_factors_are_the_two_deltas_with_their_columns_scaled(layer, x, kernel):
    first, second = factors(5, 6, 2, kernel), factors(5, 6, 3, kernel, seed=1)
    adapter = ZipAdapter(layer, first, second, torch.device("cpu"))
    with torch.no_grad():
        for p in adapter.coefficients:
            p.uniform_(-1, 1)
    m1, m2 = (p.detach().view(1, -1, *[1] * len(kernel)) for p in adapter.coefficients)
    delta1, delta2 = ((up.flatten(1) @ down.flatten(1)).view(5, 6, *kernel) for down, up in (first, second))
    x = torch.randn(*x, generator=torch.Generator().manual_seed(2))
    run = (
        (lambda w: nn.functional.linear(x, w))
        if not kernel
        else (lambda w: nn.functional.conv2d(x, w, stride=2, padding=1))
    )
    wanted = {MERGED: m1 * delta1 + m2 * delta2, FIRST: delta1, SECOND: delta2}
    for mode, weight in wanted.items():
        adapter.mode = mode
        # the same sums in another order, of values of order 1
        torch.testing.assert_close(
            adapter.around(lambda x: torch.zeros_like(run(wanted[MERGED])), x), run(weight), rtol=1e-5, atol=1e-6
        )
    down, up = adapter.merged()
    assert (len(down), up.shape[1]) == (5, 5)
    torch.testing.assert_close(
        (up.flatten(1) @ down.flatten(1)).view(5, 6, *kernel), wanted[MERGED], rtol=1e-6, atol=1e-6
    )


def test_a_layer_of_one_lora_alone_has_nothing_to_learn_and_is_taken_over():
    only = factors(5, 6, 2)
    adapter = ZipAdapter(nn.Linear(6, 5), None, only, torch.device("cpu"))
    assert list(adapter.parameters()) == []
    assert all(torch.equal(a, b) for a, b in zip(adapter.merged(), only))


def sets():
    config = DataConfig(folder=str(set_folder("object")), resolution=64, bucket_step_px=8)
    other = DataConfig(folder=str(set_folder("pair")), resolution=64, bucket_step_px=8)
    return config, (scan(config), scan(other))


def zipped(config, similarity, backend, loras, datasets, listener, control=None):
    job = Job(config, backend, datasets[0], Path("."), listener, control or Control())
    return zip_loras(job, datasets[1], loras, similarity)


def two_loras(backend):
    """Random LoRAs over the attention of the toy, strong enough to disturb each other."""
    layers = {backend.file_name(p): m for p, m in backend.layers().items() if "attn" in p}
    return tuple(
        {
            n: factors(m.out_features, m.in_features, 4, seed=7 * s + k, size=0.2)
            for k, (n, m) in enumerate(layers.items())
        }
        for s in (1, 2)
    )


@pytest.mark.slow
def test_zipping_brings_the_merged_model_nearer_to_both_and_leaves_the_base_as_it_was(toy_backend):
    config, datasets = sets()
    before = weights_fingerprint(toy_backend.unet)
    result = zipped(zip_config(config, 40, 0.02, 4, 0), 1e-5, toy_backend, two_loras(toy_backend), datasets, Listener())
    assert weights_fingerprint(toy_backend.unet) == before
    assert sum(result.losses[-5:]) < 0.6 * sum(result.losses[:5])  # measured 0.45
    assert len(result.losses) == 40


def test_the_penalty_keeps_the_coefficients_apart(toy_backend):
    config, datasets = sets()
    overlaps = [
        zipped(
            zip_config(config, 15, 0.03, 2, 0), strength, toy_backend, two_loras(toy_backend), datasets, Listener()
        ).overlap
        for strength in (0.0, 1.0)
    ]
    assert overlaps[1] < 0.5 * overlaps[0]


def test_the_same_seed_gives_the_same_coefficients(toy_backend):
    config, datasets = sets()
    one, two = (
        zipped(zip_config(config, 3, 0.02, 2, 5), 0.01, toy_backend, two_loras(toy_backend), datasets, Listener())
        for _ in range(2)
    )
    assert one.losses == two.losses
    assert all(torch.equal(a, b) for name in one.factors for a, b in zip(one.factors[name], two.factors[name]))


def test_a_stop_keeps_what_was_learned(toy_backend):
    config, datasets = sets()
    control = Control()

    class StopAfterTwo(Listener):
        def on_step(self, report):
            if report.step == 2:
                control.stop_and_keep()

    assert (
        len(
            zipped(
                zip_config(config, 9, 0.02, 2, 5),
                0.01,
                toy_backend,
                two_loras(toy_backend),
                datasets,
                StopAfterTwo(),
                control,
            ).losses
        )
        == 2
    )


def test_loras_without_a_common_layer_or_for_another_model_are_refused_before_the_first_step(toy_backend):
    config, datasets = sets()
    first, second = two_loras(toy_backend)
    names = sorted(first)
    halves = {n: first[n] for n in names[:4]}, {n: second[n] for n in names[4:]}
    with pytest.raises(LoomError, match="no layer in common"):
        zipped(zip_config(config, 1, 0.02, 2, 0), 0.01, toy_backend, halves, datasets, Listener())
    with pytest.raises(LoomError, match="lora_unet_elsewhere is not a layer"):
        zipped(
            zip_config(config, 1, 0.02, 2, 0),
            0.01,
            toy_backend,
            ({**first, "lora_unet_elsewhere": first[names[0]]}, second),
            datasets,
            Listener(),
        )


def test_an_interrupted_zip_leaves_no_adapter_behind(toy_backend):
    config, datasets = sets()
    forwards = {n: copy.copy(m.__dict__.get("forward")) for n, m in toy_backend.unet.named_modules()}

    class Cancel(Listener):
        def on_step(self, report):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        zipped(zip_config(config, 3, 0.02, 2, 0), 0.01, toy_backend, two_loras(toy_backend), datasets, Cancel())
    assert {n: m.__dict__.get("forward") for n, m in toy_backend.unet.named_modules()} == forwards


def test_modes_are_ignored_while_the_adapters_are_switched_off(toy_backend):
    first, second = two_loras(toy_backend)
    layers = {toy_backend.file_name(p): m for p, m in toy_backend.layers().items()}
    adapters = AdapterSet({n: ZipAdapter(layers[n], first[n], second[n], torch.device("cpu")) for n in first})
    x, t, text = torch.randn(1, 8, 8, 8), torch.tensor([500]), torch.randn(1, 77, 64)
    with torch.no_grad():
        plain = toy_backend.unet(x, t, text).sample
        with attach({n: layers[n] for n in first}, adapters), adapters.switched_off():
            assert torch.equal(toy_backend.unet(x, t, text).sample, plain)
