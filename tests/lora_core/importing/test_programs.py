"""One configuration of our own for each program: what it becomes, and that every key in it is in the report."""

import json
import re
from pathlib import Path

import pytest
from lora_loom.lora_core.config import from_values
from lora_loom.lora_core.importing.programs import PROGRAMS, Text, imported
from lora_loom.lora_core.importing.result import require_job
from lora_loom.lora_core.importing.rows import Fate, Unmapped
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.recipes import parse_toml

HERE = Path(__file__).parent / "examples"
STAGES = "--pretrained_decoder_model_name_or_path=d --pretrained_prior_model_name_or_path=p"
MAIN = {
    "diffusers": "diffusers.sh",
    "kohya": "kohya.toml",
    "onetrainer": "onetrainer.json",
    "ai_toolkit": "ai_toolkit.yaml",
    "simpletuner": "simpletuner.json",
}


def text(name):
    return Text(name, (HERE / name).read_text(encoding="utf-8"))


def beside(path):
    file = HERE / path.rpartition("/")[2]
    return file.read_text(encoding="utf-8") if file.is_file() else None


def job(name):
    return imported([text(MAIN[name])], beside)


def value(result, path):
    """What the job says at a config path, None where it says nothing."""
    place = result.values
    for part in path.split("."):
        place = place.get(part) if isinstance(place, dict) else None
    return place


def says(result, **expected):
    found = {path: value(result, path.replace("__", ".")) for path in expected}
    assert found == expected


def fates(result):
    return {line.key: line.fate for line in result.lines}


def test_a_diffusers_command_of_pivotal_tuning_with_prodigy():
    result = job("diffusers")
    says(
        result, name="huggy v11", base="models/sdxl", base_vae="madebyollin/sdxl-vae-fp16-fix", method="pivotal", steps=1000, epochs=None, batch_size=4,
        precision="bf16", seed=0, checkpointing=True, data__folder="./huggy_clean", data__caption_column="prompt", data__repeats=2, data__crop="random",
        data__aspect_buckets=False, data__upscale=True, adapter__rank=32, adapter__alpha=None, adapter__init="gaussian", embedding__tokens="TOK",
        embedding__vectors=3, embedding__stop=0.4, embedding__lr=1.0, text_encoder=None, optimizer__name="prodigy", optimizer__lr=1.0, optimizer__beta2=0.99,
        optimizer__prodigy_safeguard_warmup=True, optimizer__prodigy_use_bias_correction=False, objective__weighting="min_snr", objective__min_snr_gamma=5.0,
        schedule__name="constant", schedule__warmup_steps=None, prior__folder="faces", prior__count=150, prior__prompt="a photo of a person", save__every=2000,
        samples__prompt="a TOK emoji dressed as Yoda", trackers="wandb",
    )  # fmt: skip
    assert fates(result)["no_such_option"] is Fate.UNKNOWN
    assert fates(result)["push_to_hub"] is Fate.NOTHING
    assert fates(result)["instance_prompt"] is Fate.NOTHING  # captions come from a column


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("train_dreambooth_lora.py --instance_data_dir=d --instance_prompt='a sks dog'",
         {"optimizer__lr": 5e-4, "optimizer__weight_decay": 1e-2, "batch_size": 4, "epochs": 1, "data__trigger": "a sks dog", "data__captions": "none"}),
        ("train_text_to_image_lora.py --num_train_epochs=150", {"epochs": 150, "batch_size": 16, "adapter__rank": 4}),
        ("train_dreambooth_lora_flux.py --rank=16", {"adapter__rank": 16, "adapter__alpha": 4.0, "objective__timesteps": "uniform"}),
        ("train_dreambooth_lora_sdxl.py --train_text_encoder", {"text_encoder__train": True, "text_encoder__lr": 5e-6, "data__resolution": 1024}),
        ("textual_inversion.py --placeholder_token='<cat>' --initializer_token=toy --num_vectors=4",
         {"method": "embedding", "embedding__tokens": "<cat>", "embedding__init": "toy", "embedding__vectors": 4, "steps": 5000, "data__repeats": 100}),
        ("train_dreambooth_lora_flux_advanced.py --train_text_encoder_ti --token_abstraction='TOK,dog'", 
         {"embedding__tokens": "TOK\ndog", "embedding__stop": 0.5}),
        ("train_text_to_image_prior_lora.py "
         + STAGES, {"base": "p", "companion": "d", "batch_size": 1}),
        ("train_text_to_image_lora_decoder.py "
         + STAGES, {"base": "d", "companion": "p"}),
        ("train_text_to_image_lora_prior.py --lr_scheduler=constant --lr_warmup_steps=10", {"optimizer__weight_decay": 0.0, "schedule__warmup_steps": None}),
        ("train_text_to_image_lora.py --lr_scheduler=constant_with_warmup --lr_warmup_steps=10", {"schedule__name": "constant", "schedule__warmup_steps": 10}),
    ],
)  # fmt: skip
def test_what_a_diffusers_script_takes_by_default_is_written_out(script, expected):
    says(imported([Text("train.sh", f"accelerate launch {script}")]), **expected)


