import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_loom.lora_core.backends.opening import open_backend
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.toy import build, judge, learn_text, learn_vae, names, networks, pictures, stage, taught
from lora_loom.lora_core.toy.captions import caption, plain_caption
from lora_loom.lora_core.toy.model import MODEL
from lora_loom.lora_core.toy.scenes import ACCESSORIES, GROUNDS, HUES, Scene, World, kept_back, lessons
from lora_loom.lora_core.toy.tokenizer import count_words, learn_merges, write_tokenizer
from lora_loom.lora_core.toy.world import read_emoji
from safetensors.torch import load_file, save_file
from since import since
from small_package import CHOSEN, write_package


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    return write_package(tmp_path_factory.mktemp("emoji") / "package")


@pytest.fixture(scope="module")
def world(package) -> World:
    return World(package, read_emoji(package), CHOSEN)


# ---- the world -------------------------------------------------------------------------------------------------------


def test_flags_are_left_out_and_tones_share_their_emojis_name(package):
    emoji = read_emoji(package)
    assert "japan flag" not in {e.name for e in emoji}
    assert [e.tone for e in emoji if e.name == "thumbs up sign"] == ["", "light", "dark"]


def test_a_folder_without_the_table_is_named(tmp_path):
    with pytest.raises(LoomError, match=r"emoji\.json"):
        read_emoji(tmp_path)


def test_every_chosen_name_is_spoken_differently_and_about_a_tenth_is_held_out():
    chosen = [n for line in names.CHOSEN.values() for n in line.split("|")]
    assert len({names.spoken(n) for n in chosen}) == len(chosen)
    assert set(names.SPOKEN) <= set(chosen)


def test_nothing_held_out_and_no_combination_kept_back_is_trained(world):
    taught = [s for lesson in lessons(world) for s in lesson.scenes]
    assert "banana" in world.held_out  # its hash says so
    words = {word for s in taught for word in (s.thing, s.beside)}
    assert not words & set(world.held_out)
    back = kept_back(world)
    assert back
    assert not set(back) & set(taught)
    assert all(s.change for s in back)
    assert {s.thing for s in back} <= {s.thing for s in taught}, "an unseen combination is made of known words"


def test_every_word_of_a_change_is_seen_in_its_picture(world):
    """Each change of a thing gives a picture of its own: no two captions ask for the same one."""
    scenes = [
        s
        for kind in (world.plain, world.grounded, world.colored, world.toned, world.dressed, world.paired)
        for s in kind()
    ]
    drawn = {world.draw(s).tobytes() for s in scenes}
    assert len(drawn) > 50
    # the animals and fruit of the small package differ in colour alone, so a turned one may look like another; a thing's own changes may not
    for thing in world.things:
        own = [world.draw(s).tobytes() for s in scenes if s.thing == thing]
        assert len(set(own)) == len(own), thing


def test_a_turned_emoji_has_the_hue_its_caption_names(world):
    for scene in world.colored():
        picture = world.draw(scene).round().astype(np.uint8)
        solid = pictures.Image.fromarray(picture).convert("RGBA")
        found = pictures.main_hue(solid)[0]
        assert abs((found - HUES[scene.color] + 180) % 360 - 180) < 12, scene.words


def test_what_has_a_color_or_a_tone_in_its_name_is_given_no_other(world):
    assert not {s.thing for s in world.colored()} & {"red apple", "thumbs up"}


def test_what_reaches_beyond_the_canvas_is_cut_off_and_the_rest_lies_where_it_was():
    image = pictures.Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    picture = pictures.canvas()
    pictures.lay(picture, image, 0, 64, 64)
    assert (picture[32:96, :32] == (255, 0, 0)).all()
    assert (picture[:, 32:] == 255).all()
    assert (picture[:32] == 255).all()
    pictures.lay(picture, image, -200, 64, 64)  # nothing of it is on the canvas


def test_the_corner_of_a_clear_emoji_keeps_the_ground(world):
    picture = world.draw(Scene("lemon", "food", ground="pink"))
    assert tuple(picture[0, 0]) == GROUNDS["pink"]
    assert tuple(picture[64, 64]) != GROUNDS["pink"]


