"""Full-size models with random weights, and one training step on them: ours through either backend, and the least a LoRA step can be."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import platform
import resource
import statistics
import sys
import time
import types
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
HOST = Path(os.environ.get("COMFYUI_DIR", "~/comfy/ComfyUI")).expanduser()
PROGRAMS = Path(os.environ.get("LOOM_PROGRAMS", "~/programs")).expanduser()  # checkouts of other trainers
UNET = {
    "image_size": 32, "use_spatial_transformer": True, "legacy": False, "adm_in_channels": None, "in_channels": 4, "out_channels": 4,
    "model_channels": 320, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1, "use_linear_in_transformer": False,
    "context_dim": 768, "use_temporal_attention": False, "disable_self_attentions": None,
}  # fmt: skip
SDXL = dict(
    sample_size=128, block_out_channels=(320, 640, 1280), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(5, 10, 20), use_linear_projection=True,
    addition_embed_type="text_time", addition_time_embed_dim=256, transformer_layers_per_block=(1, 2, 10), projection_class_embeddings_input_dim=2816,
    cross_attention_dim=2048,
)  # fmt: skip
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "sd15": ("UNet2DConditionModel", dict(sample_size=64, cross_attention_dim=768)),
    "sdxl": ("UNet2DConditionModel", SDXL),
    "flux": ("FluxTransformer2DModel", dict(guidance_embeds=True)),
}
TEXTS = {
    "sd15": ((77, 768), None),
    "sdxl": ((77, 2048), 1280),
    "flux": ((512, 4096), 768),
}  # (tokens, width), width of the pooled text
LR = 1e-4


@dataclasses.dataclass(frozen=True)
class Case:
    """What is timed: model, side of the pictures, batch, number type of the base, device, and settings of the job."""

    model: str = "sd15"
    px: int = 256
    batch: int = 1
    dtype: str = "fp32"
    device: str = "cpu"
    rank: int = 16
    job: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def torch_dtype(self) -> Any:
        import torch

        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.dtype]

    @property
    def latent(self) -> tuple[int, ...]:
        return (self.batch, 16 if self.model == "flux" else 4, self.px // 8, self.px // 8)


def enter_package() -> None:
    """Our package under its own name, whatever its folder is called."""
    if "lora_loom" in sys.modules:
        return
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]
    spec = importlib.util.spec_from_file_location(
        "lora_loom", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["lora_loom"] = package
    spec.loader.exec_module(package)


def enter_host(arguments: Sequence[str] = ("--cpu",)) -> None:
    """Our package, and the host's modules importable, as if it had been started with these arguments."""
    enter_package()
    sys.path.insert(0, str(HOST))
    before, sys.argv = sys.argv, ["main.py", *arguments]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args  # noqa: F401

    sys.argv = before


def host_is_there() -> bool:
    return (HOST / "comfy").is_dir() and importlib.util.find_spec("torchvision") is not None


def randomize(module: Any) -> None:
    import torch

    device = next(module.parameters()).device
    if device.type == "meta":
        return
    rng = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for key, p in module.named_parameters():
            if p.ndim > 1:
                p.normal_(std=0.02, generator=rng)
            else:  # of norms
                p.fill_(1.0 if key.endswith(("weight", "scale")) else 0.0)


def network(case: Case) -> Any:
    """The diffusers network with random weights."""
    import diffusers
    import torch

    name, settings = NETWORKS[case.model]
    with torch.device("meta"):
        made = getattr(diffusers, name)(**settings)
    for module in made.modules():  # straight to its type and device, layer by layer: a 12 B model would not fit twice
        for key, p in list(module.named_parameters(recurse=False)):
            setattr(
                module,
                key,
                torch.nn.Parameter(
                    torch.empty(p.shape, dtype=case.torch_dtype, device=case.device), requires_grad=False
                ),
            )
        for key, value in list(module.named_buffers(recurse=False)):
            setattr(module, key, torch.zeros(value.shape, dtype=value.dtype, device=case.device))
    randomize(made)
    return made.eval()


def text(case: Case) -> Any:
    """Random numbers in place of an encoded caption."""
    import torch
    from lora_loom.lora_core.backends.clip_text import Text

    (tokens, width), pooled = TEXTS[case.model]
    rng = torch.Generator().manual_seed(1)
    hidden = torch.randn(1, tokens, width, generator=rng)
    return Text(hidden, None if pooled is None else torch.randn(1, pooled, generator=rng))