def test_a_script_that_trains_something_else_is_told():
    for script in ("train_dreambooth.py", "train_instruct_pix2pix.py", "train_control_lora_flux.py"):
        result = imported([Text("x", f"python {script} --rank 8")])
        (line,) = (line for line in result.lines if line.key == "script")
        assert (line.fate, line.why.code) == (Fate.NOTHING, "import.why.adapters_only")


def test_a_diffusers_command_of_kontext_brings_its_pairs():
    values = imported([Text("x.sh", (
        "accelerate launch train_dreambooth_lora_flux_kontext.py --pretrained_model_name_or_path o/kontext --dataset_name o/pairs "
        "--image_column output_image --cond_image_column file_name --caption_column instruction --instance_prompt 'make it a zog' --rank 16"
    ))]).values  # fmt: skip
    assert values["data"]["controls"] == "auto"
    assert (values["data"]["folder"], values["data"]["image_column"]) == ("hf:o/pairs", "output_image")
    assert values["adapter"]["rank"] == 16


def test_a_kohya_config_with_its_datasets_and_prompts():
    result = job("kohya")
    says(
        result, name="mine", base="models/v2-768.safetensors", steps=2000, batch_size=4, adapter__algorithm="lokr", adapter__rank=16, adapter__alpha=1.0,
        adapter__conv_rank=8, adapter__lokr_factor=0, text_encoder__train=True, text_encoder__lr=5e-5, optimizer__name="prodigy", optimizer__lr=2e-4,
        optimizer__beta2=0.99, optimizer__weight_decay=0.0, optimizer__prodigy_d_coef=2.0, optimizer__prodigy_use_bias_correction=False,
        optimizer__prodigy_safeguard_warmup=True, schedule__name="cosine_with_restarts", schedule__cycles=3, schedule__warmup_steps=200,
        objective__prediction="v", objective__noise_offset=0.05, samples__sampler="euler_ancestral", precision="bf16",
    )  # fmt: skip
    assert "--w 512" in value(result, "samples.prompt")
    first, second, third = result.values["sets"]
    assert first["folder"] == "pictures/cat"
    assert (first["resolution"], first["repeats"], first["upscale"], first["caption_lines"]) == (
        627,
        10,
        False,
        "alternatives",
    )
    assert (second["regularization"], second["keep_tokens"], second["captions"], second["shuffle_tags"]) == (
        True,
        2,
        ".txt",
        True,
    )
    assert (third["resolution"], third["aspect_buckets"], third["upscale"], third["caption_lines"], third["flip"]) == (
        1024,
        False,
        True,
        "first",
        True,
    )
    assert fates(result)["network_args.no_such"] is Fate.UNKNOWN
    assert fates(result)["datasets[1].subsets[0].batch_size"] is Fate.NOTHING
    assert "secret" in str(next(m for m in result.messages() if "huggingface_token" in str(m)).values["value"])


