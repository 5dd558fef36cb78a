"""Processor time of a step besides its arithmetic: models of the real depth and module count, but so narrow that the products are next to nothing.

    python benchmarks/launch.py [--models sd15 sdxl flux zimage wan] [--ways least host compiled] [--steps 2] [--rounds 6]

With --models the rows of the others stay as they were measured.

8 x 8 latents, batch 1, one thread, float32, rank 4 on attention. What a GPU waits for at small sizes is this time, and it can be measured without one.
All take turns in one process; the shortest step of each counts, since other load on the machine only ever adds. Calls of Python functions are counted
beside it: they do not depend on the machine. ComfyUI's own trainer has no choice of layers: it trains every weight, norm and bias.
Needs a ComfyUI checkout ($COMFYUI_DIR, else ~/comfy/ComfyUI) and its Python environment with diffusers and peft; for the layers of sd-scripts its checkout
(in $LOOM_PROGRAMS, else ~/programs) and what that imports (opencv, imagesize, toml, voluptuous).
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import dataclasses
import io
import json
import logging
import pstats
import subprocess
import sys
import time
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engines
from engines import LR, Case, Loom

Ask = Callable[[Any, Any, Any, Any], Any]  # (network, x (1, C, ...), share of noise (1,), text) -> prediction


@dataclasses.dataclass(frozen=True)
class Family:
    """`network`: diffusers' class and settings; `host`: ComfyUI's; `text`: (tokens, width, width of the pooled text)."""

    network: tuple[str, dict[str, Any]]
    host: tuple[str, dict[str, Any]]
    latent: tuple[int, ...]
    text: tuple[int, int, int | None]
    pipeline: str
    ask: Ask


def _unet(network: Any, x: Any, share: Any, text: Any) -> Any:
    import torch

    added = None
    if text.pooled is not None:
        added = {"text_embeds": text.pooled, "time_ids": torch.tensor([[64, 64, 0, 0, 64, 64]])}
    return network(x, (share * 999).long(), text.hidden, added_cond_kwargs=added).sample


def _flux(network: Any, x: Any, share: Any, text: Any) -> Any:
    from lora_loom.lora_core.backends.flow import FLOW_FAMILIES

    return FLOW_FAMILIES["FluxPipeline"].ask(_asked(network), x, share, text)


def _zimage(network: Any, x: Any, share: Any, text: Any) -> Any:
    from lora_loom.lora_core.backends.flow import FLOW_FAMILIES

    return FLOW_FAMILIES["ZImagePipeline"].ask(_asked(network), x, share, text)


def _asked(network: Any) -> Any:
    import torch

    return types.SimpleNamespace(network=network, guidance=lambda count: torch.ones(count))


def _wan(network: Any, x: Any, share: Any, text: Any) -> Any:
    return network(x, share * 1000, text.hidden, return_dict=False)[0]


_HOST_UNET = {
    "image_size": 32, "use_spatial_transformer": True, "legacy": False, "in_channels": 4, "out_channels": 4, "model_channels": 32, "context_dim": 48,
    "use_temporal_attention": False, "disable_self_attentions": None,
}  # fmt: skip
FAMILIES = {
    "sd15": Family(
        ("UNet2DConditionModel", dict(sample_size=8, cross_attention_dim=48, block_out_channels=(32, 64, 64, 64))),
        ("SD15", {**_HOST_UNET, "adm_in_channels": None, "num_res_blocks": [2] * 4, "channel_mult": [1, 2, 2, 2], "transformer_depth": [1] * 6 + [0] * 2,
                  "transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1, "use_linear_in_transformer": False}),
        (4, 8, 8), (16, 48, None), "", _unet),
    "sdxl": Family(
        ("UNet2DConditionModel", {**engines.SDXL, "sample_size": 8, "block_out_channels": (32, 64, 64), "attention_head_dim": (1, 1, 1),
                                  "cross_attention_dim": 48}),
        ("SDXL", {**_HOST_UNET, "adm_in_channels": 2816, "num_classes": "sequential", "num_res_blocks": [2] * 3, "channel_mult": [1, 2, 2],
                  "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10,
                  "use_linear_in_transformer": True}),
        (4, 8, 8), (16, 48, 1280), "", _unet),
    "flux": Family(
        ("FluxTransformer2DModel", dict(in_channels=64, num_layers=19, num_single_layers=38, attention_head_dim=32, num_attention_heads=2,
                                        joint_attention_dim=48, pooled_projection_dim=24, axes_dims_rope=(8, 12, 12), guidance_embeds=True)),
        ("Flux", {"image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 24, "context_in_dim": 48, "hidden_size": 64, "mlp_ratio": 4.0,
                  "num_heads": 2, "depth": 19, "depth_single_blocks": 38, "axes_dim": [8, 12, 12], "theta": 10000, "qkv_bias": True, "patch_size": 2,
                  "guidance_embed": True, "txt_ids_dims": []}),
        (16, 8, 8), (16, 48, 24), "FluxPipeline", _flux),
    "zimage": Family(
        ("ZImageTransformer2DModel", dict(in_channels=16, dim=64, n_layers=30, n_refiner_layers=2, n_heads=2, n_kv_heads=2, cap_feat_dim=48,
                                          axes_dims=[8, 12, 12], axes_lens=[64, 64, 64])),
        ("ZImage", {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "cap_feat_dim": 48, "dim": 64, "n_layers": 30, "n_refiner_layers": 2,
                    "n_heads": 2, "n_kv_heads": 2, "qk_norm": True, "axes_dims": [8, 12, 12], "axes_lens": [64, 64, 64], "rope_theta": 256.0,
                    "ffn_dim_multiplier": 8.0 / 3.0, "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32}),
        (16, 8, 8), (16, 48, None), "ZImagePipeline", _zimage),
    "wan": Family(
        ("WanTransformer3DModel", dict(num_attention_heads=2, attention_head_dim=32, text_dim=48, freq_dim=32, ffn_dim=128, num_layers=30)),
        ("WAN21_T2V", {"image_model": "wan2.1", "model_type": "t2v", "patch_size": (1, 2, 2), "text_len": 16, "in_dim": 16, "dim": 64, "ffn_dim": 128,
                       "freq_dim": 32, "text_dim": 48, "out_dim": 16, "num_heads": 2, "num_layers": 30, "window_size": (-1, -1), "qk_norm": True,
                       "cross_attn_norm": True, "eps": 1e-6}),
        (16, 1, 8, 8), (16, 48, None), "", _wan),
}  # fmt: skip
TITLES = {"sd15": "SD1.5", "sdxl": "SDXL", "flux": "Flux.1", "zimage": "Z-Image", "wan": "Wan 2.1"}


class Narrow(Case):
    @property
    def latent(self) -> tuple[int, ...]:
        return (self.batch, *FAMILIES[self.model].latent)


def network(case: Case) -> Any:
    import diffusers

    name, settings = FAMILIES[case.model].network
    made = getattr(diffusers, name)(**settings)
    engines.randomize(made)
    return made.eval().requires_grad_(False)


def text(case: Case) -> Any:
    """Random numbers in place of an encoded caption."""
    import torch
    from lora_loom.lora_core.backends.clip_text import Text

    tokens, width, pooled = FAMILIES[case.model].text
    rng = torch.Generator().manual_seed(1)
    hidden = torch.randn(1, tokens, width, generator=rng)
    mask = torch.ones(1, tokens, dtype=torch.bool)
    return Text(hidden, None if pooled is None else torch.randn(1, pooled, generator=rng), mask)


class Headless(Loom):
    """Ours on diffusers' network. (Wan has no row of its own in the engine; it is asked by the function of this file.)"""

    def backend(self, case: Case) -> Any:
        from lora_loom.lora_core.backends.diffusers_backend import DiffusersBackend
        from lora_loom.lora_core.backends.flow import FLOW_FAMILIES, FlowBackend
        from lora_loom.lora_core.backends.headless import Headless as Base

        family = FAMILIES[case.model]
        if family.ask is _unet:
            made: Any = DiffusersBackend(Path("random"), "fp32", "cpu", engines._parts(case, network(case)))
        else:
            made = FlowBackend.__new__(FlowBackend)
            Base.__init__(made, "fp32", "cpu")
            row = FLOW_FAMILIES[family.pipeline or "FluxPipeline"]
            if not family.pipeline:
                ask = family.ask
                row = dataclasses.replace(row, ask=lambda backend, x, share, text: ask(backend.network, x, share, text))
            made.row, made.network, made.latent_step_px = row, network(case), 8
            made.pipe = types.SimpleNamespace(scheduler=engines._schedule("flux"))
            made.vae = types.SimpleNamespace(config={"latent_channels": family.latent[0]})
        made._texts["a photo"] = text(case)
        return made