# ---- captions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scene", "words"),
    [
        (Scene("owl", "animal", color="orange"), "an orange owl"),
        (Scene("owl", "animal"), "an owl"),
        (Scene("cherries", "food", color="blue"), "blue cherries"),
        (Scene("waving hand", "hand", tone="medium-dark"), "a waving hand with medium-dark skin tone"),
        (Scene("cat face", "animal face", accessory="sunglasses"), "a cat face wearing sunglasses"),
        (Scene("dog face", "animal face", beside="umbrella"), "a dog face and an umbrella"),
    ],
)
def test_the_words_of_a_scene(scene, words):
    assert scene.words == words


def test_every_caption_says_what_is_to_be_seen_or_nothing(world):
    rng = random.Random(0)
    scenes = [s for lesson in lessons(world) for s in lesson.scenes]
    texts = [(s, caption(s, rng)) for s in scenes for _ in range(20)]
    empty = sum(not text for _, text in texts) / len(texts)
    assert 0.07 < empty < 0.13
    for scene, text in texts:
        if text:
            asked = (scene.thing, scene.color, scene.tone, scene.accessory, scene.beside)
            assert all(word in text for word in asked), text
            assert scene.ground == "white" or f"{scene.ground} background" in text


def test_the_judged_caption_names_a_ground_that_is_not_white():
    assert plain_caption(Scene("lemon", "food", ground="gray")) == "a lemon on a gray background"
    assert plain_caption(Scene("lemon", "food")) == "a lemon"


# ---- tokenizer -------------------------------------------------------------------------------------------------------


def test_merges_begin_with_the_most_frequent_pair_and_end_with_whole_words():
    merges = learn_merges({"low": 5, "lower": 2, "new": 6})
    assert merges[0] == ("l", "o"), "seven times; n e and e w</w> stand six times"
    assert {"low</w>", "lower</w>", "new</w>"} <= {a + b for a, b in merges}


def test_clip_reads_the_tokenizer_words_of_captions_whole_and_others_in_pieces(tmp_path):
    from transformers import CLIPTokenizer

    write_tokenizer(tmp_path, ["a see-no-evil monkey", "an owl, pink background", "a t-rex"])
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize("an owl, see-no-evil") == [
        *("an</w>", "owl</w>", ",</w>", "see</w>", "-</w>", "no</w>", "-</w>", "evil</w>")
    ]
    strange = tokenizer("a quokka").input_ids
    assert len(strange) > 4
    assert tokenizer.decode(strange, skip_special_tokens=True).strip() == "a quokka"
    assert tokenizer("", padding="max_length").input_ids[1:] == [tokenizer.eos_token_id] * 76


def test_words_are_counted_as_clip_cuts_them():
    assert count_words(["A t-rex, a T-REX!"]) == {"a": 2, "t": 2, "-": 2, "rex": 2, ",": 1, "!": 1}


# ---- training --------------------------------------------------------------------------------------------------------


def _stage(path: Path, stop_at: int | None = None, taken: list[int] | None = None) -> torch.nn.Module:
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)

    def loss_of(step: int) -> torch.Tensor:
        if step == stop_at:
            raise KeyboardInterrupt
        if taken is not None:
            taken.append(step)
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return (module(x) - x[:, :2]).square().mean()

    stage.Stage(path, {"module": module}, 0.05, 12).learn(loss_of)
    return module


def test_a_stage_that_was_interrupted_ends_like_one_that_was_not(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "SAVE_EVERY_S", -1.0)
    whole = _stage(tmp_path / "whole.state")
    with pytest.raises(KeyboardInterrupt):
        _stage(tmp_path / "cut.state", stop_at=7)
    taken: list[int] = []
    cut = _stage(tmp_path / "cut.state", taken=taken)
    assert taken == [7, 8, 9, 10, 11]
    assert torch.equal(whole.weight, cut.weight)
    assert torch.equal(whole.bias, cut.bias)