def test_a_kohya_dataset_config_alone_gives_its_folders_and_claims_no_defaults():
    result = imported([text("kohya_dataset.toml")])
    assert [one["folder"] for one in result.values["sets"]] == ["pictures/cat", "pictures/cats", "pictures/large"]
    assert set(result.values) == {"sets", "batch_size"}


def test_kohya_epochs_win_over_steps_and_flux_draws_its_own_noise_levels():
    command = "python flux_train_network.py --max_train_epochs 8 --max_train_steps 100 --network_train_unet_only --discrete_flow_shift 2.5"
    says(
        imported([Text("x", command)]),
        epochs=8,
        steps=None,
        text_encoder__train=False,
        objective__timesteps="uniform",
        objective__shift=2.5,
    )
    shifted = imported([Text("x", f"{command} --timestep_sampling shift --sigmoid_scale 0.5")])
    says(shifted, objective__timesteps="logit_normal", objective__logit_std=0.5, objective__shift=2.5)


def test_an_onetrainer_configuration_with_concepts_and_samples():
    result = job("onetrainer")
    says(
        result, name="cat", method="lora", epochs=20, batch_size=3, adapter__rank=32, adapter__alpha=16.0, adapter__targets="attention",
        optimizer__name="prodigy",
        optimizer__beta2=0.999, optimizer__prodigy_d_coef=1.5, optimizer__prodigy_use_bias_correction=True, optimizer__prodigy_safeguard_warmup=False,
        optimizer__weight_decay=0.02, schedule__name="cosine", schedule__warmup_steps=100, data__resolution=1024, data__also_resolutions="768",
        data__masks="file", data__mask_floor=0.2, ema_decay=0.998, text_encoder__train=True, text_encoder__lr=3e-6, objective__timesteps="logit_normal",
        objective__logit_mean=0.5, objective__logit_std=1.2, objective__min_timestep=100, objective__max_timestep=900, objective__weighting="min_snr",
        objective__min_snr_gamma=4.0, samples__every=50, save=None, checkpointing=True,
        samples__prompt="a zog --n blurry --w 512 --h 640 --d 4 --s 25 --l 6.5",
    )  # fmt: skip
    first, second = result.values["sets"]
    assert (first["folder"], first["repeats"], first["loss_weight"], first["flip"], first["crop"]) == (
        "pictures/cat",
        3,
        0.5,
        True,
        "centre",
    )
    assert (first["captions"], first["caption_lines"], first["shuffle_tags"], first["keep_tokens"]) == (
        ".txt",
        "alternatives",
        True,
        2,
    )
    assert (second["folder"], second["regularization"], second["captions"]) == ("pictures/cats", True, "file name")
    said = fates(result)
    assert (said["no_such_key"], said["optimizer.use_speed"], said["backup_after"]) == (
        Fate.UNKNOWN,
        Fate.NOTHING,
        Fate.NOTHING,
    )


def test_onetrainer_counts_in_minutes_and_epochs_unless_it_says_steps():
    bare = {"training_method": "LORA", "backup_after": 10, "sample_after": 10, "save_every": 5}
    result = imported([Text("preset.json", json.dumps(bare))])
    says(result, save=None, samples=None)
    says(imported([Text("x.json", json.dumps({**bare, "save_every_unit": "STEP"}))]), save__every=5)


