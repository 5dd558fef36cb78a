"""What a base model is, by its own marks, the configs beside it and its name; and who wins when they differ."""

import pytest
import tiny_flow
import torch
from diffusers import LatentConsistencyModelPipeline
from lora_loom.lora_core.backends.base_model import Strength, Witness, predicts
from lora_loom.lora_core.backends.marks import marks_of_file, marks_of_folder, marks_of_name
from lora_loom.lora_core.backends.opening import open_backend
from lora_loom.lora_core.config import ObjectiveConfig
from lora_loom.lora_core.data.batches import Batch
from lora_loom.lora_core.data.buckets import Fit
from lora_loom.lora_core.events import Listener
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.messages.message import Message
from lora_loom.lora_core.objectives import discrete_sigmas, rescale_zero_terminal_snr
from safetensors.torch import load_file, save_file
from toy_bases import toy_with_schedule

ZERO_SNR_SIGMA = 4518.8  # of the last level, as ComfyUI and kohya have it


def witness(kind, strength=Strength.CONFIG, zero_snr=None, name="scheduler"):
    return Witness(Message.of("base.source.name", name=name), kind, zero_snr, strength)


def asked(prediction="auto", **settings):
    return ObjectiveConfig(prediction=prediction, **settings)


# ---- who wins ----------------------------------------------------------------------------------------------------------


def test_the_weights_own_word_wins_over_the_config_beside_them_and_says_so():
    decided = predicts([witness("epsilon"), witness("v", Strength.WEIGHTS, True, "weights")], asked())
    assert (decided.prediction, decided.zero_snr) == ("v", True)
    [sentence] = map(str, decided.warnings)
    assert sentence == (
        "base: it is trained as v, as the name weights says, though the name scheduler says epsilon; if that is right, set objective.prediction."
    )


@pytest.mark.parametrize("strength", [Strength.CONFIG, Strength.WEIGHTS])
def test_a_setting_wins_over_every_source_with_a_sentence(strength):
    decided = predicts([witness("v", strength, True)], asked("epsilon"))
    assert (decided.prediction, decided.zero_snr) == ("epsilon", False)
    assert [str(m) for m in decided.warnings] == [
        "objective.prediction: epsilon is trained, as the job says, though the name scheduler says v; sample with epsilon as well."
    ]
    assert predicts([witness("v", strength, True)], asked("v")).warnings == ()
    assert predicts([witness("v", strength, True)], asked("v")).zero_snr


def test_a_guess_against_a_config_asks_the_job_and_against_the_weights_is_passed_over():
    guess = witness("v", Strength.GUESS, name="noob-vpred")
    with pytest.raises(
        LoomError,
        match="^objective.prediction: the name scheduler says that the model predicts epsilon, but the name noob-vpred points to v; set it to epsilon or v",
    ):
        predicts([witness("epsilon"), guess], asked())
    assert predicts([witness("epsilon"), guess], asked("v")).prediction == "v"
    assert predicts([witness("epsilon"), guess], asked("epsilon")).prediction == "epsilon"
    assert predicts([witness("epsilon", Strength.WEIGHTS), guess], asked()).prediction == "epsilon"


@pytest.mark.parametrize(("kind", "wish"), [("flow", "v"), ("epsilon", "flow"), ("x0", "epsilon")])
def test_a_setting_that_the_noise_levels_cannot_follow_is_refused(kind, wish):
    with pytest.raises(
        LoomError,
        match=f"^objective.prediction: this model predicts {kind} and cannot be trained as {wish}; allowed are auto, ",
    ):
        predicts([witness(kind)], asked(wish))


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
def test_zero_terminal_snr_is_refused_where_it_makes_no_sense(kind):
    assert predicts([witness("v")], asked(zero_terminal_snr=True)).zero_snr
    with pytest.raises(LoomError, match="^objective.zero_terminal_snr: "):
        predicts([witness(kind)], asked(zero_terminal_snr=True))


# ---- what files say ----------------------------------------------------------------------------------------------------


def file_with(tmp_path, tensors, header=None, name="model"):
    save_file(tensors, tmp_path / f"{name}.safetensors", metadata=header)
    return tmp_path / f"{name}.safetensors"


