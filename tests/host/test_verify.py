"""The self-test passes where training is right, takes a slow exact way where the fast one is not, and stops the run where it would go wrong."""

from __future__ import annotations

import contextlib

import architectures
import comfy.ldm.aura.mmdit
import comfy.ldm.modules.diffusionmodules.mmdit
import comfy.ops
import pytest
import torch
from lora_loom.lora_core.borrowing import borrow, frozen, guards
from lora_loom.lora_core.config import Recompute
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.nodes.host.engine import layers as host_layers
from lora_loom.nodes.host.engine import lending, model
from lora_loom.nodes.host.engine.backend import HostBackend
from lora_loom.nodes.host.engine.lending import HostLending
from lora_loom.nodes.host.engine.trials import SIDES, Trials
from stand_ins import NoVae, RandomClip
from test_gradients import loss_and_gradients, make_adapters, make_batch, opened, reference
from torch import nn

BOTH = pytest.mark.parametrize("recompute", [Recompute.NONE, Recompute.ALL], ids=["plain", "checkpointed"])


def start(name: str, recompute: Recompute = Recompute.NONE, shape: tuple[int, ...] = ()) -> list[str]:
    """The codes of what was said when the run began."""
    patcher = architectures.build(name)
    with torch.inference_mode(False):
        backend = opened(name, patcher)
        layers, adapters = make_adapters(backend)
        backend.encode_texts(["a red cat"], lambda n, of: None)
        with backend.training(layers, adapters, recompute, shape):
            return [message.code for message in backend.remarks()]


@pytest.fixture
def fetching(monkeypatch):
    """The host fetches the weights of all layers."""
    monkeypatch.setattr(host_layers.ComfyLayers, "resident", lambda self, layer, place: False)


def error_of(name: str, recompute: Recompute) -> float:
    batch = make_batch(name)
    _, wanted = reference(name, batch)
    patcher = architectures.build(name)
    with torch.inference_mode(False):
        backend = opened(name, patcher)
        layers, adapters = make_adapters(backend)
        with backend.training(layers, adapters, recompute, tuple(batch.latents.shape)):
            _, ours = loss_and_gradients(backend, adapters, batch)
    whole = torch.cat([g.flatten() for g in wanted.values()])
    return float(torch.cat([(ours[k] - wanted[k]).flatten() for k in wanted]).norm() / whole.norm())


@BOTH
@pytest.mark.parametrize("name", ["Flux", "Flux2", "Chroma", "AuraFlow"])
def test_guarded_architectures_pass_the_fast_way(name, recompute):
    assert start(name, recompute) == []


@BOTH
@pytest.mark.parametrize("name", ["LTXV", "PixelDiT"])
def test_blocks_that_overwrite_what_guards_do_not_see_are_trained_the_slow_exact_way_which_is_told(name, recompute):
    shape = (2, *architectures.row_of(name)[2])
    assert start(name, recompute, shape) == ["model.slow_way"]


@BOTH
def test_without_guards_the_slow_exact_way_is_taken_and_is_exact(monkeypatch, recompute):
    monkeypatch.setattr(borrow, "norms", lambda model: [])
    monkeypatch.setattr(borrow, "checkpointed", lambda block, pure: _unguarded(block))
    assert start("Flux", recompute) == ["model.slow_way"]
    assert error_of("Flux", recompute) <= 1e-5  # fp32


def _unguarded(block):
    return guards.checkpointed(block, pure=True)


def test_blocks_that_cannot_be_made_again_go_without_checkpointing_which_is_told(monkeypatch):
    monkeypatch.setattr(borrow, "norms", lambda model: [])
    monkeypatch.setattr(borrow, "recomputed", lambda block, parameters: _unguarded(block))
    assert start("Flux", Recompute.ALL) == ["model.slow_way_unchecked"]


@pytest.mark.parametrize("name", ["Flux", "SD15"])  # one whose class is trusted, one whose is not
def test_a_wrong_frozen_gradient_is_named(monkeypatch, name):
    exact = frozen._Frozen.backward
    monkeypatch.setattr(frozen._Frozen, "backward", staticmethod(lambda ctx, grad: (exact(ctx, grad)[0] * 1.05, None)))
    with pytest.raises(LoomError, match=r"off by .*most at diffusion_model\."):
        start(name)