def test_an_ai_toolkit_job():
    result = job("ai_toolkit")
    says(
        result, name="my_first_lora_v1", base="models/flux", steps=1500, batch_size=2, grad_accum=4, checkpointing=False, precision="bf16", storage="fp8",
        adapter__rank=32, adapter__alpha=16.0, adapter__conv_rank=8, adapter__targets="conv", adapter__include=r"transformer\.single|proj\.out",
        optimizer__name="adamw8bit", optimizer__lr=1e-4, optimizer__weight_decay=1e-4, optimizer__beta2=0.95, ema_decay=0.99,
        objective__timesteps="logit_normal", save__every=200, save__keep=2, samples__every=250, samples__width_px=1024, samples__cfg=4.0,
        samples__prompt="[trigger] on a hill\na horse --w 512", data__trigger="zog",
    )  # fmt: skip
    first, second = result.values["sets"]
    assert (first["resolution"], first["also_resolutions"], first["caption_dropout"], first["masks"]) == (
        512,
        "768",
        0.05,
        "file",
    )
    assert (second["regularization"], second["repeats"]) == (True, 2)
    assert fates(result)["train.no_such_key"] is Fate.UNKNOWN


def test_a_simpletuner_config_with_its_backends_and_lycoris():
    result = job("simpletuner")
    says(
        result, name="cat lora", epochs=12, steps=None, batch_size=2, adapter__algorithm="lokr", adapter__rank=1024, adapter__lokr_factor=16,
        optimizer__name="adamw", optimizer__lr=8e-5, schedule__name="polynomial", schedule__warmup_steps=100, storage="fp8", ema_decay=0.999,
        data__resolution=1000, data__caption_dropout=0.1, samples__width_px=1024, samples__height_px=768, samples__cfg=3.0, samples__every=500,
    )  # fmt: skip
    first, second = result.values["sets"]
    assert (first["folder"], first["captions"], first["repeats"], first["crop"], first["aspect_buckets"]) == (
        "pictures/cat",
        ".txt",
        5,
        "random",
        False,
    )
    assert (second["regularization"], second["trigger"], second["captions"]) == (True, "a cat", "none")
    said = fates(result)
    assert (said["no_such_key"], said["backends[2].odd_key"]) == (Fate.UNKNOWN, Fate.UNKNOWN)
    assert said["backends[1] (conditioning)"] is Fate.NOTHING


def test_simpletuner_as_toml_and_env_is_the_same_job():
    toml = 'model_type = "lora"\nmodel_family = "sdxl"\nlearning_rate = 1e-4\nmax_train_steps = 50\nlora_rank = 8\n'
    env = "export MODEL_TYPE='lora'\nexport MODEL_FAMILY=sdxl\nexport LEARNING_RATE=1e-4\nexport MAX_NUM_STEPS=50\nexport TRAINER_EXTRA_ARGS='--lora_rank=8'\n"
    jobs = [imported([Text(name, text)]).values for name, text in (("config.toml", toml), ("config.env", env))]
    assert jobs[0] == jobs[1]
    assert jobs[0]["steps"] == 50


@pytest.mark.parametrize("name", MAIN)
def test_every_setting_is_in_the_report_and_the_job_file_is_the_job(name, tmp_path):
    result = job(name)
    config = require_job(result, tmp_path)
    assert from_values(parse_toml(result.toml()), tmp_path) == config
    assert result.program == PROGRAMS[name].title
    head, *lines = result.messages()
    assert len(lines) == len(result.lines) + len(result.notes)
    assert sum(head.values[fate.value] for fate in Fate) == len(result.lines)
    comments = [line for line in result.toml().splitlines() if line.startswith("# ")]
    assert len(comments) == 1 + len(lines)
    for message in (head, *lines):
        for language in ("zh", "ko", "ja"):
            assert message.text(language)


def test_files_that_a_configuration_names_and_that_are_not_there_are_named():
    missing = [str(note) for note in imported([text("kohya.toml")]).notes]
    assert len(missing) == 2
    assert missing[0].startswith("dataset_config names kohya_dataset.toml, which was not read; provide it too")


def test_a_second_configuration_is_named_as_unused():
    assert "kohya.toml is a second configuration" in str(
        imported([text("onetrainer.json"), text("kohya.toml")]).notes[0]
    )