class Loom:
    """Our own step, on cached random latents."""

    def __init__(self, case: Case, pictures: int = 4):
        import torch
        from lora_loom.lora_core.config import parse
        from lora_loom.lora_core.data.batches import Batch
        from lora_loom.lora_core.data.buckets import fit
        from lora_loom.lora_core.optim.groups import make_groups
        from lora_loom.lora_core.optim.optimizers import filled, make_optimizer
        from lora_loom.lora_core.training.build import make_adapters
        from lora_loom.lora_core.training.run import Material, Run, Source

        backend = self.backend(case)
        self.rss_loaded = rss()
        job = filled(
            parse(
                {
                    "steps": 10**6,
                    "optimizer": {"lr": LR},
                    **case.job,
                    "adapter": {"rank": case.rank, **case.job.get("adapter", {})},
                }
            )
        )
        layers, adapters = make_adapters(job, backend)
        latents = torch.randn(pictures, *case.latent, generator=torch.Generator().manual_seed(2)).to(case.device)
        how = fit(case.px, case.px, case.px, 64)

        class Cached:
            def at(self, step: int, micro: int) -> Batch:
                names = ["one.png"] * case.batch
                return Batch(
                    latents[step % pictures],
                    ["a photo"] * case.batch,
                    [how] * case.batch,
                    names,
                    torch.ones(case.batch, device=case.device),
                )

        scaler = torch.amp.GradScaler(case.device, enabled=case.dtype == "fp16")
        self.trained, self.adapters = adapters.count(), len(adapters)
        self._training = backend.training(layers, adapters, job.recomputed, case.latent)
        optimizer = make_optimizer(make_groups(job, adapters), job.optimizer)
        material = Material(
            job,
            backend,
            backend.base_model(job.objective),
            layers,
            adapters,
            backend.objective(job.objective),
            [Source(Cached())],
        )
        self._run = Run(material, optimizer, scaler)
        began = time.perf_counter()
        with torch.inference_mode(False):
            self._training.__enter__()
        adapters.prepare()
        self.start_s, self._step = time.perf_counter() - began, 0

    def step(self) -> float:
        from lora_loom.lora_core.training.step import optimizer_step

        self._step += 1
        return optimizer_step(self._run, self._step).loss

    def close(self) -> None:
        """Gives the model back."""
        self._training.__exit__(None, None, None)


class InHost(Loom):
    """On the host's own SD1.5 class, as the node trains."""

    def backend(self, case: Case) -> Any:
        import comfy.model_patcher
        import comfy.supported_models as sm
        import torch
        from lora_loom.nodes.host.engine.backend import HostBackend

        assert case.model == "sd15"
        with torch.inference_mode():
            config = sm.SD15(dict(UNET))
            config.set_inference_dtype(case.torch_dtype, None)
            model = config.get_model({}, "", device=torch.device("cpu"))
            randomize(model.diffusion_model)
            patcher = comfy.model_patcher.ModelPatcher(
                model, load_device=torch.device("cpu"), offload_device=torch.device("cpu")
            )
        known = text(case).hidden
        clip = type(
            "Text",
            (),
            {
                "layer_idx": None,
                "tokenize": lambda s, t: t,
                "encode_from_tokens_scheduled": lambda s, t: [[known, {"pooled_output": None}]],
            },
        )()
        return HostBackend(patcher, clip, type("NoVae", (), {"downscale_ratio": 8, "latent_channels": 4})())


class Headless(Loom):
    """On diffusers' networks, as the terminal trains."""

    def backend(self, case: Case) -> Any:
        from lora_loom.lora_core.backends.diffusers_backend import DiffusersBackend
        from lora_loom.lora_core.backends.flow import FLOW_FAMILIES, FlowBackend
        from lora_loom.lora_core.backends.headless import Headless as Base

        stored = case.job.get("storage", "auto") != "auto" or case.job.get("offload", 0.0)
        case_here = dataclasses.replace(case, device="cpu") if case.job.get("offload", 0.0) else case
        if case.model == "flux":
            made = FlowBackend.__new__(FlowBackend)
            Base.__init__(made, case.dtype, case.device)
            made.row, made.network, made.latent_step_px = FLOW_FAMILIES["FluxPipeline"], network(case_here), 16
            made.pipe = types.SimpleNamespace(scheduler=_schedule("flux"))
            made.vae = types.SimpleNamespace(config={"latent_channels": case.latent[1]})
        else:
            made = DiffusersBackend(Path("random"), case.dtype, case.device, _parts(case_here))
        if stored:
            made.store(case.job.get("storage", "auto"), case.job.get("offload", 0.0), case.device)
        if case.job.get("compile", False):
            made.compile_blocks()
        made._texts["a photo"] = text(case)
        return made


