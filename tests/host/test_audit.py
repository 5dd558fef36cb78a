"""The audit of training inputs: what a network is given in a step, argument by argument, against what the host's own sampler gives it.

Same picture, caption and noise level. What differs is in EXPLAINED, with the reason; anything else is a fault.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import architectures
import comfy.sample
import comfy.samplers
import pytest
import torch
from lora_loom.lora_core.config import ObjectiveConfig
from lora_loom.lora_core.data.batches import Batch
from lora_loom.lora_core.data.buckets import Fit
from lora_loom.nodes.host.engine import conditioning
from lora_loom.nodes.host.engine.backend import HostBackend
from recorder import recorded
from stand_ins import NoVae, RandomClip
from test_gradients import make_adapters

CAPTION = "a red cat"
TWO_CAPTIONS = (
    "two words",
    "one two three four five six seven eight",
)  # the second one encoded to twice as many tokens


class Difference(NamedTuple):
    """`argument` of the network (a part of transformer_options after a dot); None where one side has none of it."""

    argument: str
    trained: Any
    sampled: Any


class Explained(NamedTuple):
    """Why an argument may differ. `families`: those in which it does, empty for all."""

    argument: str
    reason: str
    families: tuple[str, ...] = ()
    repeated: bool = False  # it has to be the sampler's, several times over


_DISTILLED_GUIDANCE = ("Flux", "Flux2", "HunyuanVideo")
EXPLAINED = (
    Explained("guidance", "guidance-distilled models are trained at 1, as sd-scripts and ai-toolkit do; the host samples them at its default",
              _DISTILLED_GUIDANCE),
    Explained("transformer_options.optimized_attention_override", "attention that can be differentiated, in place of the fastest one of the machine"),
    Explained("transformer_options.sample_sigmas", "the whole schedule of a sampler; a step has one noise level"),
    Explained("transformer_options.uuids", "names of the conditionings, by which a sampler's patches tell them apart"),
    Explained("context", "the host repeats a shorter text beside a longer one, in its sampler too; cross-attention to a text several times over is the same",
              ("SD15", "SDXL", "SD2", "SDXL refiner", "SSD-1B", "Segmind Vega", "KOALA 700M", "KOALA 1B"), repeated=True),
)  # fmt: skip


def calls_of(network: Any, call: Callable[[], Any]) -> list[dict[str, Any]]:
    """The arguments by name of each call of `network` while `call()` runs; its latents are x, whatever it calls them."""
    calls: list[dict[str, Any]] = []
    with recorded(network, calls):
        call()
    latents = list(inspect.signature(type(network).forward).parameters)[1]
    return [{"x": given.pop(latents), **given} for given in calls]


def batch_of(name: str, captions: Sequence[str]) -> Batch:
    """Latents of pictures that are as large as the host's sampler takes a latent for: eight pixels each, whatever the VAE."""
    shape = (len(captions), *architectures.row_of(name)[2])
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    size = (shape[-1] * 8, shape[-2] * 8)
    if len(shape) == 5:  # it looks at the third and fourth axes there as well
        size = (shape[3] * 8, shape[2] * 8)
    fits, names = [Fit(size, size, (0, 0), size)] * len(captions), [f"{n}.png" for n in range(len(captions))]
    return Batch(latents, list(captions), fits, names, torch.ones(len(captions)))


def trained_calls(backend: HostBackend, batch: Batch, x_t: torch.Tensor, sigma: torch.Tensor) -> list[dict[str, Any]]:
    """What the network is given in a training step."""
    with torch.inference_mode(False):
        layers, adapters = make_adapters(backend)
        with backend.training(layers, adapters):
            return calls_of(backend.network, lambda: backend.predict(x_t, sigma, batch))


def sampled_call(
    backend: HostBackend, caption: str, x_t: torch.Tensor, sigma: torch.Tensor, text: list | None = None
) -> dict[str, Any]:
    """What the host's sampler gives the network in its first step from x_t at sigma, for an empty latent as when a picture is made from text.

    `text`: a conditioning of the host's nodes, in place of the encoded caption.
    """

    def once(model: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: dict, **_: Any) -> torch.Tensor:
        return model(x_t, sigmas[0] * x.new_ones(len(x)), **extra_args)

    def sample() -> None:
        given, empty = backend.texts.text(caption) if text is None else text, torch.zeros_like(x_t)
        steps, sampler = torch.tensor([float(sigma), 0.0]), comfy.samplers.KSAMPLER(once)
        comfy.sample.sample_custom(
            backend.model.patcher,
            torch.zeros_like(x_t),
            1.0,
            sampler,
            steps,
            given,
            given,
            empty,
            disable_pbar=True,
            seed=0,
        )

    with torch.inference_mode():
        [call] = calls_of(backend.network, sample)
        return call


