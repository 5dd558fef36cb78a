import pytest
import torch
from lora_loom.lora_core.adapters.set import AdapterSet
from lora_loom.lora_core.adapters.tokens import Token, TokenSet, TokenTable, TokenVectors, wanted_tokens
from lora_loom.lora_core.config import EmbeddingConfig
from lora_loom.lora_core.messages.errors import LoomError

TABLE = TokenTable(
    8, 0.02, lambda words: torch.arange(8.0).repeat(len(words.split()), 1) + torch.arange(len(words.split()))[:, None]
)


def token(word="TOK", vectors=2, init="", tables=None, seed=0):
    return TokenVectors(Token(word, vectors, init), tables or {"clip_l": TABLE}, seed, "cpu")


@pytest.mark.parametrize(("text", "trigger", "expected"), [
    ("", "zog", [Token("zog", 1)]),
    ("", "", [Token("TOK", 1)]),
    ("TOK", "zog", [Token("TOK", 1)]),
    ("TOK = a dog", "", [Token("TOK", 1, "a dog")]),
    ("TOK*4: a dog\n\n <s0> * 2 ", "", [Token("TOK", 4, "a dog"), Token("<s0>", 2)]),
])  # fmt: skip
def test_tokens_are_written_one_a_line(text, trigger, expected):
    assert wanted_tokens(EmbeddingConfig(tokens=text), trigger) == expected


def test_vectors_and_init_of_the_section_are_for_lines_without_their_own():
    config = EmbeddingConfig(tokens="A\nB*3 = cat", vectors=2, init="dog")
    assert wanted_tokens(config) == [Token("A", 2, "dog"), Token("B", 3, "cat")]


@pytest.mark.parametrize("text", ["two words", "TOK*0", "TOK*33", "TOK*x", "= dog", "*3", "--"])
def test_a_line_that_is_no_token_is_quoted(text):
    with pytest.raises(LoomError, match="embedding.tokens: .* is not a token; write a word"):
        wanted_tokens(EmbeddingConfig(tokens=text))


def test_a_token_given_twice_is_refused():
    with pytest.raises(LoomError, match="embedding.tokens: 'tok' is there twice"):
        wanted_tokens(EmbeddingConfig(tokens="TOK\ntok"))


def test_random_vectors_have_the_spread_of_the_table_and_depend_on_seed_and_word_only():
    wide = {"clip_l": TokenTable(768, 0.02, TABLE.rows), "clip_g": TokenTable(1280, 0.014, TABLE.rows)}
    first = token(tables=wide, vectors=16).vectors
    assert first["clip_l"].shape == (16, 768)
    assert first["clip_l"].std().item() == pytest.approx(0.02, rel=0.03)  # 12288 draws: known to 0.6 %
    assert first["clip_g"].std().item() == pytest.approx(0.014, rel=0.03)
    assert torch.equal(first["clip_l"], token(tables=wide, vectors=16).vectors["clip_l"])
    assert not torch.equal(first["clip_l"], token(tables=wide, vectors=16, seed=1).vectors["clip_l"])
    assert not torch.equal(first["clip_l"], token("OTHER", tables=wide, vectors=16).vectors["clip_l"])


def test_vectors_start_from_the_rows_of_words_repeated_or_cut():
    rows = TABLE.rows("one two three")
    assert torch.equal(token(vectors=2, init="one two three").vectors["clip_l"], rows[:2])
    assert torch.equal(token(vectors=5, init="one two three").vectors["clip_l"], rows[[0, 1, 2, 0, 1]])
    with pytest.raises(LoomError, match="'...' contains no words the text encoder clip_l knows; start TOK from others"):
        token(init="...", tables={"clip_l": TokenTable(8, 1.0, lambda words: torch.zeros(0, 8))})


def test_texts_are_split_at_whole_placeholders_whatever_their_case():
    one, two = token("TOK"), token("TOKEN")
    tokens = TokenSet([one, two])
    assert tokens.split("a tok, TOKEN and TOKS") == ["a ", one, ", ", two, " and TOKS"]
    assert tokens.split("TOK") == [one]
    assert tokens.split("") == [""]
    assert TokenSet().split("a TOK") == ["a TOK"]
    assert tokens.replaced("a tok (TOK:1.2)", lambda t: "X") == "a X (X:1.2)"
    assert tokens.names_in("my-TOK!")
    assert not tokens.names_in("TOKS _TOK")


def test_switched_off_a_token_is_what_it_was_before_the_first_step():
    one = token()
    before = one.of("clip_l").detach().clone()
    with torch.no_grad():
        one.vectors["clip_l"].add_(1.0)
    with AdapterSet({}, TokenSet([one])).switched_off():
        assert torch.equal(one.of("clip_l"), before)
    assert not torch.equal(one.of("clip_l"), before)
    assert one.of("t5xxl") is None


def test_pulling_back_the_norm_is_the_formula_of_the_diffusers_script():
    one = token(vectors=4)
    with torch.no_grad():
        one.vectors["clip_l"].mul_(50)
    value = one.vectors["clip_l"].detach().clone()
    one.pull_back_norm()
    torch.testing.assert_close(one.vectors["clip_l"].detach(), value * (0.02 / value.std()) ** 0.1)
    one.requires_grad_(False)
    frozen = one.vectors["clip_l"].clone()
    one.pull_back_norm()
    assert torch.equal(one.vectors["clip_l"], frozen)  # nothing moves after the pivot


@pytest.mark.parametrize("text", ["猫\n狗", "TOK_1\nTOK-1", "<s0>\ns0"])
def test_tokens_whose_files_would_be_one_are_refused(text):
    with pytest.raises(LoomError, match="leaves no file name of its own"):
        wanted_tokens(EmbeddingConfig(tokens=text))
    assert len(wanted_tokens(EmbeddingConfig(tokens=text.splitlines()[0]))) == 1