class InHost(Loom):
    """Ours on the host's network, as the node trains."""

    def backend(self, case: Case) -> Any:
        from lora_loom.nodes.host.engine.backend import HostBackend

        channels = FAMILIES[case.model].latent[0]
        vae = type("NoVae", (), {"downscale_ratio": 8, "latent_channels": channels})()
        return HostBackend(host_model(case), _clip(case), vae)


class InHostCompiled(InHost):
    """The same with the host's blocks compiled, which needs a C++ compiler and some minutes."""

    def backend(self, case: Case) -> Any:
        backend = super().backend(case)
        backend.compile_blocks()
        return backend


def host_model(case: Case, inference: bool = True, **_: Any) -> Any:
    """A MODEL of the host with random weights; as tensors of inference mode, as the host loads them into a workflow."""
    import comfy.model_patcher
    import comfy.supported_models as sm
    import torch

    name, settings = FAMILIES[case.model].host
    with torch.inference_mode(inference):
        config = getattr(sm, name)(dict(settings))
        if "model_channels" not in settings:  # some classes put the published sizes back
            config.unet_config.update(settings)
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model({}, "", device=torch.device("cpu"))
        _narrow_modulation(model.diffusion_model)
        engines.randomize(model.diffusion_model)
        for value in model.diffusion_model.buffers():  # some hold whatever was in memory until a checkpoint fills them
            if value.is_floating_point():
                value.zero_()
        cpu = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def _narrow_modulation(network: Any) -> None:
    """Z-Image's class takes 256 numbers for the noise level whatever its width, and its blocks read as many as they are wide: here they read 256 too."""
    for module in network.modules():
        for key, layer in list(
            getattr(module, "adaLN_modulation", {}).named_children() if hasattr(module, "adaLN_modulation") else ()
        ):
            if getattr(layer, "in_features", 256) < 256 and type(network).__name__ == "NextDiT":
                module.adaLN_modulation[int(key)] = type(layer)(256, layer.out_features, bias=layer.bias is not None)