@pytest.mark.parametrize(
    ("keys", "header", "kind", "zero_snr"),
    [
        (("v_pred", "ztsnr"), None, "v", True),
        (("v_pred",), None, "v", None),
        ((), {"modelspec.prediction_type": "v"}, "v", None),
        ((), {"modelspec.prediction_type": "epsilon"}, "epsilon", None),
        ((), {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, "v", True),
    ],
)
def test_a_file_says_what_it_predicts_by_empty_tensors_and_by_its_header(tmp_path, keys, header, kind, zero_snr):
    file = file_with(tmp_path, {"weight": torch.ones(2), **{key: torch.zeros(0) for key in keys}}, header)
    [said] = marks_of_file(file).witnesses
    assert (said.prediction, said.zero_snr, said.strength) == (kind, zero_snr, Strength.WEIGHTS)


@pytest.mark.parametrize(("spread", "kind"), [(0.2, "v"), (0.02, "epsilon")])
def test_an_sd2_file_is_guessed_by_the_spread_of_one_bias(tmp_path, spread, kind):
    prefix = "model.diffusion_model."
    bias = torch.randn(320, generator=torch.Generator().manual_seed(0))
    tensors = {
        f"{prefix}output_blocks.11.1.transformer_blocks.0.norm1.bias": bias * spread,
        f"{prefix}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(4, 1024),
    }
    [said] = marks_of_file(file_with(tmp_path, tensors)).witnesses
    assert (said.prediction, said.strength) == (kind, Strength.GUESS)


def test_what_is_no_safetensors_file_is_told_by_its_name_alone(tmp_path):
    (tmp_path / "noob-vpred.ckpt").write_bytes(b"x")
    assert [w.prediction for w in marks_of_file(tmp_path / "noob-vpred.ckpt").witnesses] == ["v"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("noobaiXLNAIXL_vPred10Version", "v"), ("NoobAI-XL-Vpred-v1.0", "v"), ("x_v-prediction", "v"), ("NoobAI-XL-Epsilon-pred-v1.1", "epsilon"),
     ("dreamshaper_v8", ""), ("vpredator", ""), ("sdxl_base_v1", "")],
)  # fmt: skip
def test_names_that_say_a_prediction_are_guesses(name, kind):
    assert [w.prediction for w in marks_of_name(name).witnesses] == ([kind] if kind else [])


@pytest.mark.parametrize(
    ("name", "distilled"),
    [("z_image_turbo_bf16", True), ("flux1-schnell", True), ("sdxl_lightning_4step", True), ("DreamShaperXL-Turbo-v2", True), ("krea-2-turbo", True),
     ("flux-2-klein-4b", True), ("flux-2-klein-base-4b", False), ("lcm-sdxl", True), ("z_image_bf16", False), ("flux1-dev", False), ("sd_xl_base_1.0", False),
     ("stepping_stones", False), ("turbovision", False)],
)  # fmt: skip
def test_names_of_models_distilled_for_few_steps_are_told(name, distilled):
    assert (marks_of_name(name).distilled is not None) == distilled


def test_a_snapshot_of_the_hub_is_told_by_its_repository_and_few_steps_by_the_scheduler(tmp_path):
    place = tmp_path / "models--Tongyi-MAI--Z-Image-Turbo" / "snapshots"
    folder = toy_with_schedule(place, "0123abc")
    assert "Z-Image-Turbo" in str(marks_of_folder(folder).distilled)
    assert "LCMScheduler" in str(marks_of_folder(toy_with_schedule(tmp_path, _class_name="LCMScheduler")).distilled)


def test_experts_are_told_with_the_range_they_are_asked_for_until_the_job_keeps_to_it():
    high = marks_of_name("wan2.2_t2v_high_noise_14B_fp8_scaled").expert
    low = marks_of_name("Wan2_2-I2V-A14B-LOW-noise").expert
    assert (high.low, high.high, low.low, low.high) == (0.875, 1.0, 0.0, 0.9)
    assert high.range_of(1.0) == (875, 1000)
    shift = 8.0
    smallest, largest = high.range_of(shift)
    u = smallest / 1000
    assert shift * u / (1 + (shift - 1) * u) == pytest.approx(0.875, abs=1e-3)
    [sentence] = high.warnings(ObjectiveConfig(), shift, "model")
    assert f"used for timesteps {smallest} to {largest}; set objective.min_timestep" in str(sentence)
    assert high.warnings(ObjectiveConfig(min_timestep=smallest), shift, "model") == ()
    assert low.warnings(ObjectiveConfig(max_timestep=low.range_of(shift)[1]), shift, "model") == ()
    assert marks_of_name("low_noise_photos_sdxl").expert is None


