"""Every setting is followed by each headless backend, or refused, or told as without effect: none is taken and ignored."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest
import tiny_flow
import tiny_unet
import torch
from lora_loom.lora_core.backends.base import SampleJob
from lora_loom.lora_core.backends.diffusers_backend import Ancestral
from lora_loom.lora_core.backends.networks import blocks
from lora_loom.lora_core.backends.opening import open_backend
from lora_loom.lora_core.config import ObjectiveConfig, SampleConfig, TrainConfig, parse
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.objectives import DiscreteLevels, FlowLevels, Objective
from lora_loom.lora_core.training.assemble import idle
from lora_loom.lora_core.training.prompts import require_drawable
from lora_loom.nodes.page.fields import sections

KINDS = [
    *tiny_unet.MAKERS,
    *tiny_flow.MAKERS,
    "flux1 schnell",
    "kandinsky prior",
    "kandinsky decoder",
    "wuerstchen prior",
    "wuerstchen decoder",
]
SIDE_PX = {"kandinsky prior": 64, "kandinsky decoder": 64, "wuerstchen prior": 256, "wuerstchen decoder": 256}
START = {"steps": 2, "cfg": 2.0, "seed": 3}
OTHER = {
    "negative": "a blue square", "steps": 3, "cfg": 5.0, "seed": 4, "sampler": "heun", "scheduler": "karras",
}  # fmt: skip
ELSEWHERE = {
    "prompt": "the text of the job",
    "every": "when samples are drawn",
    "width_px": "of the job",
    "height_px": "of the job",
    "frames": "of hosts that film",
}


def drawn(backend, kind: str, **settings) -> list[bytes]:
    """A sample, and what the network was asked on the way to it, which a tiny random decoder may not show."""
    side, asked = SIDE_PX.get(kind, 16), []

    def note(module, given, named):
        values = [v for value in (*given, *named.values()) for v in (value if isinstance(value, list) else [value])]
        asked.extend(v.detach().float().numpy().tobytes() for v in values if torch.is_tensor(v))

    hook = backend.network.register_forward_pre_hook(note, with_kwargs=True)
    try:
        (image,) = backend.sample(SampleJob("a red circle", side, side, SampleConfig(**{**START, **settings})))
    finally:
        hook.remove()
    return [image.tobytes(), *asked]


def messages(backend, **samples) -> list[str]:
    """The fields of what is said about samples before the first step."""
    config = parse({"samples": {"prompt": "a red circle", "width_px": 64, "height_px": 64, **START, **samples}})
    try:
        return [message.field for message in require_drawable(config, backend)]
    except LoomError as error:
        return [error.message.field]


def test_every_setting_of_samples_is_in_the_table():
    assert {field.name for field in dataclasses.fields(SampleConfig)} == {*OTHER, *ELSEWHERE}


@pytest.mark.parametrize("kind", KINDS)
def test_each_setting_of_samples_changes_the_picture_or_is_refused_or_told(kind, models):
    _, backend = models(kind)
    plain = drawn(backend, kind)
    assert plain == drawn(backend, kind)
    for name, value in OTHER.items():
        told = (
            f"samples.{name}" in messages(backend, **{name: value}) and f"samples.{name}" not in messages(backend)[:0]
        )
        if name == "cfg":
            told = told and messages(backend, cfg=SampleConfig.cfg).count("samples.cfg") == 0
        followed = not told and drawn(backend, kind, **{name: value}) != plain
        assert told or followed, name


@pytest.mark.parametrize("kind", KINDS)
def test_each_sampler_that_is_offered_draws_another_picture_or_is_the_same_by_its_formula(kind, models):
    _, backend = models(kind)
    pictures = {name: drawn(backend, kind, sampler=name) for name in backend.samplers().names}
    same = {"ddim"} & pictures.keys()
    assert len({tuple(picture) for picture in pictures.values()}) == len(pictures) - len(same)
    assert all(pictures[name] == pictures["euler"] for name in same)


def test_a_sampler_that_is_not_drawn_here_is_refused_wherever_it_is_asked_for(models):
    _, backend = models("sd1")
    sentence = "'heun' cannot be used with this model here; allowed are euler, ddim, euler_ancestral, dpmpp_2m"
    with pytest.raises(LoomError, match=f"^samples.sampler: {sentence}"):
        require_drawable(parse({"samples": {"sampler": "heun"}}), backend)
    with pytest.raises(LoomError, match=f"^samples.prompt: {sentence}"):
        require_drawable(parse({"samples": {"prompt": "a cat\na dog --ss heun"}}), backend)
    with pytest.raises(
        LoomError, match="^samples.scheduler: 'karras' cannot be used with this model here; allowed are simple"
    ):
        require_drawable(parse({"samples": {"scheduler": "karras"}}), backend)
    assert require_drawable(parse({"samples": {"sampler": "heun", "every": 0}}), backend) == []
    with pytest.raises(LoomError):  # class pictures are drawn with it
        require_drawable(parse({"samples": {"sampler": "heun", "every": 0}, "prior": {"prompt": "a dog"}}), backend)


def test_a_size_that_is_rounded_is_told_with_the_size_that_is_drawn(models):
    _, backend = models("sd1")
    [message] = require_drawable(parse({"samples": {"width_px": 65, "height_px": 63}}), backend)
    assert (
        str(message)
        == "samples.width_px: samples of 65 x 63 px are generated at 64 x 62 px, since this model needs multiples of 2 px."
    )
    (image,) = backend.sample(SampleJob("x", 65, 63, SampleConfig(steps=1)))
    assert image.size == (64, 62)


def test_ancestral_steps_end_at_the_level_they_are_asked_for():
    """With nothing but noise in the picture, what is left after a step has the deviation of the level."""
    rng, sigma, lower = torch.Generator().manual_seed(0), 4.0, 1.5
    x = torch.randn(1, 4, 200, 200, generator=rng) * sigma
    stepped = Ancestral(rng)(x, torch.zeros_like(x), sigma, lower)
    assert float(stepped.std()) == pytest.approx(lower, rel=0.02)
    assert torch.equal(Ancestral(rng)(x, torch.zeros_like(x), sigma, 0.0), torch.zeros_like(x))


# ---- the objective -----------------------------------------------------------------------------------------------------

CHANGES = {  # setting -> (another value, what has to be on beside it)
    "prediction": ("v", {}), "timesteps": ("logit_normal", {}), "timestep_bias": (1.0, {}), "logit_mean": (1.0, {"timesteps": "logit_normal"}),
    "logit_std": (0.5, {"timesteps": "logit_normal"}), "shift": (5.0, {}), "min_timestep": (400, {}), "max_timestep": (500, {}),
    "weighting": ("min_snr", {}), "min_snr_gamma": (1.0, {"weighting": "min_snr"}), "p2_gamma": (0.3, {"weighting": "p2"}), "noise_offset": (0.1, {}),
    "multires_iterations": (3, {}), "multires_discount": (0.8, {"multires_iterations": 3}), "input_perturbation": (0.1, {}), "zero_terminal_snr": (True, {}),
}  # fmt: skip
BY_MODEL = (
    "prediction",
    "shift",
    "zero_terminal_snr",
)  # what decides on kind and levels of the objective, in each backend


def trace(objective: Objective) -> list[torch.Tensor]:
    """All that a step asks of an objective, for fixed numbers."""
    rng = torch.Generator().manual_seed(0)
    x0 = torch.randn(4, 4, 8, 8, generator=rng)
    sigma, noise = objective.draw_sigma(4, rng), objective.draw_noise(x0, rng)
    perturbed = objective.perturbed(noise, rng)
    return [
        sigma,
        noise,
        perturbed,
        objective.corrupt(x0, perturbed, sigma),
        objective.target(x0, noise, sigma),
        objective.weight(sigma),
    ]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_setting_of_the_objective_is_in_the_table():
    assert {field.name for field in dataclasses.fields(ObjectiveConfig)} == set(CHANGES)


@pytest.mark.parametrize("kind", ["epsilon", "v", "x0", "flow"])
def test_each_setting_of_the_objective_changes_a_step_or_is_told(kind):
    levels = FlowLevels(3.0) if kind == "flow" else DiscreteLevels(torch.logspace(-1.5, 1.1, 1000).double())
    for name, (value, beside) in CHANGES.items():
        if name in BY_MODEL:
            continue
        plain, other = ObjectiveConfig(**beside), ObjectiveConfig(**{**beside, name: value})
        told = kind in ("x0", "flow") and other.weighting != "none"  # weighting.idle
        changed = not same(trace(Objective(kind, levels, plain)), trace(Objective(kind, levels, other)))
        already = name == "timesteps" and kind == "flow"  # what auto is
        assert told or changed or already, name
    assert [m.field for m in idle(ObjectiveConfig(logit_mean=1.0, logit_std=0.5, timesteps="uniform"), kind)] == [
        "objective.logit_mean",
        "objective.logit_std",
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BY_MODEL)
def test_each_backend_follows_what_is_said_of_its_model_or_refuses_or_tells(kind, name, models):
    _, backend = models(kind)
    config, plain = ObjectiveConfig(**{name: CHANGES[name][0]}), backend.objective(ObjectiveConfig())
    try:
        other = backend.objective(config)
    except LoomError as error:
        answered = error.message.field
    else:
        told = [message.field for message in idle(config, other.kind)]
        already = plain.kind == "v" == config.prediction
        followed = already or other.kind != plain.kind or not same(trace(plain), trace(other))
        answered = f"objective.{name}" if followed or f"objective.{name}" in told else ""
    finally:
        backend.objective(ObjectiveConfig())
    assert answered == f"objective.{name}"


# ---- how a base is opened -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_compiled_or_it_is_refused(kind, models, monkeypatch):
    _, backend = models(kind)
    monkeypatch.setattr(backend, "_compiles", False)
    if blocks(backend.network):
        backend.compile_blocks()
        assert backend._compiles
    else:
        with pytest.raises(LoomError, match="^compile: .* has no blocks that can be compiled"):
            backend.compile_blocks()


def test_what_a_base_of_this_kind_does_not_need_is_refused_by_its_setting(models, tmp_path):
    folder, _ = models("sdxl")
    with pytest.raises(
        LoomError, match="^companion: it is for models of two stages .*sdxl is a StableDiffusionXLPipeline"
    ):
        open_backend(str(folder), str(tmp_path), device="cpu")
    with pytest.raises(LoomError, match="^base_config: it is for a base that is a single file, and sdxl is a folder"):
        open_backend(str(folder), device="cpu", base_config=str(tmp_path))


# ---- all settings ------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[3]


def paths(section: type, prefix: str = "") -> list[str]:
    out = []
    for field in dataclasses.fields(section):
        inner = field.default_factory if dataclasses.is_dataclass(field.default_factory) else None
        out += paths(inner, f"{prefix}{field.name}.") if inner else [f"{prefix}{field.name}"]
    return out


def test_every_setting_is_read_by_the_engine_or_by_what_opens_its_model():
    """By attribute, in code that every door runs; nodes/jobs and nodes/terminal hold what belongs to headless runs alone."""
    read: set[str] = set()
    files = [*(ROOT / "lora_core").rglob("*.py"), *(ROOT / "nodes" / "jobs").rglob("*.py")]
    for file in files:
        if not {"config", "importing"} & set(file.parts):
            read |= {
                node.attr
                for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
                if isinstance(node, ast.Attribute)
            }
    for file in (ROOT / "lora_core" / "config").glob(
        "*.py"
    ):  # a part of the config reads what it makes of its own settings
        read |= {
            node.attr
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
        }
    for file in (ROOT / "lora_core" / "algebra").glob("*.py"):  # a kind names its settings
        read |= {
            node.value
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant)
        }
    assert [path for path in paths(TrainConfig) if path.rpartition(".")[2] not in read] == []


def test_what_belongs_to_headless_runs_is_offered_by_no_other_door():
    """Their sentence says so. The WebUIs' tab and what Import Settings hands on leave them out."""
    sentences = {field.name: field.metadata["help"] for field in dataclasses.fields(TrainConfig)}
    headless = {
        name
        for name, sentence in sentences.items()
        if re.search(r"headless run|two-stage model|configs and tokenizers of a base", sentence)
    }
    assert headless == {"base", "base_config", "base_vae", "companion", "storage", "offload", "trackers"}
    offered = {field.path for section in sections(asks_base=False).values() for field in section}
    assert headless & offered == set()
    tree = ast.parse((ROOT / "nodes" / "import_settings.py").read_text(encoding="utf-8"))  # importing it needs ComfyUI
    [of_nodes] = [
        ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "OF_NODES"
    ]
    assert {name for name in headless if not name.startswith(of_nodes)} == set()