def _conditioning(case: Case) -> list[Any]:
    known = text(case)
    return [[known.hidden, {"pooled_output": known.pooled}]]


def _clip(case: Case) -> Any:
    encode = {
        "layer_idx": None,
        "tokenize": lambda s, t: t,
        "encode_from_tokens_scheduled": lambda s, t: _conditioning(case),
    }
    return type("Text", (), encode)()


class Least:
    """The least a LoRA step can be by hand: diffusers' network, two products a layer, cached inputs, fused AdamW, clipped gradients."""

    def __init__(self, case: Case):
        import torch

        torch.manual_seed(0)
        self._family, self._network, self._text, self._step = FAMILIES[case.model], network(case), text(case), 0
        self._latents = torch.randn(4, *case.latent, generator=torch.Generator().manual_seed(2))
        self._params = self.hang(case)
        self.trained = sum(p.numel() for p in self._params)
        self._optimizer = torch.optim.AdamW(self._params, lr=LR, fused=True)
        self._schedule = engines._schedule("sd15")

    def hang(self, case: Case) -> list[Any]:
        import torch
        import torch.nn.functional as F

        params = []
        for name, layer in self._network.named_modules():
            if isinstance(layer, torch.nn.Linear) and engines._targeted(name):
                down = torch.nn.Parameter(torch.randn(case.rank, layer.in_features) / case.rank)
                up = torch.nn.Parameter(torch.zeros(layer.out_features, case.rank))
                params += [down, up]

                def forward(x, base=layer.forward, down=down, up=up):
                    return base(x) + F.linear(F.linear(x, down), up)

                layer.forward = forward
        return params

    def step(self) -> float:
        import torch

        self._step += 1
        x0 = self._latents[self._step % 4]
        noise, share = torch.randn_like(x0), torch.rand(1)
        if self._family.ask is _unet:
            x_t, target = self._schedule.add_noise(x0, noise, (share * 999).long()), noise
        else:
            x_t, target = torch.lerp(x0, noise, share.view(-1, *[1] * (x0.ndim - 1))), noise - x0
        pred = self._family.ask(self._network, x_t, share, self._text)
        loss = (pred.float() - target).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._params, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.item()


class Peft(Least):
    """The same loop with the adapters of peft, as diffusers' examples hang them."""

    def hang(self, case: Case) -> list[Any]:
        import torch
        from peft import LoraConfig

        linear = [n for n, m in self._network.named_modules() if isinstance(m, torch.nn.Linear)]
        targets = [name for name in linear if engines._targeted(name)]
        self._network.add_adapter(LoraConfig(r=case.rank, lora_alpha=case.rank, target_modules=targets))
        return [p for p in self._network.parameters() if p.requires_grad]


