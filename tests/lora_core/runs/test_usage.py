"""The code in a model card runs on the pipelines of diffusers: embeddings under the word of the prompt, then the LoRA."""

import ast

import pytest
from lora_loom.lora_core.config import parse
from lora_loom.lora_core.runs.hub import About, card
from lora_loom.lora_core.runs.usage import Files, snippet, spoken


def calls(lines):
    """The calls on `pipe` in order, by name, with their keyword arguments."""
    tree = ast.parse("\n".join(lines))
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func).startswith("pipe.")]
    found.sort(key=lambda n: n.lineno)
    return [(ast.unparse(n.func), ast.unparse(n)) for n in found]


def test_a_pivotal_sdxl_run_loads_both_encoders_of_its_embedding_before_the_lora_and_samples_in_25_steps():
    files = Files("me/cat", "cat.safetensors", {"cat_emb": ("clip_l", "clip_g")}, {"TOK": "cat_emb"}, "sdxl")
    lines = snippet("o/base", files, 'a "cat_emb" emoji')
    made = calls(lines)
    assert [name for name, _ in made] == [
        "pipe.load_textual_inversion",
        "pipe.load_textual_inversion",
        "pipe.load_lora_weights",
    ]
    assert "vectors['clip_l'], token='cat_emb', text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)" in made[0][1]
    assert (
        "vectors['clip_g'], token='cat_emb', text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2)"
        in made[1][1]
    )
    assert "pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)" in lines
    assert lines[-1] == 'image = pipe("a \\"cat_emb\\" emoji", num_inference_steps=25).images[0]'


@pytest.mark.parametrize(
    ("family", "keys", "place"),
    [
        ("sd1", ["emb_params"], "text_encoder,"),
        ("flux1", ["t5xxl"], "text_encoder_2,"),
        ("sd2", ["emb_params"], "text_encoder,"),
    ],
)
def test_each_family_loads_the_keys_its_embeddings_have(family, keys, place):
    (call,) = [
        line
        for line in snippet("o/b", Files("me/x", "", {"x": keys}, {}, family), "x")
        if "load_textual_inversion" in line
    ]
    assert f'vectors["{keys[0]}"], token="x", text_encoder=pipe.{place}' in call


def test_a_flow_model_keeps_its_own_scheduler():
    text = "\n".join(snippet("o/b", Files("me/x", "x.safetensors", family="flux1"), "x"))
    assert "DPMSolver" not in text
    assert "num_inference_steps" not in text
    assert "load_lora_weights" in text


@pytest.mark.parametrize("family", ["sd3", "z-image", ""])
def test_an_embedding_that_no_pipeline_of_the_family_loads_gets_no_code(family):
    assert snippet("o/b", Files("me/x", "x.safetensors", {"x_emb": ("clip_l",)}, {}, family), "x") == []


def test_prompts_name_the_word_of_the_file_in_place_of_the_placeholder():
    words = {"TOK": "cat_emb", "TOK2": "hat_emb"}
    assert spoken("a TOK and TOK2, not TOKEN or aTOK", words) == "a cat_emb and hat_emb, not TOKEN or aTOK"


def test_the_card_of_a_pivotal_run_shows_no_placeholder():
    config, _ = (
        parse(
            {
                "name": "cat",
                "method": "pivotal",
                "data": {"folder": "x"},
                "samples": {"prompt": "a TOK emoji", "every": 1},
            }
        ),
        None,
    )
    about = About(
        "o/base",
        triggers=("cat_emb",),
        repository="me/cat",
        family="sdxl",
        embeddings={"cat_emb": ("clip_l", "clip_g")},
        words={"TOK": "cat_emb"},
    )
    text = card(config, about, ["cat.safetensors", "cat_emb.safetensors"], ["samples.png"])
    assert "TOK" not in text
    assert text.count("load_textual_inversion") == 2
    assert "- a cat_emb emoji" in text


def test_code_opens_every_kind_of_pipeline_and_films_become_a_film():
    text = "\n".join(snippet("o/b", Files("me/x", "x.safetensors", family="wan"), "x"))
    assert (
        "DiffusionPipeline.from_pretrained" in text
    )  # AutoPipelineForText2Image knows no film models, no OmniGen2, no Anima
    assert 'export_to_video(pipe("x").frames[0], "film.mp4")' in text
    assert ".images" not in text
    ast.parse(text)


@pytest.mark.parametrize(("changes", "family", "task", "coded"), [
    ({}, "sdxl", "text-to-image", True), ({}, "wan", "text-to-video", True), ({"data": {"controls": "auto"}}, "flux1", "image-to-image", False),
    ({"data": {"input_mask": "random"}}, "sdxl", "image-to-image", False),
    ({"data": {"controls": "auto"}, "method": "slider", "slider": {"mode": "pairs"}}, "sdxl", "text-to-image", True),
])  # fmt: skip
def test_a_card_has_code_for_what_draws_from_text_alone(changes, family, task, coded):
    config = parse({"base": "o/b", "name": "a", "samples": {"prompt": "x"}, **changes})
    text = card(config, About("o/b", "mit", ["zog"], family=family), ["a.safetensors"], [])
    assert task in text
    assert ("```python" in text) is coded
    blind = card(config, About("o/b", "mit", ["zog"], family=family, diffusers=False), ["a.safetensors"], [])
    assert "```python" not in blind
