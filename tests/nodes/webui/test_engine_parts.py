"""Parts of the WebUI backends that need no WebUI: OpenCLIP's attention, words of tokens, names of layers, the loan."""

import sys
import types

import pytest
import torch
from lora_loom.convert.results import kohya_name_of_native
from lora_loom.lora_core.adapters.tokens import Token, TokenSet, TokenTable, TokenVectors
from lora_loom.lora_core.data.shown import NOTHING, Shown
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.nodes.webui.engine import host as host_module
from lora_loom.nodes.webui.engine import lent, tokens
from lora_loom.nodes.webui.engine.captions import lengthened
from lora_loom.nodes.webui.engine.host import WebUI
from lora_loom.nodes.webui.engine.joined import EDITED, FILLED, Joined
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


@pytest.mark.parametrize(
    ("parts", "host"),
    [
        (("modules.sd_hijack", "modules.sd_models"), WebUI.A1111),
        (("modules.sd_hijack", "modules.sd_models", "modules_forge", "backend.diffusion_engine"), WebUI.FORGE),
        (("modules.sd_models", "ldm_patched.modules.model_patcher", "ldm_patched.modules.patcher_extension"), WebUI.REFORGE),
        (("modules.sd_hijack", "modules.sd_models", "ldm_patched.modules.model_patcher"), WebUI.CLASSIC),
    ],
)  # fmt: skip
def test_a_host_is_known_by_what_it_is_made_of(monkeypatch, parts, host):
    monkeypatch.setattr(host_module, "_has", parts.__contains__)
    assert host_module.webui_here() is host


@pytest.mark.parametrize("host", WebUI)
def test_a_fork_that_lacks_parts_of_its_host_is_refused_in_one_sentence(monkeypatch, host):
    monkeypatch.setattr(lent, "webui_here", lambda: host)  # whose modules are not here
    with pytest.raises(LoomError) as raised:
        lent.lent_model()
    assert raised.value.message.code == "webui.unknown"


class Network(nn.Module):
    """Answers as transformers' CLIP text models do."""

    def __init__(self):
        super().__init__()
        self.table, self.mix = nn.Embedding(20, 8), nn.Linear(8, 8)
        self.text_model = nn.Module()
        self.text_model.final_layer_norm = nn.LayerNorm(8)

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids, attention_mask=None, output_hidden_states=False):
        first = self.table(input_ids)
        second = first + self.mix(first).tanh()
        last = self.text_model.final_layer_norm(second + self.mix(second.mean(1, keepdim=True)).tanh())
        return types.SimpleNamespace(
            last_hidden_state=last, hidden_states=(first, second, last), pooler_output=last[:, -1]
        )


class Encoder(nn.Module):
    """As reForge has them: a network of transformers, with what its own forward asks besides."""

    def __init__(self):
        super().__init__()
        self.transformer = Network().eval()
        self.text_projection, self.layer_norm_hidden_state = torch.eye(8), True
        self.special_tokens = {"start": 18, "end": 19, "pad": 19}

    def set_up_textual_embeddings(self, tokens, table):
        raise AssertionError("vectors are copied, and no gradient comes back")

    def forward(self, tokens):
        ids = self.set_up_textual_embeddings(tokens, self.transformer.get_input_embeddings())
        return self.transformer(torch.tensor(ids), None, intermediate_output=-2)


def test_reforge_reads_trained_vectors_as_rows_of_its_table_with_gradients():
    from lora_loom.nodes.webui.engine.reforge_texts import readable

    torch.manual_seed(0)
    encoder, vectors = Encoder(), torch.randn(2, 8, requires_grad=True)
    encoders = nn.ModuleList([encoder])
    before = [set(module.__dict__) for module in encoders.modules()]
    with readable(encoders):
        last, hidden, *_ = encoder([[18, 3, vectors[0], vectors[1], torch.zeros(5), 19], [18, vectors[1], 4, 19, 19, 19]])  # fmt: skip
        (slope,) = torch.autograd.grad(last.square().sum(), vectors)
        plain = encoder([[18, 3, 4, 19]])[0]
    assert [set(module.__dict__) for module in encoders.modules()] == before
    table = encoder.transformer.get_input_embeddings().weight
    with torch.no_grad():  # the same with the vectors in rows that no text uses
        assert torch.equal(plain, encoder.transformer(input_ids=torch.tensor([[18, 3, 4, 19]])).last_hidden_state)
        table[10:12] = vectors
        ids = torch.tensor([[18, 3, 10, 11, 19, 19], [18, 11, 4, 19, 19, 19]])
        made = encoder.transformer(input_ids=ids, output_hidden_states=True)
    assert torch.allclose(last, made.last_hidden_state, atol=1e-6)
    assert torch.allclose(hidden, encoder.transformer.text_model.final_layer_norm(made.hidden_states[-2]), atol=1e-6)
    assert slope.abs().sum(1).min() > 0


@pytest.mark.parametrize("named", [True, False])
def test_a_fork_whose_callbacks_have_no_names_gets_the_tab_too(monkeypatch, named):
    from lora_loom.nodes.webui import extension

    registered = []

    def with_name(callback, *, name=None):
        registered.append((callback, name))

    def without(callback):
        registered.append((callback, None))

    moment = with_name if named else without
    callbacks = types.SimpleNamespace(on_ui_tabs=moment, on_before_reload=moment, on_app_started=moment)
    monkeypatch.setitem(sys.modules, "modules", types.SimpleNamespace(script_callbacks=callbacks))
    extension.register()
    assert [name for _, name in registered] == ["lora_loom" if named else None] * 3
    assert all(callable(callback) for callback, _ in registered)


def masked(left):
    """What is shown of a picture of 32 px whose first columns are filled, and its latents."""
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :left] = 1
    return Shown((torch.arange(64.0).view(1, 4, 4, 4),), (), "a", mask)


def test_an_inpainting_model_reads_the_mask_before_the_latents_of_what_it_leaves():
    beside = Joined(FILLED).of([masked(8), masked(24)], torch.zeros(2, 4, 4, 4))
    assert beside.shape == (2, 5, 4, 4)
    assert [beside[n, 0, 0].tolist() for n in (0, 1)] == [[1, 0, 0, 0], [1, 1, 1, 0]]
    assert torch.equal(beside[1, 1:], masked(0).latents[0][0])


def test_an_edit_model_reads_the_latents_of_the_picture_it_starts_from():
    source = torch.randn(1, 4, 4, 4)
    assert torch.equal(Joined(EDITED).of([Shown((source,))], torch.zeros(1, 4, 4, 4)), source)
    assert Joined(EDITED).of_sample(Shown((source,)), (8, 4)).shape == (1, 4, 8, 4)
    assert not Joined(EDITED).of_sample(NOTHING, (4, 4)).any()
    assert Joined(FILLED).of_sample(NOTHING, (4, 4)) is None, "the host itself has it fill everything"


@pytest.mark.parametrize(("joined", "field"), [(Joined(FILLED), "data.input_mask"), (Joined(EDITED), "data.controls")])
def test_a_picture_beside_which_nothing_is_shown_is_refused(joined, field):
    for shown in ([], [NOTHING, masked(8)]):
        with pytest.raises(LoomError) as error:
            joined.of(shown, torch.zeros(2, 4, 4, 4))
        assert error.value.message.field == field
    x_t = torch.ones(1, 4, 4, 4)
    assert joined.of([joined.example(x_t)], x_t).shape == (1, joined.channels, 4, 4)
    assert joined.showing().filled == joined.filled