def flat(arguments: dict[str, Any]) -> dict[str, Any]:
    """transformer_options taken apart, what is empty left out."""
    options = arguments.get("transformer_options") or {}
    own = {key: value for key, value in arguments.items() if key != "transformer_options" and value is not None}
    return own | {f"transformer_options.{key}": value for key, value in options.items() if not _empty(value)}


def _empty(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, dict | list | tuple) and not value)


def same(one: Any, other: Any) -> bool:
    if torch.is_tensor(one) and torch.is_tensor(other):
        return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


def differences(name: str, captions: Sequence[str] = (CAPTION,)) -> Iterator[Difference]:
    """Of each picture of a batch from what the host's sampler gives for it alone."""
    patcher = architectures.build(name)
    backend = HostBackend(patcher, RandomClip(name), NoVae(patcher))
    batch, objective = batch_of(name, captions), backend.objective(ObjectiveConfig())
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(6))
    shares = torch.linspace(0.6, 0.3, len(captions), dtype=torch.float64)
    sigma = objective.levels(shares).float()
    x_t = objective.corrupt(batch.latents, noise, sigma)
    rows = [row for call in trained_calls(backend, batch, x_t, sigma) for row in rows_of(flat(call))]
    assert len(rows) == len(captions)
    for n, caption in enumerate(captions):
        sampled = flat(sampled_call(backend, caption, x_t[n : n + 1], sigma[n : n + 1]))
        trained = min(rows, key=lambda row: (row["x"] - sampled["x"]).abs().sum())  # passes may be in any order
        for argument in sorted({*trained, *sampled}):
            one, other = trained.get(argument), sampled.get(argument)
            if not same(one, other):
                yield Difference(argument, one, other)


def rows_of(call: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The arguments of each picture of a call's batch."""
    count = len(call["x"])
    for n in range(count):
        yield {key: _row(value, n, count) for key, value in call.items()}


def _row(value: Any, n: int, count: int) -> Any:
    if torch.is_tensor(value) and value.ndim and len(value) == count:
        return value[n : n + 1]
    return [_row(part, n, count) for part in value] if isinstance(value, list) and count > 1 else value


def explanation(name: str, difference: Difference) -> Explained | None:
    for row in EXPLAINED:
        if row.argument == difference.argument and (not row.families or name in row.families):
            return row if is_repeated(difference) or not row.repeated else None
    return None


def is_repeated(difference: Difference) -> bool:
    """Whether the text in training is the sampler's several times over."""
    trained, sampled = difference.trained, difference.sampled
    if not torch.is_tensor(trained) or not torch.is_tensor(sampled) or trained.ndim < 2:
        return False
    times = trained.shape[1] // sampled.shape[1]
    return times > 1 and torch.equal(trained, sampled.repeat(1, times, *[1] * (sampled.ndim - 2)))


def short(value: Any) -> str:
    if torch.is_tensor(value):
        return f"{tuple(value.shape)} {value.dtype} {value.flatten()[:3].tolist()}"
    return repr(value)[:80]


@pytest.fixture(scope="module")
def used() -> dict[Explained, set[str]]:
    """Which rows of the table were needed, in which families."""
    return {row: set() for row in EXPLAINED}


@pytest.fixture(scope="module")
def audited() -> set[tuple[str, tuple[str, ...]]]:
    """(family, captions) that were compared; a share of the rows is not all of them."""
    return set()


@pytest.mark.parametrize("captions", [(CAPTION,), TWO_CAPTIONS], ids=["one", "two"])
@pytest.mark.parametrize("name", architectures.TRAINED)
def test_the_network_is_given_in_training_what_the_hosts_sampler_gives_it(name, captions, used, audited):
    audited.add((name, captions))
    unexplained = []
    for difference in differences(name, captions):
        row = explanation(name, difference)
        if row is None:
            unexplained.append(f"{difference.argument}: {short(difference.trained)} / {short(difference.sampled)}")
        else:
            used[row].add(name)
    assert unexplained == []


def test_every_explanation_is_needed_by_each_family_it_names(used, audited):
    if audited < {(name, captions) for name in architectures.TRAINED for captions in ((CAPTION,), TWO_CAPTIONS)}:
        pytest.skip("needs the audit of all families before it")
    assert [row.argument for row, names in used.items() if not names or set(row.families) - names] == []


def test_the_audit_finds_a_model_that_is_trained_at_another_guidance(monkeypatch):
    """Chroma was trained at guidance 1 once and sampled at 0."""
    monkeypatch.setattr(conditioning, "training_guidance", lambda model: 1.0)
    arguments = [d.argument for d in differences("Chroma") if explanation("Chroma", d) is None]
    assert arguments == ["guidance"]
    assert math.isclose(next(d.sampled for d in differences("Chroma") if d.argument == "guidance").item(), 0.0)
