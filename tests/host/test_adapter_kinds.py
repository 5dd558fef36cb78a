"""Every kind of adapter as ComfyUI's own loader applies it: the same change of a weight as ours, at full strength."""

import comfy.lora
import pytest
import torch
from lora_loom.convert import read, write
from lora_loom.convert.loaders import cell_of
from lora_loom.convert.lora import applied
from lora_loom.lora_core.adapters import KindAdapter, Shape
from lora_loom.lora_core.algebra import NAMES
from lora_loom.lora_core.algebra.kind import NORMS
from lora_loom.lora_core.algebra.kinds import KINDS
from torch import nn

NAME = "lora_unet_mid_block_attentions_0_proj_in"
LAYERS = {
    "linear": lambda: nn.Linear(24, 16),
    "square": lambda: nn.Linear(16, 16),
    "conv 3x3": lambda: nn.Conv2d(8, 16, 3, padding=1),
    "conv 1x1": lambda: nn.Conv2d(8, 16, 1),
    "norm": lambda: nn.LayerNorm(16),
}


def file_of(kind, layer, **options):
    shape = Shape(tuple(layer.weight.shape), 4, 3.0, options=options)
    adapter = KindAdapter(KINDS[kind], NAME, layer, shape, 0, "cpu")
    adapter.prepare()
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(torch.randn(p.shape, generator=rng) * 0.1)
    state = {f"{NAME}.{key}": p.detach() for key, p in adapter.named_parameters()}
    return read(state | {f"{NAME}.{key}": value for key, value in adapter.facts().items()}, family="unknown")


def sd1_file_of(kind, layer):
    """The same as a file of a family whose names are known."""
    lora = file_of(kind, layer)
    place = "norm" if isinstance(layer, nn.LayerNorm) else "proj_in"
    lora.family, lora.modules = "sd1", {f"unet.mid_block.attentions.0.{place}": lora.modules[NAME]}
    return lora


def loaded(tensors, layer, strength=1.0):
    """(weight, bias, patches) of a layer after the host's own loader and arithmetic."""
    keys = {
        key.rpartition(".")[0].removesuffix(".lora_A").removesuffix(".lora_down").removesuffix(".a1") for key in tensors
    }
    patches = comfy.lora.load_lora(dict(tensors), {name: "layer.weight" for name in keys}, log_missing=False)
    out = {"layer.weight": layer.weight.detach().clone(), "layer.bias": layer.bias.detach().clone()}
    for key, patch in patches.items():
        out[key] = comfy.lora.calculate_weight([(strength, patch, 1.0, None, None)], out[key], key)
    return out["layer.weight"], out["layer.bias"], patches


CASES = [
    (kind, place)
    for kind in NAMES
    for place in LAYERS
    if (KINDS[kind].trains == NORMS) == (place == "norm") and kind != "ia3"
]


@pytest.mark.parametrize("form", ["kohya", "comfyui"])
@pytest.mark.parametrize(("kind", "place"), CASES)
def test_the_host_changes_a_layer_as_we_do(kind, place, form):
    torch.manual_seed(3)
    layer = LAYERS[place]()
    lora = sd1_file_of(kind, layer)
    (module,) = lora.modules.values()
    weight, bias, patches = loaded(write(lora, form), layer)
    assert patches
    wanted = applied(layer.weight.detach(), module) if module.changes_weight else layer.weight.detach()
    assert module.changes_weight == (not torch.equal(wanted, layer.weight))
    assert (weight - wanted).norm() <= 1e-6 * wanted.norm()
    torch.testing.assert_close(
        bias, layer.bias + module.parts["diff_b"] if "diff_b" in module.parts else layer.bias, rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize(("kind", "place"), CASES)
def test_half_the_strength_is_half_the_change_just_where_we_say_so(kind, place):
    torch.manual_seed(3)
    layer = LAYERS[place]()
    file = write(sd1_file_of(kind, layer), "kohya")
    before = torch.cat([layer.weight.detach().flatten(), layer.bias.detach()])
    whole, half = (
        torch.cat([t.flatten() for t in loaded(file, layer, strength)[:2]]) - before for strength in (1.0, 0.5)
    )
    apart = float((half - whole / 2).norm() / whole.norm())
    if KINDS[kind].proportional or kind == "dora":  # DoRA over inputs is halved here and left out elsewhere
        assert apart < 1e-5  # differences of sums in float32
    else:
        assert apart > 0.1


def seen(kind: str) -> set[str]:
    """What the table says of this kind in ComfyUI, by sort of layer."""
    told = cell_of("ComfyUI", "sd1", "kohya")["kinds"][kind]
    return {told} if isinstance(told, str) else set(told.values())


def test_the_host_does_not_read_ia3_and_the_table_says_so():
    layer = nn.Linear(24, 16)
    lora = file_of("ia3", layer)
    assert loaded(write(lora, "kohya"), layer)[2] == {}
    assert seen("ia3") == {"nothing"}


@pytest.mark.parametrize("kind", sorted(set(NAMES) - {"ia3"}))
def test_a_kind_the_host_reads_is_not_said_to_be_left_out(kind):
    assert "exact" in seen(kind)
