"""How much diffusers reads of every form; ComfyUI's figures are measured in tests/host."""

import importlib.util
import json
from pathlib import Path

import pytest
import tiny
from lora_loom.convert import write
from lora_loom.convert.families import FAMILIES
from lora_loom.convert.loaders import cell_of as seen_by
from safetensors.torch import save_file

spec = importlib.util.spec_from_file_location(
    "format_support", Path(__file__).parents[1] / "reference" / "format_support.py"
)
support = importlib.util.module_from_spec(spec)
spec.loader.exec_module(support)

FORMATS = (
    "sd1",
    "sd2",
    "sdxl",
    *tiny.TRANSFORMERS,
)  # those with small models of diffusers; tests/host has ComfyUI's newer ones
# another width here; T5 and projections there
OTHER_LAYERS = {("lumina2", "comfyui"), ("flux1", "diffusers"), ("chroma", "diffusers"), ("sd3", "diffusers")}

# diffusers' reader of these has the sizes of the published model in it; test_effect_diffusers.py has tests of their own for flux1.
NOT_AT_TINY_SIZE = {("flux1", "kohya"), ("chroma", "kohya")}


def layers_read(family: str, form: str, only, folder: Path) -> list[int]:
    """[layers with the right change, layers in the file] for a file in `form`, loaded by diffusers; an error reads nothing."""
    model = tiny.build(family, "real" if (family, form) == ("lumina2", "comfyui") else "tiny")
    ref = tiny.reference(model, "uniform", only=only)
    path = folder / f"{family}-{form}.safetensors"
    save_file({k: v.contiguous() for k, v in write(ref.lora, form).items()}, path, {"format": "pt"})
    with tiny.overheard():
        try:
            model.pipeline().load_lora_weights(str(path), adapter_name="x")
        except Exception:  # noqa: BLE001  whatever a reader raises for what it does not know
            return [0, len(ref.deltas)]
    got = tiny.lora_layers(model, "x")
    return [
        sum(name in got and tiny.error(got[name], want) <= tiny.EXACT for name, want in ref.deltas.items()),
        len(ref.deltas),
    ]


def cell_of(family: str, form: str, folder: Path) -> list[list[int]]:
    """[read, of] inside blocks, and over all layers; a file that is read whole is read inside the blocks too, and not loaded a second time."""
    whole = layers_read(family, form, None, folder)
    if whole[0] == whole[1]:
        inside = sum(map(support.in_block, tiny.build(family).layers))
        return [[inside, inside], whole]
    return [layers_read(family, form, support.in_block, folder), whole]


@pytest.mark.slow
def test_diffusers_reads_what_the_table_says(tmp_path):
    measured = {
        family: {
            form: cell_of(family, form, tmp_path)
            for form in ("kohya", "comfyui", "diffusers")
            if (family, form) not in NOT_AT_TINY_SIZE
        }
        for family in FORMATS
    }
    support.check("diffusers", measured)


@pytest.mark.parametrize("program", ["ComfyUI", "diffusers"])
def test_what_inspect_asks_agrees_with_these_figures(program):
    """That a file is read whole or not at all is seen here and in tests/convert/programs, on other models."""
    for family, forms in json.loads(support.FILE.read_text())[program].items():
        for form, (_, (read, of)) in forms.items():
            cell = seen_by(program, family, form)
            if cell and (family, form) not in OTHER_LAYERS:
                assert (cell["layers"][0] == cell["layers"][1]) == (read == of), (family, form)


def test_the_universal_form_is_read_by_comfyui_and_diffusers_inside_blocks_at_least():
    kept = json.loads(support.FILE.read_text())
    for family in FORMATS:
        if family == "lumina2":
            continue  # diffusers wants every layer of a block there
        for program in ("ComfyUI", "diffusers"):
            inside, of = kept[program][family][FAMILIES[family].universal][0]
            assert inside == of, (family, program)