@pytest.mark.parametrize("name", ["Flux", "SD15"])
def test_a_weight_fetched_wrongly_is_seen_though_forward_and_backward_share_it(monkeypatch, fetching, name):
    fetched = host_layers.fetched_weights

    @contextlib.contextmanager
    def halved(layer, dtype, device):
        with fetched(layer, dtype, device) as (weight, bias):
            yield (weight / 2 if weight.ndim == 2 else weight), bias

    monkeypatch.setattr(host_layers, "fetched_weights", halved)
    with pytest.raises(LoomError) as refused:
        start(name)
    assert refused.value.message.code == "model.layer_gradient"


def test_a_convolution_whose_gradient_is_wrong_is_seen_beside_right_linear_layers(monkeypatch):
    right = frozen.input_gradient

    def wrong(grad, weight, layer, shape):
        return right(grad, weight.flip(-1) if weight.ndim == 4 else weight, layer, shape)

    monkeypatch.setattr(frozen, "input_gradient", wrong)
    with pytest.raises(LoomError, match="Conv2d") as refused:
        start("SD15")
    assert refused.value.message.code == "model.layer_gradient"


def test_a_norm_that_runs_on_wrong_copies_of_its_weights_is_seen(monkeypatch):
    fetched = host_layers.fetched_weights

    @contextlib.contextmanager
    def shifted(layer, dtype, device):
        with fetched(layer, dtype, device) as (weight, bias):
            yield (weight + 0.5 if weight.ndim == 1 else weight), bias

    monkeypatch.setattr(host_layers, "fetched_weights", shifted)
    with pytest.raises(LoomError, match="Norm") as refused:
        start("SD15")
    assert refused.value.message.code == "model.layer_gradient"


# ---- trust ----------------------------------------------------------------------------------------------------------


class UNetModel(nn.Module):
    """Of another pack."""


@pytest.mark.parametrize("claimed", ["", "comfy.ldm.modules.diffusionmodules.openaimodel"])
def test_a_class_that_only_has_a_trusted_name_is_not_trusted(claimed):
    other = type("UNetModel", (nn.Module,), {"__module__": claimed} if claimed else {})()
    assert not host_layers.is_pure(other)
    assert not host_layers.is_pure(UNetModel())
    assert not host_layers.is_unet(other)


def test_trust_is_by_class_so_auraflows_mmdit_is_not_sd3s():
    assert not host_layers.is_pure(comfy.ldm.aura.mmdit.MMDiT.__new__(comfy.ldm.aura.mmdit.MMDiT))
    assert host_layers.is_pure(architectures.build("SD3").model.diffusion_model)


def test_a_subclass_and_a_model_with_a_foreign_block_are_not_trusted():
    network = architectures.build("Wan").model.diffusion_model
    assert host_layers.is_pure(network)
    assert not host_layers.is_pure(architectures.build("Wan VACE").model.diffusion_model)
    network.blocks[0].forward = lambda x, *args, **kwargs: x
    assert not host_layers.is_pure(network)


# ---- on which shape -------------------------------------------------------------------------------------------------


def seen_shapes(monkeypatch) -> list[tuple[int, ...]]:
    shapes, trial = [], HostLending._trial

    def noted(self, shape):
        shapes.append(shape)
        return trial(self, shape)

    monkeypatch.setattr(HostLending, "_trial", noted)
    return shapes


@pytest.mark.parametrize("name", ["PixArt Sigma", "PixArt alpha", "PixelDiT", "Hunyuan3D", "ACE-Step 1.5", "Cascade B"])
def test_the_self_test_runs_on_the_shape_of_a_batch(monkeypatch, name):
    shapes, latent = seen_shapes(monkeypatch), architectures.row_of(name)[2]
    start(name, Recompute.NONE, (3, *latent))
    assert set(shapes) == {(1, *latent)}


def test_with_checkpointing_a_smaller_shape_that_runs_is_taken(monkeypatch):
    shapes = seen_shapes(monkeypatch)
    start("Flux", Recompute.ALL, (2, 16, 64, 48))
    assert set(shapes) == {(1, 16, 8, 8)}


def test_where_memory_ends_at_the_real_shape_a_smaller_one_is_compared(monkeypatch):
    verify, shapes = lending.verify, []

    def short_of_memory(network, adapters, borrowing, forward, dtype):
        shapes.append(forward.args[0])
        if forward.args[0][-1] > 16:
            raise torch.OutOfMemoryError
        return verify(network, adapters, borrowing, forward, dtype)

    monkeypatch.setattr(lending, "verify", short_of_memory)
    start("Flux", Recompute.NONE, (1, 16, 32, 32))
    assert shapes == [(1, 16, 32, 32), (1, 16, 8, 8)]


