"""What ComfyUI's models are told to be, by the same function as headless ones, and which of their layers are offered."""

from __future__ import annotations

import architectures
import comfy.model_sampling as ms
import pytest
import torch
from lora_loom.lora_core.config import ObjectiveConfig
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.nodes.host.engine.backend import HostBackend
from safetensors.torch import save_file
from stand_ins import NoVae, RandomClip
from test_base_model import batch_of
from test_gradients import loss_and_gradients, make_adapters


def opened(name: str, file: str = "", **changes) -> HostBackend:
    patcher = architectures.build(name, **changes)
    if file:
        patcher.cached_patcher_init = (None, (file, {}))  # as the host's loaders leave it
    return HostBackend(patcher, RandomClip(name), NoVae(patcher))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("SD15", "read as sd1: it predicts epsilon (as the loaded model says); latents with 4 channels; weights stored as float32."),
        ("Flux", "read as flux1: it predicts flow (as the loaded model says); time shift 3.16; trained at guidance 1; latents with 16 channels; "
                 "weights stored as float32."),
        ("Flux schnell", "read as flux1: it predicts flow (as the loaded model says); time shift 1; latents with 16 channels; "
                         "distilled (it is Flux schnell); weights stored as float32."),
        ("ZImage", "read as z-image: it predicts flow (as the loaded model says); time shift 3; latents with 16 channels; weights stored as float32."),
        ("Chroma", "read as chroma: it predicts flow (as the loaded model says); time shift 1; latents with 16 channels; weights stored as float32."),
    ],
)  # fmt: skip
def test_a_model_is_told_in_one_sentence(name, sentence):
    assert str(opened(name).base_model(ObjectiveConfig()).message()) == f"model: {sentence}"


def test_every_model_that_is_trained_is_told():
    for name in architectures.TRAINED:
        described = opened(name).base_model(ObjectiveConfig())
        assert described.as_json()["latent_channels"] == architectures.row_of(name)[2][0], name
        assert described.further is None, name
        assert described.message().text("ja"), name


def test_a_wish_for_v_is_trained_and_sampled_as_v_on_the_models_own_noise_levels():
    backend, wish = opened("SD15"), ObjectiveConfig(prediction="v")
    [warning] = backend.base_model(wish).warnings(wish)
    assert str(warning) == (
        "objective.prediction: v is trained, as the job says, though the loaded model says epsilon; sample with v as well."
    )
    plain, objective = backend.objective(ObjectiveConfig()), backend.objective(wish)
    assert (plain.kind, objective.kind) == ("epsilon", "v")
    assert torch.equal(plain.levels.sigmas, objective.levels.sigmas)
    x0, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    sigma = torch.tensor([2.0])
    wanted = (noise - sigma * x0) / (1 + sigma * sigma).sqrt()
    torch.testing.assert_close(objective.target(x0, noise, sigma), wanted, rtol=0, atol=1e-5)
    assert isinstance(backend.model.patcher.get_model_object("model_sampling"), ms.V_PREDICTION)
    assert isinstance(backend.model.base.model_sampling, ms.EPS)
    assert not isinstance(backend.model.base.model_sampling, ms.V_PREDICTION)


@pytest.mark.parametrize(("name", "wish"), [("Flux", "v"), ("SD15", "flow"), ("Stable Cascade C", "v")])
def test_a_wish_that_the_models_noise_levels_cannot_follow_is_refused(name, wish):
    with pytest.raises(
        LoomError,
        match=f"^objective.prediction: this model predicts .* and cannot be trained as {wish}; allowed are auto, ",
    ):
        opened(name).objective(ObjectiveConfig(prediction=wish))


def test_a_file_that_says_v_of_a_model_loaded_as_eps_is_told(tmp_path):
    file = tmp_path / "merge.safetensors"
    save_file({"x": torch.zeros(1)}, file, metadata={"modelspec.prediction_type": "v"})
    backend, asked = opened("SDXL", str(file)), ObjectiveConfig()
    assert [str(m) for m in backend.base_model(asked).warnings(asked)] == [
        "model: it is trained as epsilon, as ComfyUI has it loaded, though modelspec.prediction_type in the header of merge.safetensors says v; "
        "where that is right, put a ModelSamplingDiscrete node in front."
    ]
    assert backend.objective(asked).kind == "epsilon"


def test_names_of_files_tell_distilled_models_and_experts(tmp_path):
    asked = ObjectiveConfig()
    turbo = opened("ZImage", str(tmp_path / "z_image_turbo_bf16.safetensors")).base_model(asked)
    assert [m.code for m in turbo.warnings(asked)] == ["base.distilled"]
    high = opened("Wan", str(tmp_path / "wan2.2_t2v_high_noise_14B.safetensors")).base_model(asked)
    assert [m.code for m in high.warnings(asked)] == ["base.expert"]
    smallest, largest = high.expert.range_of(high.shift)
    kept = ObjectiveConfig(min_timestep=smallest, max_timestep=largest)
    assert high.warnings(kept) == ()
    levels = opened("Wan").objective(kept).draw_sigma(500, torch.Generator().manual_seed(0))
    assert float(levels.min()) == pytest.approx(0.875, abs=0.01)
    assert float(levels.max()) <= 1.0


def test_layers_that_run_while_a_text_is_encoded_are_not_offered_and_all_others_of_anima_are_trained():
    backend = opened("Anima")
    assert [path for path, _ in backend.network.named_modules() if path.startswith("llm_adapter.")]
    assert not [path for path in backend.layers() if path.startswith("llm_adapter.")]
    with torch.inference_mode(False):
        layers, adapters = make_adapters(backend)
        with backend.training(layers, adapters):
            _, gradients = loss_and_gradients(backend, adapters, batch_of("Anima"))
    reached = {key.rpartition(".")[0] for key, value in gradients.items() if value.any()}
    assert reached == set(layers)


@pytest.mark.parametrize(("name", "asked", "told"), [
    ("SDXL refiner", {}, ["model.refiner_range"]), ("SDXL refiner", {"max_timestep": 200}, []), ("SDXL", {}, []), ("Wan causal", {}, ["model.causal"]),
])  # fmt: skip
def test_what_a_model_is_never_asked_for_is_told(name, asked, told):
    config = ObjectiveConfig(**asked)
    warnings = opened(name).base_model(config).warnings(config)
    assert [message.code for message in warnings] == told