def test_a_stage_without_a_save_goes_on_from_kept_weights_and_one_with_a_save_from_that(tmp_path):
    kept = torch.nn.Linear(3, 2)
    (tmp_path / "begun" / "module").mkdir(parents=True)
    halves = {key: value.half() for key, value in kept.state_dict().items()}
    save_file(halves, tmp_path / "begun" / "module" / "weights.safetensors")
    stage.write_steps(tmp_path / "begun", {"module": 9, "another": 4})

    def begun(path: Path, folder: Path | None) -> stage.Stage:
        return stage.Stage(path, {"module": torch.nn.Linear(3, 2)}, 0.05, 12, begun=folder)

    one = begun(tmp_path / "one.state", tmp_path / "begun")
    assert one.step == 9
    assert torch.equal(one.modules["module"].weight, kept.weight.half().float())
    taken: list[int] = []
    one.learn(lambda step: (taken.append(step), one.modules["module"].weight.square().sum())[1])
    assert taken == [9, 10, 11]
    assert begun(tmp_path / "one.state", tmp_path / "begun").step == 12
    assert begun(tmp_path / "two.state", None).step == 0
    other = stage.Stage(
        tmp_path / "three.state", {"foreign": torch.nn.Linear(3, 2)}, 0.05, 12, begun=tmp_path / "begun"
    )
    assert other.step == 0


def test_the_model_that_is_kept_here_has_seen_every_step_of_the_plan(root):
    folder, plan = MODEL, build.Plan()
    steps = json.loads((folder / stage.BEGUN_STEPS).read_text(encoding="utf-8"))
    wanted = {"vae": plan.vae_steps, "decoder": plan.decoder_steps, "post_quant_conv": plan.decoder_steps}
    assert steps == {**wanted, "unet": plan.unet_steps, "text_encoder": plan.unet_steps}
    vae = networks.new_vae()
    assert stage.Stage(Path("nowhere.state"), {"vae": vae}, 0.0, 0, begun=folder).step == plan.vae_steps
    held = load_file(next((folder / "vae").glob("*.safetensors")))
    assert torch.equal(vae.encoder.conv_in.weight, held["encoder.conv_in.weight"].float())
    assert "Apache License" in (folder / "NOTICE").read_text(encoding="utf-8")


def drawn_rightly(root, captions) -> float:
    """Share of pictures that are nearest to the thing their caption asks for, of all things."""
    drawn = judge.Model.read(MODEL).draw_all([f"a {thing}" for thing in captions], seed=7)
    pictures_drawn = drawn.add(1).mul(127.5).permute(0, 2, 3, 1).numpy()
    return np.mean([taught.nearest_thing(taught.as_image(p)) == t for p, t in zip(pictures_drawn, captions)])


def test_the_model_draws_what_it_is_asked_for(root):
    assert drawn_rightly(root, ["red apple", "rocket", "dog face", "grinning face"]) >= 0.75


@pytest.mark.slow
def test_the_model_draws_sixty_things_it_is_asked_for(root):
    things = json.loads(taught.NAMES.read_text(encoding="utf-8"))
    known = [thing for thing in things if thing not in (taught.OBJECT, taught.FACE) and thing[0] not in "aeiou"]
    assert drawn_rightly(root, known[::4][:60]) >= 0.85


def test_a_stage_ends_with_the_average_of_its_weights(tmp_path):
    module = _stage(tmp_path / "one.state")
    saved = torch.load(tmp_path / "one.state", weights_only=True)
    assert torch.equal(module.weight, saved["average"][0])
    assert not torch.equal(module.weight, saved["modules"]["module"]["weight"])


def test_the_rate_rises_holds_and_falls_to_nothing():
    assert stage.rate_at(0, 4000) == 1 / stage.WARM_UP_STEPS
    assert stage.rate_at(2000, 4000) == 1
    assert stage.rate_at(3500, 4000) == pytest.approx(0.5)
    assert stage.rate_at(4000, 4000) == 0
    assert stage.rate_at(3500, 8000) == 1, "more steps move the fall"


def test_the_loss_is_that_of_the_velocity_up_to_a_limit():
    schedule = networks.new_schedule()
    weights, signal = learn_text.noise_weights(schedule), schedule.alphas_cumprod
    x0, noise, error = torch.randn(3)
    for level in (0, 100, 500):
        a, s = signal[level].sqrt(), (1 - signal[level]).sqrt()
        x = a * x0 + s * noise
        said = noise + error
        velocity, meant = a * said - s * (x - s * said) / a, a * noise - s * x0
        if weights[level] < learn_text.MOST_WEIGHT:
            assert weights[level] * error**2 == pytest.approx(float((velocity - meant) ** 2), rel=1e-3)
    assert weights.max() == learn_text.MOST_WEIGHT


def test_half_of_the_noise_levels_decide_structure():
    levels = learn_text.draw_levels(torch.Generator().manual_seed(0), 64)
    assert (levels[:32] >= learn_text.STRUCTURE_FROM).all()
    assert (levels < learn_text.STRUCTURE_FROM).any()