class SdScripts(Least):
    """The same loop with the layers of sd-scripts, hung where the others hang theirs. Raises ImportError where its sources or what they import are absent."""

    def hang(self, case: Case) -> list[Any]:
        import torch

        sys.path.append(str(engines.PROGRAMS / "sd-scripts"))
        from networks.lora import LoRAModule

        self._hung = [
            LoRAModule(name.replace(".", "_"), layer, 1.0, case.rank, case.rank)
            for name, layer in self._network.named_modules()
            if isinstance(layer, torch.nn.Linear) and engines._targeted(name)
        ]
        for layer in self._hung:
            layer.apply_to()
        return [p for layer in self._hung for p in layer.parameters()]


class Native:
    """The host's own node. It cannot stop between two steps, so a turn is a call of it, of which each step is timed inside."""

    def __init__(self, case: Case):
        import comfy_extras.nodes_train as native
        import torch

        self._native, self._model, self.trained = native, host_model(case), 0
        self._model.cached_patcher_init = (host_model, (case, False))  # how the host loads the copy that it trains
        latents = torch.randn(4, *case.latent[1:], generator=torch.Generator().manual_seed(2))
        one = dict(batch_size=1, grad_accumulation_steps=1, learning_rate=LR, rank=case.rank, optimizer="AdamW", loss_function="MSE", seed=0,
                   training_dtype="fp32", lora_dtype="fp32", quantized_backward=False, algorithm="LoRA", gradient_checkpointing=False, checkpoint_depth=1,
                   offloading=False, existing_lora="[None]", bucket_mode=False, bypass_mode=False)  # fmt: skip
        self._inputs = {name: [value] for name, value in one.items()}
        self._inputs |= {"model": [self._model], "latents": [{"samples": latents}], "positive": [_conditioning(case)]}

    def run(self, steps: int, around: Callable[[Callable[[], Any]], Any]) -> None:
        """Trains `steps` steps, each run by `around(step)`."""
        kind, step = self._native.TrainSampler, self._native.TrainSampler._train_step_standard_mode
        kind._train_step_standard_mode = lambda *args: around(lambda: step(*args))
        try:
            logging.disable(logging.WARNING)
            with contextlib.redirect_stderr(io.StringIO()):
                self._native.TrainLoraNode.execute(**self._inputs, steps=[steps])
        finally:
            logging.disable(logging.NOTSET)
            kind._train_step_standard_mode = step


WAYS: dict[str, Callable[[Case], Any]] = {
    "least": Least,
    "headless": Headless,
    "host": InHost,
    "peft": Peft,
    "sd-scripts": SdScripts,
    "native": Native,
}
OTHERS = ("peft", "sd-scripts", "native")  # programs that may be absent, or may not train a model
AT_WISH: dict[str, Callable[[Case], Any]] = {"compiled": InHostCompiled}  # in no table


# ---- measuring -----------------------------------------------------------------------------------------------------------


def each(engine: Any, steps: int, around: Callable[[Callable[[], Any]], Any]) -> None:
    if isinstance(engine, Native):
        engine.run(steps, around)
    else:
        for _ in range(steps):
            around(engine.step)


def shortest(made: dict[str, Any], steps: int, rounds: int) -> dict[str, float]:
    """Milliseconds of processor time of the shortest step of each, taking turns."""
    best = dict.fromkeys(made, float("inf"))
    for n in range(rounds + 1):
        for name, engine in made.items():

            def around(
                step: Callable[[], Any], name: str = name, counts: bool = n > 0
            ) -> None:  # the first turn warms up
                began = time.process_time()
                step()
                spent = time.process_time() - began
                if counts:
                    best[name] = min(best[name], spent)

            each(engine, steps, around)
    return {name: round(seconds * 1e3, 2) for name, seconds in best.items()}


def profiled(engine: Any) -> pstats.Stats:
    """Of one step after two others. Backward passes of a CPU run on the calling thread, so they are in it."""
    profile, steps = cProfile.Profile(time.process_time), []

    def around(step: Callable[[], Any]) -> None:
        steps.append(step)
        if len(steps) == 3:
            profile.enable()
            step()
            profile.disable()
        else:
            step()

    each(engine, 3, around)
    return pstats.Stats(profile)