def test_the_reason_given_is_that_of_the_real_shape():
    def never(shape):
        raise LoomError("model.stopped", field="model", network="N", size=str(shape), reason="r")

    for small_first in (True, False):
        with pytest.raises(LoomError, match=r"\(1, 4, 128, 96\)"):
            Trials((1, 4, 64, 64), (1, 4, 128, 96), small_first).that_run(never)
    assert Trials((1, 4, 64, 64), None, True).shapes() == [(1, 4, side, side) for side in SIDES]


# ---- who is to blame ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MiniMax H3", "Flux"])
def test_a_model_that_stops_on_a_test_input_is_named_not_the_clip(monkeypatch, name):
    if name == "Flux":
        network = type(architectures.build(name).model.diffusion_model)
        monkeypatch.setattr(network, "forward", lambda self, *args, **kwargs: {}["sample_sigmas"])
    with pytest.raises(LoomError) as refused:
        start(name, shape=(1, *architectures.row_of(name)[2]))
    message = refused.value.message
    assert (message.code, message.field) == ("model.stopped", "model")
    assert "IndexError" in str(message) or "KeyError" in str(message)


@pytest.mark.parametrize("error", [KeyError("k"), ZeroDivisionError("z"), ValueError("v"), RuntimeError("r\nmore")])
def test_any_exception_while_encoding_is_a_sentence_about_the_input_it_came_from(error):
    class Broken(RandomClip, NoVae):
        def __init__(self, patcher):
            NoVae.__init__(self, patcher)

        def encode(self, pixels):
            raise error

        encode_from_tokens_scheduled = encode

    patcher = architectures.build("SD15")
    broken = Broken(patcher)
    backend = HostBackend(patcher, broken, broken)
    with pytest.raises(LoomError, match=type(error).__name__) as refused:
        backend.encode_texts(["a red cat"], lambda n, of: None)
    assert refused.value.message.field == "clip"
    with pytest.raises(LoomError, match=type(error).__name__) as refused:
        backend.encode_picture(torch.zeros(1, 64, 64, 3))
    assert refused.value.message.field == "vae"


def test_a_model_of_a_pack_that_cannot_be_opened_is_a_sentence_about_the_model():
    class Wrapped:
        def clone(self):
            raise AttributeError("no model here")

    with pytest.raises(LoomError, match="no model here") as refused:
        HostBackend(Wrapped(), None, None)
    assert refused.value.message.field == "model"


class PackedLinear(nn.Module):
    """As bitsandbytes and Nunchaku packs have them: a packed weight that nobody hands out."""

    def __init__(self):
        super().__init__()
        self.register_buffer("qweight", torch.zeros(8, dtype=torch.uint8))


@pytest.mark.parametrize("kept", [0, 3])
def test_layers_of_a_pack_that_packs_its_weights_are_named(kept):
    patcher = architectures.build("Flux")
    network = patcher.model.diffusion_model
    paths = [path for path, m in network.named_modules() if isinstance(m, nn.Linear)][kept:]
    for path in paths:
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, PackedLinear())
    with pytest.raises(LoomError, match="PackedLinear") as refused:
        HostBackend(patcher, RandomClip("Flux"), NoVae(patcher)).layers()
    assert refused.value.message.code == "model.foreign_layers"


def test_a_model_without_any_layer_to_name_says_so(monkeypatch):
    monkeypatch.setattr(model, "file_names", lambda base: {})
    patcher = architectures.build("Flux")
    with pytest.raises(LoomError) as refused:
        HostBackend(patcher, RandomClip("Flux"), NoVae(patcher)).layers()
    assert refused.value.message.code == "model.no_layers"


# ---- weights that are streamed ---------------------------------------------------------------------------------------


def test_the_slow_way_never_keeps_weights_that_the_host_casts_or_streams(monkeypatch):
    """A buffer that the host reuses holds another layer's weight by the time of the backward pass; kept, it made right gradients look wrong."""
    fetch, buffers = comfy.ops.cast_bias_weight, {}

    def streamed(layer, *args, **kwargs):
        weight, bias, *rest = fetch(layer, *args, **kwargs)
        with torch.inference_mode():
            place = buffers.setdefault((weight.shape, weight.dtype), torch.empty_like(weight))
            place.copy_(weight)
        return (place, bias, *rest)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", streamed)
    monkeypatch.setattr(comfy.ops.CastWeightBiasOp, "comfy_cast_weights", True)
    monkeypatch.setattr(comfy.ops.disable_weight_init.Linear, "comfy_cast_weights", True, raising=False)
    assert start("AuraFlow") == []
    assert len(buffers) > 3