# ---- the ruler -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ruler(world) -> judge.Ruler:
    return judge.Ruler(world, [*world.plain(), *world.toned(), *world.paired()])


def test_the_ruler_names_what_is_drawn_also_a_little_aside_and_darker(world, ruler):
    x = learn_vae.to_tensor([world.draw(s) for s in ruler.scenes])
    aside = torch.roll(x, (5, -4), (2, 3)) * 0.97
    assert ruler.nearest(aside) == ruler.scenes


def test_a_picture_of_something_else_is_not_right(world, ruler):
    asked = world.plain()
    drawn = learn_vae.to_tensor([world.draw(s) for s in [*asked[1:], asked[0]]])
    assert not any(judge.named_rightly(asked, ruler.nearest(drawn), with_change=False))


def test_a_change_counts_only_where_it_is_asked_for():
    asked, found = [Scene("lemon", "food", color="red")], [Scene("lemon", "food")]
    assert judge.named_rightly(asked, found, with_change=False) == [True]
    assert judge.named_rightly(asked, found, with_change=True) == [False]
    assert judge.share_by_change(asked, [True]) == {"color": 1.0}


def test_decibels_and_the_border():
    a, b = torch.zeros(1, 3, 128, 128), torch.zeros(1, 3, 128, 128)
    b[:, :, judge.BORDER_PX : -judge.BORDER_PX, judge.BORDER_PX : -judge.BORDER_PX] = 0.2
    assert float(judge.psnr(a, torch.full_like(a, 0.2))) == pytest.approx(20.0, abs=1e-4)
    assert float(judge.psnr(judge.frame(a), judge.frame(b))) > 99
    b[:, :, 0, 64] = 1
    seen = 128**2 - (128 - 2 * judge.BORDER_PX) ** 2
    assert float(judge.psnr(judge.frame(a), judge.frame(b))) == pytest.approx(10 * np.log10(4 * seen), abs=1e-3)


# ---- the whole -------------------------------------------------------------------------------------------------------


def _small_vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        latent_channels=networks.LATENT_CHANNELS,
        block_out_channels=(32,) * 4,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )


def _small_unet():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=networks.LATENT_SIDE,
        block_out_channels=(32,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=networks.TEXT_WIDTH,
        attention_head_dim=4,
    )


@pytest.mark.slow
@since("torch", "2.5", "attention takes a mask of another type under autocast")
def test_all_stages_leave_a_model_that_the_engine_draws_with(package, tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "new_vae", _small_vae)
    monkeypatch.setattr(networks, "new_unet", _small_unet)
    monkeypatch.setattr(names, "CHOSEN", CHOSEN)
    monkeypatch.setattr(judge, "CAPTIONS", 4)
    monkeypatch.setattr(judge, "UNSEEN", 2)
    monkeypatch.setattr(judge, "STEPS", 2)
    plan = build.Plan(vae_steps=4, vae_batch=1, decoder_steps=1, decoder_batch=1, unet_steps=1, unet_batch=4)
    build.build(package, tmp_path, plan)
    model = tmp_path / "export"
    parts = {"vae", "unet", "text_encoder", "tokenizer", "scheduler"}
    assert {p.name for p in model.iterdir()} == {*parts, "NOTICE", "steps.json"}
    shutil.copytree(model, tmp_path / "earlier")
    again = tmp_path / "again"
    build.build(package, again, plan, begun=tmp_path / "earlier")  # nothing is left to do: the same model comes out
    for weights in model.rglob("*.safetensors"):
        assert (again / "export" / weights.relative_to(model)).read_bytes() == weights.read_bytes(), weights
    assert (tmp_path / "judged" / "figures.json").exists()
    backend = open_backend(str(model))
    assert backend.family == "sd1"

    encoder = learn_vae.read_vae(tmp_path).encoder
    scenes = [Scene("lemon", "food")]
    before = learn_text.fingerprint(encoder, scenes)
    assert learn_text.fingerprint(learn_vae.read_vae(tmp_path, decoder=False).encoder, scenes) == before
    with torch.no_grad():
        next(encoder.parameters()).add_(1e-3)
    assert learn_text.fingerprint(encoder, scenes) != before


def test_accessories_are_things_of_the_world(world):
    assert {a for a in ACCESSORIES if a not in ("bow", "graduation cap")} <= set(world.things)