def calls(stats: pstats.Stats) -> int:
    """Calls of Python functions, those of C not counted."""
    return sum(count for (file, _, _), (_, count, *_) in stats.stats.items() if file != "~")  # type: ignore[attr-defined]


PARTS = (
    ("frozen layers", ("borrowing/frozen", "borrowing/layers", "borrowing/aliases", "engine/layers")),
    ("branches", ("algebra/", "adapters/")),
    ("guards and checkpointing", ("borrowing/", "utils/checkpoint")),
    ("conditioning and texts", ("engine/conditioning", "engine/captions", "engine/texts", "clip_text")),
    ("optimizer", ("torch/optim", "clip_grad", "_foreach")),
    ("other bookkeeping of ours", ("lora_core/", "nodes/host")),
    ("autograd's own operations", ("autograd/",)),
    ("the model's forward", ("",)),
)


def parts(stats: pstats.Stats) -> dict[str, float]:
    """Share of each part in a profiled step: own time of Python functions by their file, and of C functions by the file that calls them."""
    spent: Counter[str] = Counter()

    def part(file: str) -> str:
        def has_one_of(marks: tuple[str, ...]) -> bool:
            return any(mark in file for mark in marks)

        return next(name for name, marks in PARTS if has_one_of(marks))

    for (file, _, _), (_, _, seconds, _, callers) in stats.stats.items():  # type: ignore[attr-defined]
        if file != "~":
            spent[part(file)] += seconds
        for (caller, _, _), (_, _, seconds_there, _) in callers.items() if file == "~" else ():
            spent[part(caller)] += seconds_there
    whole = sum(spent.values())
    return {name: round(spent[name] / whole, 3) for name, _ in PARTS}


def arithmetic(case: Case) -> float:
    """MFLOP of a step of the least loop, counted."""
    from torch.utils.flop_counter import FlopCounterMode

    least = Least(case)
    with FlopCounterMode(display=False) as counted:
        least.step()
    return round(counted.get_total_flops() / 1e6, 1)


def engines_of(case: Case, ways: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Those that train the model, and why the others, of other programs, do not."""
    made, failed = {}, {}
    for way in ways:
        try:
            made[way] = (WAYS | AT_WISH)[way](case)
            if way in OTHERS:
                each(made[way], 1, lambda step: step())
        except (RuntimeError, ImportError) as error:
            if way not in OTHERS:
                raise
            failed[way] = str(error).partition(":")[0][:160]
            made.pop(way, None)
    return made, failed


def measured(model: str, ways: list[str], steps: int, rounds: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    case = Narrow(model=model, px=64, rank=4)
    made, failed = engines_of(case, ways)
    layers = {
        way: len(engine._params) // 2 if isinstance(engine, Least) else getattr(engine, "adapters", None)
        for way, engine in made.items()
    }
    best = shortest(made, steps, rounds)
    stats = {way: profiled(engine) for way, engine in made.items()}
    return {
        "model": TITLES[model],
        "adapters": layers,
        "mflop": arithmetic(case),
        "ms": best,
        "failed": failed,
        "ratio": {way: round(best[way] / best["least"], 2) for way in best} if "least" in best else {},
        "calls": {way: calls(one) for way, one in stats.items()},
        "parts": {way: parts(stats[way]) for way in ("headless", "host") if way in stats},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=[*WAYS, *AT_WISH])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        engines.enter_host()
        row = measured(args.one, args.ways, args.steps, args.rounds)
        sys.stdout.write("ROW " + json.dumps(row) + "\n")
        return
    rows = []
    for model in args.models:
        command = [sys.executable, __file__, "--one", model, "--ways", *args.ways]
        command += ["--steps", str(args.steps), "--rounds", str(args.rounds)]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = [line[4:] for line in done.stdout.splitlines() if line.startswith("ROW ")]
        if not lines:
            raise SystemExit(done.stderr[-3000:])
        sys.stdout.write(lines[0] + "\n")
        sys.stdout.flush()
        rows.append(json.loads(lines[0]))
    if args.ways != list(WAYS):
        return
    file = engines.RESULTS / "launch.json"
    before = json.loads(file.read_text())["rows"] if file.exists() else []
    known = {row["model"]: row for row in [*before, *rows]}
    what = "a step of models of real depth, but narrow: 8 x 8 latents, batch 1, rank 4 on attention, float32, one thread, shortest of several in turns"
    engines.written("launch", what, rows=[known[title] for title in TITLES.values() if title in known])


if __name__ == "__main__":
    main()