def _schedule(model: str) -> Any:
    from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

    if model == "flux":
        return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def _parts(case: Case, unet: Any = None) -> Any:
    """What a single file would give: the UNet in full, encoders of the smallest size, for nothing is encoded."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    names = ["text_encoder", "text_encoder_2"] if case.model == "sdxl" else ["text_encoder"]
    width = 1280 if case.model == "sdxl" else 512  # of the pooled text
    small = CLIPTextConfig(
        vocab_size=64, num_hidden_layers=1, bos_token_id=1, eos_token_id=2, pad_token_id=0, projection_dim=width
    )
    components = {name: CLIPTextModel(small) for name in names} | {
        name.replace("text_encoder", "tokenizer"): None for name in names
    }
    vae = AutoencoderKL(
        block_out_channels=(32,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    return types.SimpleNamespace(
        unet=unet or network(case), vae=vae, components=components, scheduler=_schedule(case.model)
    )


class Minimal:
    """The least a LoRA step can be: the same network, hand-written branches on attention, cached inputs, fused AdamW, clipped gradients."""

    def __init__(self, case: Case):
        import torch
        import torch.nn.functional as F

        torch.manual_seed(0)
        self._case, self._network, self._params = case, network(case), []
        for name, layer in self._network.named_modules():
            if isinstance(layer, torch.nn.Linear) and _targeted(name):
                down = torch.nn.Parameter(torch.randn(case.rank, layer.in_features, device=case.device) / case.rank)
                up = torch.nn.Parameter(torch.zeros(layer.out_features, case.rank, device=case.device))
                self._params += [down, up]

                def forward(x, base=layer.forward, down=down, up=up):
                    return base(x) + F.linear(F.linear(x, down.to(x.dtype)), up.to(x.dtype))

                layer.forward = forward
        self.trained = sum(p.numel() for p in self._params)
        self._optimizer = torch.optim.AdamW(self._params, lr=LR, fused=True)
        self._schedule = _schedule(case.model)
        self._latents = torch.randn(4, *case.latent, generator=torch.Generator().manual_seed(2)).to(case.device)
        known = text(case)
        self._text = known.hidden.expand(case.batch, -1, -1).to(case.device, case.torch_dtype)
        self._pooled = (
            None if known.pooled is None else known.pooled.expand(case.batch, -1).to(case.device, case.torch_dtype)
        )
        self._step = 0

    def step(self) -> float:
        import torch

        self._step += 1
        loss = self.forward_backward()
        torch.nn.utils.clip_grad_norm_(self._params, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def close(self) -> None:
        """As `Loom` has it; there is nothing to give back."""

    def forward_backward(self) -> Any:
        import torch

        x0 = self._latents[self._step % 4]
        noise = torch.randn_like(x0)
        pred, target = self._flow(x0, noise) if self._case.model == "flux" else self._ddpm(x0, noise)
        loss = (pred.float() - target).square().mean()
        loss.backward()
        return loss

    def _ddpm(self, x0: Any, noise: Any) -> tuple[Any, Any]:
        import torch

        case = self._case
        t = torch.randint(0, 1000, (case.batch,), device=case.device)
        added = None
        if self._pooled is not None:
            added = {
                "text_embeds": self._pooled,
                "time_ids": torch.tensor([[case.px, case.px, 0, 0, case.px, case.px]] * case.batch, device=case.device),
            }
        x = self._schedule.add_noise(x0, noise, t).to(case.torch_dtype)
        return self._network(x, t, self._text, added_cond_kwargs=added).sample, noise

    def _flow(self, x0: Any, noise: Any) -> tuple[Any, Any]:
        import torch
        from lora_loom.lora_core.backends.flow import patches, pixels

        case, side = self._case, self._case.px // 16
        s = torch.rand(case.batch, device=case.device)
        x = torch.lerp(x0, noise, s.view(-1, 1, 1, 1)).to(case.torch_dtype)
        places = torch.cartesian_prod(torch.arange(1), torch.arange(side), torch.arange(side)).to(
            case.device, torch.float32
        )
        out = self._network(
            patches(x),
            timestep=s,
            guidance=torch.ones(case.batch, device=case.device),
            pooled_projections=self._pooled,
            encoder_hidden_states=self._text,
            txt_ids=places.new_zeros(self._text.shape[1], 3),
            img_ids=places,
        ).sample
        return pixels(out, case.px // 8, case.px // 8), noise - x0


def _targeted(name: str) -> bool:
    """Whether our preset `attention` has the layer."""
    from lora_loom.lora_core.adapters.targets import PRESETS

    return PRESETS["attention"](name, 2)


# ---- measuring -----------------------------------------------------------------------------------------------------------


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def timed(engine: Any, steps: int) -> list[tuple[float, float]]:
    """(CPU seconds, wall seconds) of each step."""
    out = []
    for _ in range(steps):
        cpu, wall = time.process_time(), time.perf_counter()
        engine.step()
        out.append((time.process_time() - cpu, time.perf_counter() - wall))
    return out


def turns(engines: dict[str, Any], steps: int, rounds: int) -> dict[str, list[float]]:
    """Median (CPU seconds, wall seconds) of a step of each, taking turns, after two steps to warm up."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for engine in engines.values():
        timed(engine, 2)
    for _ in range(rounds):
        for name, engine in engines.items():
            times[name] += timed(engine, steps)
    return {name: [statistics.median(column) for column in zip(*rows)] for name, rows in times.items()}


def peak_above(loaded: int, work: Callable[[], Any]) -> int:
    """Bytes of resident memory above `loaded` at the peak of `work()`."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    work()
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024 - loaded


def written(name: str, what: str, file: Path | None = None, **rows: Any) -> None:
    """One JSON file of figures, with what they were taken on."""
    import torch

    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    report = {
        "what": what,
        "date": date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores, {cpu}",
        **gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
        **rows,
    }
    file = file or RESULTS / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1) + "\n")
