import pytest
from lora_loom.lora_core.config import parse
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.training.prompts import job_of, prompts_in, unknown_options


def jobs(text, **changes):
    config = parse({"data": {"resolution": 512, "trigger": "zog"}, "samples": {"prompt": text}, **changes})
    return [job_of(prompt, config) for prompt in prompts_in(text)]


def test_options_behind_a_prompt_go_before_the_settings_and_are_no_text():
    job, plain = jobs(
        "a [trigger] --n blurry, low quality --w 768 --h 640 --d 7 --l 5.5 --s 25 --ss dpmpp_2m\nanother - cat--egory"
    )
    assert (job.prompt, job.width_px, job.height_px) == ("a zog", 768, 640)
    own = job.config
    assert (own.negative, own.seed, own.cfg, own.steps, own.sampler) == ("blurry, low quality", 7, 5.5, 25, "dpmpp_2m")
    assert (plain.prompt, plain.width_px, plain.config.steps) == ("another - cat--egory", 512, 20)


def test_lines_that_begin_with_a_hash_are_comments():
    assert [p.text for p in prompts_in("# from here\n\n a cat \n#b")] == ["a cat"]


def test_the_first_token_stands_for_the_trigger_where_there_is_none():
    job = jobs("[trigger] on a hill", method="pivotal", data={"trigger": ""}, embedding={"tokens": "TOK*2 = a dog"})
    assert job[0].prompt == "TOK on a hill"


def test_options_without_a_counterpart_are_named():
    config = parse({"samples": {"prompt": "a --m 0.5 --ctrl_img x.png --w 64\nb --m 1"}})
    assert unknown_options(config).values["options"] == ("--m", "--ctrl_img")
    assert unknown_options(parse({"samples": {"prompt": "a --w 64"}})) is None


@pytest.mark.parametrize("text", ["a --w wide", "a --s 0", "a --s 2000", "a --l", "a --d -5"])
def test_a_value_that_cannot_be_is_refused_with_what_is_allowed(text):
    with pytest.raises(LoomError, match=r"samples.prompt: --[wsld] has the value '.*'; give a number, \d"):
        prompts_in(text)
