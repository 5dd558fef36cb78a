"""Captions longer than a CLIP text encoder's window are read in pieces, as ComfyUI reads them; tests/host compares the two."""

import torch
from lora_loom.lora_core.adapters.tokens import TokenSet
from lora_loom.lora_core.backends.clip_text import LENGTH, Text, _windows
from lora_loom.lora_core.data.batches import Batch
from lora_loom.lora_core.data.buckets import fit
from lora_loom.lora_core.training.encoding import long_captions

COLOURS = ["red", "orange", "blue", "white", "black", "gray", "brown", "yellow", "circle", "square"]
LONG = " ".join(COLOURS[n % 10] for n in range(200))  # each a token of its own


def tokenizer_of(backend):
    return next(iter(backend.text.encoders.values())).tokenizer


def inner(row, tokenizer):
    """The tokens between start and end."""
    return row[1 : row.index(tokenizer.eos_token_id)]


def test_a_short_caption_is_tokenized_as_the_tokenizer_itself_does(toy_backend):
    tokenizer = tokenizer_of(toy_backend)
    for text in ("", "a red circle on a white ground", "zog, a red circle", "  a   red\tcircle "):
        expected = tokenizer(text, padding="max_length", max_length=LENGTH).input_ids
        assert _windows(tokenizer, text, TokenSet()) == [expected]


def test_a_long_caption_loses_no_token(toy_backend):
    tokenizer = tokenizer_of(toy_backend)
    rows = _windows(tokenizer, LONG, TokenSet())
    assert [len(row) for row in rows] == [LENGTH] * 3
    assert [token for row in rows for token in inner(row, tokenizer)] == tokenizer(
        LONG, add_special_tokens=False
    ).input_ids
    assert [len(inner(row, tokenizer)) for row in rows] == [75, 75, 50]


def test_a_trained_token_and_the_few_words_behind_it_stay_together(toy_backend):
    from lora_loom.lora_core.adapters.tokens import Token, TokenVectors

    tokenizer = tokenizer_of(toy_backend)
    token = TokenVectors(Token("TOK", 4), toy_backend.token_tables(), 0, "cpu")
    rows = _windows(tokenizer, "red " * 73 + "TOK blue", TokenSet([token]))
    assert [len(inner(row, tokenizer)) for row in rows] == [73, 5]
    assert inner(rows[1], tokenizer)[:4] == [(token, n) for n in range(4)]


def test_parentheses_written_for_other_programs_are_parentheses(toy_backend):
    tokenizer = tokenizer_of(toy_backend)
    assert _windows(tokenizer, r"red \(circle\)", TokenSet()) == _windows(tokenizer, "red (circle)", TokenSet())


def test_short_and_long_captions_in_one_batch_give_what_each_gives_alone(toy_backend):
    torch.manual_seed(0)
    x, sigma, how = (
        torch.randn(2, toy_backend.unet.config.in_channels, 8, 8),
        torch.tensor([1.0, 2.0], dtype=torch.float64),
        fit(64, 64, 64, 8),
    )
    captions = ["a red circle", LONG]
    with torch.no_grad():
        both = toy_backend.predict(x, sigma, Batch(x, captions, [how] * 2, ["a", "b"], torch.ones(2)))
        for n in range(2):
            alone = toy_backend.predict(
                x[n : n + 1], sigma[n : n + 1], Batch(x[n : n + 1], captions[n : n + 1], [how], ["a"], torch.ones(1))
            )
            assert (both[n] - alone[0]).abs().max() < 1e-5  # fp32 sums over three times as many, equal, keys
    assert toy_backend.encode([LONG]).hidden.shape[1] == 3 * LENGTH
    assert (
        toy_backend.encode([LONG]).hidden[0, :LENGTH] - toy_backend.encode([" ".join(LONG.split()[:75])]).hidden[0]
    ).abs().max() < 1e-5


def test_texts_of_other_lengths_are_joined_by_repeating():
    one, two, three = (torch.randn(1, n * LENGTH, 4) for n in (1, 2, 3))
    joined = Text.joined([Text(one), Text(two), Text(three)]).hidden
    assert joined.shape == (3, 6 * LENGTH, 4)
    assert torch.equal(joined[1], two[0].repeat(3, 1))


def test_long_captions_are_named_before_the_first_step(toy_backend, toy_config, run_toy, pictures, tmp_path):
    (sentence,) = long_captions([LONG, "a red circle", "red " * 80], toy_backend)
    assert str(sentence).startswith(
        "2 captions have more than 75 tokens and are read in pieces, the longest with 200 tokens in 3 pieces: 'red orange"
    )
    from lora_loom.lora_core.events import Listener

    class Heard(Listener):
        messages: list = []

        def on_warning(self, message):
            self.messages.append(str(message))

    run_toy(toy_config(steps=1, data={"suffix": f", {LONG}"}), tmp_path / "run", Heard())
    assert any("4 captions have more than 75 tokens" in m for m in Heard.messages)


def test_what_a_model_cuts_is_said_too():
    from lora_loom.lora_core.data.lengths import TextLength

    class Cutting:
        def text_length(self, caption):
            return TextLength(90, 1, 15)

    (sentence,) = long_captions(["x" * 100], Cutting())
    assert str(sentence).startswith("1 caption is too long for this model and is cut, the longest by 15 tokens")


def test_one_changed_number_changes_the_checksum_of_an_encoder(toy_backend):
    from lora_loom.lora_core.backends.base import weights_checksum, weights_fingerprint

    model = next(iter(toy_backend.text.encoders.values())).model
    before, quick = weights_checksum(model), weights_fingerprint(model)
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        kept = weight[7, 3].clone()
        weight[7, 3] += 1e-3
        assert weights_checksum(model) != before
        assert weights_fingerprint(model) == quick  # which is why the checksum is there
        weight[7, 3] = kept
        assert weights_checksum(model) == before
        weight[[7, 9]] = weight[[9, 7]]  # the same numbers in other places
        assert weights_checksum(model) != before
        weight[[7, 9]] = weight[[9, 7]]


def test_captions_that_vary_leave_the_store_alone_and_do_not_pile_up(toy_backend, tmp_path, monkeypatch):
    from lora_loom.lora_core.backends import headless
    from lora_loom.lora_core.data.store import Disk, Memory

    monkeypatch.setattr(headless, "MAX_TEXTS", 20)
    toy_backend.forget_texts()
    toy_backend.keep_texts(Disk(tmp_path, 10**9))
    toy_backend.encode_texts(["a red circle"], lambda n, of: None)
    for n in range(60):
        toy_backend.encoded([f"a red circle {n}"])
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    assert len(toy_backend._texts) <= 21
    toy_backend.keep_texts(Memory())
    toy_backend.forget_texts()