def test_a_value_out_of_our_bounds_is_told_and_left_out():
    result = imported([Text("x", "python train_network.py --network_dim 5000 --seed -1 --mixed_precision int3")])
    assert value(result, "adapter.rank") is None
    told = {line.key: str(line.why) for line in result.lines if line.fate is Fate.NOTHING}
    assert "1024" in told["network_dim"]
    assert set(told) >= {"network_dim", "seed", "mixed_precision"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "there is no text to read"),
        (
            "hello: world",
            "config is not a configuration of any known program; known are diffusers' training scripts",
        ),
        ("[1, 2", "cannot be read as JSON|of no program"),
        ("{broken", "config cannot be read as JSON"),
        ("python my_script.py --a 1", "config starts my_script.py, which is none of the supported scripts"),
        ("a = 1\nb = 2\n", "of any known program"),
    ],
)
def test_what_is_no_configuration_is_one_sentence(content, said):
    with pytest.raises(LoomError, match=said):
        imported([Text("config", content)])


def test_settings_that_do_not_go_together_are_refused_by_their_own_sentence(tmp_path):
    command = "python train_network.py --min_timestep 900 --max_timestep 100"
    with pytest.raises(
        LoomError, match="the settings from kohya's sd-scripts do not make a valid job here: objective.min_timestep"
    ):
        require_job(imported([Text("x", command)]), tmp_path)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"control_path": "before"}, "before"),
        ({"control_path": ["one", "two"]}, "one\ntwo"),
        ({"control_path_2": "two", "control_path_1": "one"}, "one\ntwo"),
    ],
)
def test_folders_of_control_pictures_of_ai_toolkit_are_taken_over(given, expected):
    sets = [{"folder_path": "after", **given}]
    process = {"type": "sd_trainer", "datasets": sets, "model": {"name_or_path": "kontext"}, "train": {"steps": 10}}
    result = imported([Text("x.json", json.dumps({"job": "extension", "config": {"name": "a", "process": [process]}}))])
    values = result.values
    assert (values.get("sets") or [values["data"]])[0]["control_path"] == expected


def test_the_conditioning_pictures_of_kohyas_lora_scripts_are_loss_masks():
    toml = (
        '[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = "after"\nconditioning_data_dir = "white"\n'
    )
    result = imported([Text("x.toml", toml)])
    first = (result.values.get("sets") or [result.values["data"]])[0]
    assert (first["masks"], first.get("control_path", "")) == ("file", "")
    command = imported(
        [Text("x.sh", "accelerate launch train_network.py --network_module networks.lora --masked_loss")]
    )
    for found, row in ((result, "conditioning_data_dir"), (command, "masked_loss")):
        [said] = [line for line in found.lines if line.key.endswith(row)]
        assert said.why.code == "import.why.loss_masks"


def first_set(result):
    return (result.values.get("sets") or [result.values["data"]])[0]


@pytest.mark.parametrize(
    ("given", "frames", "rate"),
    [({"num_frames": 41, "fps": 16}, "41", 16), ({"num_frames": 1, "fps": 24}, None, None), ({}, None, None)],
)
def test_films_of_ai_toolkit_are_taken_over_and_pictures_stay_pictures(given, frames, rate):
    process = {"type": "sd_trainer", "datasets": [{"folder_path": "films", **given}], "model": {"name_or_path": "wan"}, "train": {"steps": 10}}  # fmt: skip
    result = imported([Text("x.json", json.dumps({"job": "extension", "config": {"name": "a", "process": [process]}}))])
    assert (first_set(result).get("frames"), first_set(result).get("frame_rate")) == (frames, rate)