# ---- headless models ----------------------------------------------------------------------------------------------------


def test_a_folder_that_stretches_to_zero_snr_has_our_finite_last_level(tmp_path):
    folder = toy_with_schedule(tmp_path, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    backend = open_backend(str(folder), device="cpu")
    objective = backend.objective(ObjectiveConfig())
    assert objective.kind == "v"
    assert objective.levels.sigmas[-1] == pytest.approx(ZERO_SNR_SIGMA, rel=1e-4)
    assert torch.equal(objective.levels.sigmas, discrete_sigmas(rescale_zero_terminal_snr(backend._abar)))
    assert not backend.scheduler.config.rescale_betas_zero_snr


def test_a_v_predicting_file_beside_eps_configs_is_trained_as_v_and_drawn_as_v(toy_backend, tmp_path, monkeypatch):
    file = file_with(tmp_path, {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)})
    monkeypatch.setattr(toy_backend, "marks", marks_of_file(file))
    objective = toy_backend.objective(ObjectiveConfig())
    assert (objective.kind, toy_backend._prediction) == ("v", "v")
    assert objective.levels.sigmas[-1] == pytest.approx(ZERO_SNR_SIGMA, rel=1e-4)
    told = str(toy_backend.base_model(ObjectiveConfig()).message())
    assert told.startswith(
        "base: read as sd1: it predicts v (as model.safetensors by its tensors v_pred, ztsnr says); its last noise level"
    )
    as_asked = toy_backend.objective(ObjectiveConfig(prediction="epsilon"))
    assert (as_asked.kind, toy_backend._prediction) == ("epsilon", "epsilon")
    assert as_asked.levels.sigmas[-1] < 100
    monkeypatch.undo()
    assert toy_backend.objective(ObjectiveConfig()).kind == "epsilon"


def test_a_folder_called_vpred_with_an_eps_scheduler_asks_the_job(tmp_path):
    backend = open_backend(str(toy_with_schedule(tmp_path, "noob-vpred")), device="cpu")
    with pytest.raises(
        LoomError, match="^objective.prediction: .*scheduler_config.json says that the model predicts epsilon"
    ):
        backend.objective(ObjectiveConfig())
    assert backend.objective(ObjectiveConfig(prediction="v")).kind == "v"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"_class_name": "EDMEulerScheduler"}, "was trained on EDM noise levels .EDMEulerScheduler."),
        ({"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": 0.5}, "was trained on EDM noise levels"),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
            "has a flow-matching scheduler .FlowMatchEulerDiscreteScheduler. beside",
        ),
        ({"use_flow_sigmas": True}, "has a flow-matching scheduler .DDPMScheduler. beside"),
    ],
)
def test_noise_levels_that_are_no_table_of_betas_are_refused(tmp_path, changes, sentence):
    with pytest.raises(LoomError, match=f"^base: base {sentence}"):
        open_backend(str(toy_with_schedule(tmp_path, **changes)), device="cpu")


@pytest.mark.parametrize("key", ["edm_mean", "edm_vpred.sigma_max"])
def test_a_file_with_edm_marks_is_refused_before_its_configs_are_asked_for(tmp_path, key):
    with pytest.raises(LoomError, match=f"^base: model.safetensors was trained on EDM noise levels .{key}."):
        open_backend(str(file_with(tmp_path, {key: torch.ones(4)})))


def test_a_flow_model_whose_scheduler_has_no_shift_is_refused(tmp_path):
    folder = tiny_flow.saved("sd3", tmp_path)
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "UniPCMultistepScheduler"}')
    with pytest.raises(
        LoomError, match="^base: the scheduler of .*, UniPCMultistepScheduler, has no time shift; put the FlowMatch"
    ):
        open_backend(str(folder), device="cpu")


