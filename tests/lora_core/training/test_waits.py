"""A step asks the device for one thing, once: loss and norm together. Everything else is sent to it without waiting.

The device is PyTorch's `meta`, which computes nothing, so that every copy to it and every number read from it is an operation to be seen.
"""

from __future__ import annotations

import types
from pathlib import Path

import pytest
import torch
from lora_loom.lora_core import compat
from lora_loom.lora_core.backends.clip_text import Text
from lora_loom.lora_core.backends.diffusers_backend import DiffusersBackend
from lora_loom.lora_core.backends.flow import FLOW_FAMILIES, FlowBackend
from lora_loom.lora_core.backends.headless import Headless
from lora_loom.lora_core.borrowing import frozen
from lora_loom.lora_core.config import parse
from lora_loom.lora_core.data.batches import Batch
from lora_loom.lora_core.data.buckets import fit
from lora_loom.lora_core.optim.ema import Ema
from lora_loom.lora_core.optim.groups import make_groups
from lora_loom.lora_core.optim.optimizers import filled, make_optimizer
from lora_loom.lora_core.training.build import make_adapters
from lora_loom.lora_core.training.run import Material, Run, Source
from lora_loom.lora_core.training.step import optimizer_step
from slow_rows import mostly_slow
from torch.utils._python_dispatch import TorchDispatchMode

diffusers = pytest.importorskip("diffusers")

META = torch.device("meta")
ASKING = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "_unique2", "masked_select")
UNET = dict(
    sample_size=8,
    block_out_channels=(32, 64),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=2,
    cross_attention_dim=48,
    layers_per_block=1,
    use_linear_projection=True,
)
SIZED = dict(
    addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 24
)
FLUX = dict(in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=48, pooled_projection_dim=24,
            axes_dims_rope=(8, 12, 12), guidance_embeds=True)  # fmt: skip


class Asked(TorchDispatchMode):
    """`waits`: operations for which Python waits for the device; `stalls`: copies to it that first wait for what it still has to do."""

    def __init__(self):
        super().__init__()
        self.waits, self.stalls = [], []

    def __torch_dispatch__(self, func, kinds, args=(), kwargs=None):
        kwargs = kwargs or {}
        name, given = func.overloadpacket.__name__, args[0] if args else None
        lies = given.device if torch.is_tensor(given) else None
        if name in ASKING and lies == META:
            self.waits.append(name)
            return 0.0
        if name == "_to_copy" and kwargs.get("device") is not None and kwargs["device"] != lies:
            if lies == META:
                self.waits.append(name)
                return torch.zeros(given.shape, dtype=kwargs.get("dtype") or given.dtype)
            if not kwargs.get("non_blocking"):
                self.stalls.append((tuple(given.shape), given.dtype))
        if name == "copy_" and args[1].device != lies:
            (self.waits if lies != META else self.stalls).append("copy_")
        return func(*args, **kwargs)


def unet(**more):
    from transformers import CLIPTextConfig, CLIPTextModel

    words = CLIPTextConfig(
        vocab_size=64,
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=24,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    names = ["text_encoder", "text_encoder_2"] if more else ["text_encoder"]
    components = {name: CLIPTextModel(words) for name in names} | {
        n.replace("text_encoder", "tokenizer"): None for n in names
    }
    vae = diffusers.AutoencoderKL(block_out_channels=(32,))
    parts = types.SimpleNamespace(unet=diffusers.UNet2DConditionModel(**UNET, **more), vae=vae, components=components,
                                  scheduler=diffusers.DDPMScheduler(beta_schedule="scaled_linear"))  # fmt: skip
    return DiffusersBackend(Path("random"), "fp32", "meta", parts)


def flux():
    made = FlowBackend.__new__(FlowBackend)
    Headless.__init__(made, "fp32", "meta")
    made.row, made.latent_step_px = FLOW_FAMILIES["FluxPipeline"], 16
    made.network = made.place(diffusers.FluxTransformer2DModel(**FLUX))
    scheduler = types.SimpleNamespace(config=types.SimpleNamespace(use_dynamic_shifting=False, shift=1.0))
    made.pipe = types.SimpleNamespace(scheduler=scheduler)
    made.vae = types.SimpleNamespace(config={"latent_channels": 16})
    return made


def text(mask=None):
    return Text(torch.randn(1, 16, 48), torch.randn(1, 24), mask)


@pytest.fixture(scope="module", params=["sd1", "sdxl", "flux"])
def backend(request):
    made = {"sd1": unet, "sdxl": lambda: unet(**SIZED), "flux": flux}[request.param]()
    made._texts["a photo"] = text() if request.param != "sd1" else Text(torch.randn(1, 16, 48))
    return made


def run_of(backend, settings):
    job = filled(parse({"steps": 100, "batch_size": 2, "adapter": {"rank": 2}, **settings}))
    layers, adapters = make_adapters(job, backend)
    channels = backend.network.config.in_channels // (4 if isinstance(backend, FlowBackend) else 1)
    how = fit(64, 64, 64, 64)

    class Cached:
        def at(self, step, micro):
            weight, mask = torch.ones(2), torch.ones(2, 1, 8, 8) if settings.get("masked") else None
            return Batch(torch.randn(2, channels, 8, 8), ["a photo"] * 2, [how] * 2, ["one.png"] * 2, weight, mask).on(
                META
            )

    sources = [Source(Cached())] * (2 if settings.get("prior") else 1)
    material = Material(
        job, backend, backend.base_model(job.objective), layers, adapters, backend.objective(job.objective), sources
    )
    optimizer = make_optimizer(make_groups(job, adapters), job.optimizer)
    ema = Ema(adapters, job.ema_decay) if job.ema_decay else None
    return Run(material, optimizer, compat.GradScaler("cpu", enabled=False), ema)


JOBS = {
    "plain": {},
    "accumulated": {"grad_accum": 3},
    "average and class pictures": {"ema_decay": 0.9, "prior": {"weight": 1.0}},
    "huber": {"loss": "huber"},
    "noise": {"objective": {"noise_offset": 0.1, "input_perturbation": 0.1}},
}


@pytest.mark.parametrize("job", mostly_slow(JOBS, ("accumulated", "average and class pictures").__contains__))
def test_a_step_waits_once_for_the_device_and_sends_it_everything_before(backend, job, monkeypatch):
    monkeypatch.setattr(frozen, "autocasting", lambda kind: False)  # which knows no such device
    run = run_of(backend, JOBS[job])
    with backend.training(run.material.layers, run.adapters, run.config.recomputed, (2, 4, 8, 8)):
        run.untouched.clear()  # in the first steps it is looked at which layers have a gradient
        for step in range(2):
            with Asked() as seen:
                optimizer_step(run, step)
    assert seen.waits == ["_to_copy"], seen.waits
    assert seen.stalls == [], seen.stalls


def test_texts_of_their_own_lengths_are_cut_without_asking_the_device():
    from lora_loom.lora_core.backends.flow import _lists

    mask = torch.tensor([[True] * 5 + [False] * 11, [True] * 16])
    whole = Text(torch.randn(2, 16, 48), None, mask)
    expected = _lists(whole)
    assert [tuple(t.shape) for t in expected] == [(5, 48), (16, 48)]
    assert all(torch.equal(a, b) for a, b in zip(_lists(whole.on(torch.device("cpu"))), expected, strict=True))
    with Asked() as seen:
        lists = _lists(whole.on(META).of(torch.float32))
    assert (seen.waits, seen.stalls) == ([], [])
    assert [tuple(t.shape) for t in lists] == [(5, 48), (16, 48)]