def simpletuner(*backends, **config):
    told = {"model_type": "lora", "model_family": "wan", "pretrained_model_name_or_path": "wan", "max_train_steps": 10}
    texts = [Text("config.json", json.dumps({**told, "data_backend_config": "backends.json", **config}))]
    return imported(texts, lambda path: json.dumps(backends))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [({"num_frames": 41, "do_i2v": True}, "always"), ({"num_frames": 41}, "always"), ({"num_frames": 41, "do_i2v": False}, "auto"), ({"do_i2v": True}, None)],
)  # fmt: skip
def test_first_frames_of_ai_toolkit_are_taken_over_where_there_are_films(given, wanted):
    """There they are shown unless a set says otherwise, on models that take them."""
    process = {"type": "sd_trainer", "datasets": [{"folder_path": "films", **given}], "model": {"name_or_path": "wan"}, "train": {"steps": 10}}  # fmt: skip
    result = imported([Text("x.json", json.dumps({"job": "extension", "config": {"name": "a", "process": [process]}}))])
    assert first_set(result).get("first_frame") == wanted


@pytest.mark.parametrize(("first", "wanted"), [(True, "always"), (False, "auto")])
def test_first_frames_of_simpletuner_are_taken_over(first, wanted):
    films = {"id": "films", "dataset_type": "video", "instance_data_dir": "clips", "video": {"num_frames": 81, "is_i2v": first}}  # fmt: skip
    assert first_set(simpletuner(films))["first_frame"] == wanted


def test_a_limit_of_pictures_is_taken_over_from_simpletuner():
    assert first_set(simpletuner({"id": "a", "instance_data_dir": "a", "max_num_samples": 50}))["limit"] == 50


def test_a_system_prompt_goes_before_every_caption():
    command = 'python lumina_train_network.py --train_data_dir a --system_prompt "You are an assistant."'
    result = imported([Text("train.sh", command)])
    assert value(result, "data.prefix") == "You are an assistant. <Prompt Start> "


def test_films_of_simpletuner_are_taken_over():
    films = {"id": "films", "dataset_type": "video", "instance_data_dir": "clips", "video": {"num_frames": 81, "min_frames": 81}}  # fmt: skip
    result = simpletuner(films, framerate=16)
    assert first_set(result)["folder"] == "clips"
    assert first_set(result)["frames"] == "81"
    assert value(result, "data.frame_rate") == 16
    assert fates(result)["backends[0].video.min_frames"] is Fate.NOTHING


@pytest.mark.parametrize(
    ("kind", "expected"), [("reference_strict", "before"), ("reference_loose", "before"), ("controlnet", None)]
)
def test_pictures_that_an_edit_model_is_shown_are_taken_over_from_simpletuner(kind, expected):
    after = {"id": "after", "instance_data_dir": "after", "conditioning_data": ["before"]}
    before = {"id": "before", "dataset_type": "conditioning", "conditioning_type": kind, "instance_data_dir": "before"}
    result = simpletuner(after, before)
    assert first_set(result).get("control_path") == expected
    assert fates(result)["backends[0].conditioning_data"] is (Fate.OTHERWISE if expected else Fate.NOTHING)


@pytest.mark.parametrize(("model", "expected"), [("HUNYUAN_VIDEO", "25"), ("STABLE_DIFFUSION_XL_10_BASE", None)])
def test_frames_of_onetrainer_count_for_models_of_films_alone(model, expected):
    config = {"__version": 10, "training_method": "LORA", "model_type": model, "base_model_name": "b", "frames": "25"}
    config |= {"concepts": [{"name": "a", "path": "films"}], "epochs": 1}
    result = imported([Text("x.json", json.dumps(config))])
    assert value(result, "data.frames") == expected


def ai_toolkit(process, *sets, **train):
    more = {"network": {"linear": 8}, "model": {"name_or_path": "m"}, "train": {"steps": 10, **train}, "datasets": sets}
    config = {"job": "extension", "config": {"name": "a", "process": [{"type": "sd_trainer", **more, **process}]}}
    return imported([Text("x.json", json.dumps(config))])


def whys(result):
    return {line.key: line.why and line.why.code for line in result.lines}


AGED = {"positive_prompt": "old\nperson", "negative_prompt": "young person", "target_class": "person"}