def test_a_flux_without_guidance_is_told_as_distilled_and_its_guidance_is_none(tmp_path):
    backend = open_backend(str(tiny_flow.saved("flux1", tmp_path)), device="cpu")
    described, asked_for = backend.base_model(ObjectiveConfig()), ObjectiveConfig()
    embeds = backend.network.config.guidance_embeds
    assert (described.guidance, described.distilled is None) == ((1.0, True) if embeds else (None, False))
    with pytest.raises(
        LoomError,
        match="^objective.prediction: this model predicts flow and cannot be trained as v; allowed are auto, flow",
    ):
        backend.base_model(ObjectiveConfig(prediction="v"))
    assert f"time shift {described.shift:.3g}" in str(described.message())
    assert bool(described.warnings(asked_for)) != embeds


def test_statistics_of_a_vae_are_taken_into_the_latents_and_back(toy_backend, monkeypatch):
    pixels = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    plain, (mean, std) = toy_backend.encode_picture(pixels), ([0.5] * 8, [2.0] * 8)
    before, config = toy_backend.picture_fingerprint(), toy_backend.vae.config
    monkeypatch.setattr(
        toy_backend.vae, "_internal_dict", type(config)({**config, "latents_mean": mean, "latents_std": std})
    )
    scale = toy_backend.vae.config.scaling_factor  # pipelines draw from latents * std / scale + mean
    torch.testing.assert_close(toy_backend.encode_picture(pixels) * 2.0 / scale + 0.5, plain / scale, rtol=0, atol=1e-4)
    assert toy_backend.picture_fingerprint() != before


def test_a_unet_that_reads_its_guidance_gets_what_the_lcm_pipeline_gives_it_at_guidance_1(toy_backend, monkeypatch):
    config = toy_backend.unet.config
    monkeypatch.setattr(toy_backend.unet, "_internal_dict", type(config)({**config, "time_cond_proj_dim": 32}))
    seen = []
    monkeypatch.setattr(
        toy_backend.unet,
        "forward",
        lambda x, *args, timestep_cond, **more: seen.append(timestep_cond) or type("Out", (), {"sample": x})(),
    )
    side = Fit((64, 64), (64, 64), (0, 0), (64, 64))
    toy_backend.predict(
        torch.zeros(2, 8, 8, 8),
        torch.ones(2),
        Batch(torch.zeros(2, 8, 8, 8), ["a", "b"], [side] * 2, ["a", "b"], torch.ones(2)),
    )
    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, torch.tensor([1.0 - 1]), 32)
    assert torch.equal(seen[0], theirs.repeat(2, 1))
    assert "time_cond_proj_dim" in str(toy_backend.base_model(ObjectiveConfig()).distilled)


def test_a_run_folder_tells_what_the_base_was_and_the_log_too(toy_backend, toy_config, run_toy, tmp_path):
    heard = []

    class Hears(Listener):
        def on_note(self, message):
            heard.append(str(message))

        def on_start(self, first_step, steps, facts):
            heard.append(facts["base_model"])

    run_toy(toy_config(steps=1), tmp_path / "run", Hears())
    assert heard[0] == (
        "base: read as sd1: it predicts epsilon (as the model's scheduler_config.json says); latents with 8 channels; weights stored as float32."
    )
    kept = next(part for part in heard if isinstance(part, dict))
    assert (kept["prediction"], kept["latent_channels"], kept["zero_terminal_snr"]) == ("epsilon", 8, False)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_a_folder_that_lacks_weights_is_refused_instead_of_trained_on_random_ones(tmp_path, part):
    folder = toy_with_schedule(tmp_path)
    [file] = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    key = sorted(tensors)[3]
    save_file({name: value for name, value in tensors.items() if name != key}, file, metadata={"format": "pt"})
    with pytest.raises(
        LoomError,
        match=f"^base: .*{part} lacks 1 of its model's weights .such as .*, which would be left at random values",
    ):
        open_backend(str(folder), device="cpu")


def test_a_flow_transformer_that_lacks_weights_is_refused(tmp_path):
    folder = tiny_flow.saved("sd3", tmp_path)
    [file] = (folder / "transformer").glob("*.safetensors")
    tensors = load_file(file)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(LoomError, match="^base: .*transformer lacks 1 of its model's weights"):
        open_backend(str(folder), device="cpu")
