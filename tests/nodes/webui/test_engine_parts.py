"""Parts of the WebUI backends that need no WebUI: OpenCLIP's attention, words of tokens, names of layers, the loan."""

import pytest
import torch
from lora_loom.convert.results import kohya_name_of_native
from lora_loom.lora_core.adapters.tokens import Token, TokenSet, TokenTable, TokenVectors
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.nodes.webui.engine import lent, tokens
from lora_loom.nodes.webui.engine.captions import lengthened
from lora_loom.nodes.webui.engine.host import WebUI
from lora_loom.nodes.webui.engine.lending import without_gradients
from lora_loom.nodes.webui.engine.openclip import projections, through
from torch import nn


@pytest.mark.parametrize("batch_first", [False, True])
def test_attention_through_its_projections_is_the_same_attention(batch_first):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 4, batch_first=batch_first).eval()
    x, mask = torch.randn(5, 2, 16), torch.full((5, 5), float("-inf")).triu(1)
    x = x.transpose(0, 1) if batch_first else x
    expected, _ = attention(x, x, x, need_weights=False, attn_mask=mask)
    got, _ = through(attention, projections(attention))(x, x, x, need_weights=False, attn_mask=mask)
    assert torch.allclose(got, expected, atol=1e-6)


def test_projections_are_the_attentions_own_weights():
    attention = nn.MultiheadAttention(8, 2)
    parts = projections(attention)
    assert [part.weight.data_ptr() for part in parts.values()] == [
        *(attention.in_proj_weight[8 * n :].data_ptr() for n in range(3)),
        attention.out_proj.weight.data_ptr(),
    ]
    assert not list(parts["q_proj"].parameters())


def token_set(*placeholders):
    table = {"clip_l": TokenTable(4, 1.0, lambda words: torch.zeros(1, 4))}
    return TokenSet(TokenVectors(Token(name, 2, "x"), table, 0, "cpu") for name in placeholders)


def test_each_token_is_a_word_of_letters_that_no_other_token_has():
    words = [tokens.word(token) for token in token_set("TOK", "TOK2", "<x>", "猫")]
    assert len(set(words)) == 4
    assert all(word.isascii() and word.isalpha() for word in words)


def test_a_token_is_found_by_its_ids_before_the_hosts_embeddings():
    known = token_set("TOK", "TOKEN")
    table = tokens.lookup_of(known, lambda words: [7, *range(len(words))], lambda token, name: name)
    assert [len(ids) for ids, _ in table[7]] == sorted((len(ids) for ids, _ in table[7]), reverse=True)
    assert tokens.with_others(table, {7: [([7], "own")], 8: [([8], "other")]})[7][-1] == ([7], "own")
    assert tokens.written("a TOK, b", known).split() == ["a", tokens.word(next(iter(known))), ",", "b"]


@pytest.mark.parametrize(
    ("family", "native", "name"),
    [
        ("sd1", "input_blocks.1.1.transformer_blocks.0.attn1.to_q", "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"),
        ("sd2-v", "output_blocks.5.2.conv", "lora_unet_up_blocks_1_upsamplers_0_conv"),
        ("sd1", "middle_block.2.in_layers.2", "lora_unet_mid_block_resnets_1_conv1"),
        ("sdxl", "input_blocks.4.1.proj_in", "lora_unet_input_blocks_4_1_proj_in"),
    ],
)  # fmt: skip
def test_layers_have_the_names_that_webuis_look_for(family, native, name):
    assert kohya_name_of_native(family, native) == name


def test_a_shorter_text_ends_in_its_last_vector_again():
    text = torch.arange(6.0).view(1, 2, 3)
    assert torch.equal(lengthened(text, 4)[0, 2:], text[0, 1:].expand(2, 3))


def test_weights_ask_for_gradients_again_after_the_loan():
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    with without_gradients([layer]):
        assert not layer.weight.requires_grad
    assert (layer.weight.requires_grad, layer.bias.requires_grad) == (True, False)


@pytest.mark.parametrize("host", WebUI)
def test_a_fork_that_lacks_parts_of_its_host_is_refused_in_one_sentence(monkeypatch, host):
    monkeypatch.setattr(lent, "webui_here", lambda: host)  # whose modules are not here
    with pytest.raises(LoomError) as raised:
        lent.lent_model()
    assert raised.value.message.code == "webui.unknown"