def test_a_concept_slider_of_ai_toolkit_is_a_slider_here(tmp_path):
    """There strength s leads to e(target) + s * guidance * (e(positive) - e(negative)) on the latents of pictures, both ways, and the anchor is held."""
    given = {**AGED, "guidance_strength": 2.5, "anchor_class": "dog", "anchor_strength": 0.8}
    off = {"loss_type": "mae", "min_snr_gamma": 5, "train_text_encoder": True, "reg_weight": 2, PRESERVED: True}
    result = ai_toolkit({"type": "concept_slider", "slider": given}, {"folder_path": "people"}, **off)
    says(
        result, method="slider", slider__positive="old person", slider__negative="young person", slider__target="person", slider__guidance=2.5,
        slider__preserve="dog", slider__preserve_weight=0.4, data__folder="people", prior=None, text_encoder=None, loss=None, objective=None,
    )  # fmt: skip
    assert {whys(result)[f"train.{key}"] for key in off} == {"import.why.slider_without"}
    config = require_job(result, tmp_path)
    assert config.slider.both_ways
    assert config.slider.mode == "slide"


@pytest.mark.parametrize(
    ("changes", "key", "why"),
    [
        ({"positive_prompt": " "}, "type", "slider_prompts"),
        ({"negative_prompt": None}, "slider.negative_prompt", "slider_negative"),
        ({"anchor_class": ""}, "slider.anchor_class", "slider_anchor"),
        ({"guidance_strength": 0}, "slider.guidance_strength", "value"),
        ({"anchor_strength": 2}, "slider.anchor_strength", "off"),
    ],
)
def test_what_a_concept_slider_cannot_be_here_is_told(changes, key, why):
    given = {name: value for name, value in {**AGED, **changes}.items() if value is not None}
    result = ai_toolkit({"type": "concept_slider", "slider": given}, {"folder_path": "people"})
    assert fates(result)[key] is Fate.NOTHING
    assert whys(result)[key] == f"import.why.{why}"


def test_a_slider_without_target_and_negative_prompt_says_the_same_here_as_there():
    given = {"positive_prompt": "high detail", "guidance_strength": 3}
    result = ai_toolkit({"type": "concept_slider", "slider": given}, {"folder_path": "people"})
    says(result, method="slider", slider__negative="", slider__target=None, slider__preserve_weight=None)
    assert fates(result)["slider.negative_prompt"] is Fate.SAME


def test_sliders_of_other_jobs_of_ai_toolkit_are_not_taken_for_ours():
    older = ai_toolkit({"type": "slider", "slider": {"targets": [{"target_class": "person"}]}})
    assert (whys(older)["type"], whys(older)["slider.targets"]) == ("import.why.slider_older",) * 2
    plain = ai_toolkit({"slider": AGED}, {"folder_path": "people"})
    says(plain, method=None, slider=None)
    assert whys(plain)["slider.positive_prompt"] == "import.why.off"


PRESERVED = "diff_output_preservation"


def test_output_preservation_of_ai_toolkit_holds_the_class_by_predictions(tmp_path):
    """There a term beside the loss: the network with the LoRA, asked with the class for the trigger, keeps to its answer without, for the same latents."""
    given = {PRESERVED: True, f"{PRESERVED}_class": "cat", f"{PRESERVED}_multiplier": 0.5, "reg_weight": 3.0}
    result = ai_toolkit({"trigger_word": "zog"}, {"folder_path": "cats"}, **given)
    says(
        result,
        prior__held_by="predictions",
        prior__class_word="cat",
        prior__weight=0.5,
        data__trigger="zog",
    )
    assert whys(result)["train.reg_weight"] == "import.why.held_weight"
    assert require_job(result, tmp_path).prior.without_pictures


@pytest.mark.parametrize(
    ("train", "key", "why"),
    [
        ({PRESERVED: True}, PRESERVED, "held_class"),
        ({f"{PRESERVED}_class": "cat"}, f"{PRESERVED}_class", "off"),
        ({PRESERVED: False, f"{PRESERVED}_multiplier": 2.0}, f"{PRESERVED}_multiplier", "off"),
        ({"blank_prompt_preservation": True}, "blank_prompt_preservation", "blank_prompt"),
    ],
)
def test_preservation_that_has_no_counterpart_is_told(train, key, why):
    result = ai_toolkit({"trigger_word": "zog"}, {"folder_path": "cats"}, **train)
    says(result, prior=None)
    assert whys(result)[f"train.{key}"] == f"import.why.{why}"


def test_without_preservation_the_weight_of_class_pictures_is_taken_over():
    says(ai_toolkit({}, {"folder_path": "cats"}, reg_weight=3.0), prior__weight=3.0)


@pytest.mark.parametrize(
    ("given", "mask", "why"),
    [
        ({"inpaint_path": "cats/"}, "alpha", "input_mask"),
        ({"inpaint_path": "holes"}, "file", "input_mask"),
        ({"inpaint_path": "holes", "mask_path": "masks"}, None, "one_mask"),
    ],
)
def test_what_ai_toolkit_fills_is_an_input_mask(given, mask, why):
    """There it is transparent in a picture of the same name, which may be the picture itself."""
    result = ai_toolkit({}, {"folder_path": "cats", **given})
    assert first_set(result).get("input_mask") == mask
    assert whys(result)["datasets[0].inpaint_path"] == f"import.why.{why}"


@pytest.mark.parametrize(
    ("config", "layer", "other"),
    [
        ({"model_family": "sdxl"}, "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.attn2.to_q"),
        ({"model_family": "flux"}, "transformer_blocks.0.attn.to_out.0", "transformer_blocks.0.attn.to_add_out"),
        ({"model_family": "flux2"}, "single_transformer_blocks.0.attn.to_qkv_mlp_proj", "x_embedder"),
        ({"model_family": "kandinsky5-image"}, "visual_transformer_blocks.0.attn1.to_key", "a.attn2.to_key"),
    ],
)  # fmt: skip
def test_the_layers_of_simpletuners_sliders_are_a_pattern(config, layer, other):
    result = simpletuner({"id": "a", "instance_data_dir": "a"}, slider_lora_target=True, **config)
    assert value(result, "adapter.targets") == "regex"
    assert re.search(value(result, "adapter.include"), layer)
    assert not re.search(value(result, "adapter.include"), other)
    lycoris = simpletuner({"id": "a", "instance_data_dir": "a"}, slider_lora_target=True, lora_type="lycoris", **config)
    assert value(lycoris, "adapter.include") is None


@pytest.mark.parametrize(("strength", "why"), [(1, "off"), (-0.5, "slider_sets"), (0, "slider_sets")])
def test_sets_at_strengths_of_their_own_have_no_counterpart(strength, why):
    """There the plain loss of each set's pictures, with the LoRA at the set's strength; here a slider learns what differs in pairs."""
    result = simpletuner({"id": "a", "instance_data_dir": "a", "slider_strength": strength})
    assert value(result, "method") in (None, "lora")
    assert whys(result)["backends[0].slider_strength"] == f"import.why.{why}"


ODD = [
    None,
    "",
    "odd",
    "-1",
    "2,3",
    ";",
    True,
    False,
    0,
    3,
    -2.5,
    float("nan"),
    [],
    ["odd", 3],
    [{"odd": 1}],
    {"odd": {}},
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_row_says_of_any_value_what_it_becomes_or_that_it_has_no_counterpart(program):
    rows = {**PROGRAMS[program].rows, **PROGRAMS[program].set_rows}
    counts = {True: 0, False: 0}
    for key, row in rows.items():
        for value in ODD if row.convert else ():
            try:
                became = row.convert(value, {key: value})
            except Unmapped:
                counts[False] += 1
            else:
                assert isinstance(became, dict), (key, value)
                counts[True] += 1
    assert min(counts.values()) > 20
