"""A weight that is missing from any network of any headless family is refused by name: the libraries would fill it with random numbers."""

from __future__ import annotations

import functools
import json
import os
import shutil
from pathlib import Path

import pytest
import tiny_flow
import tiny_stages
import tiny_unet
import torch
from lora_loom.lora_core.backends import effnet
from lora_loom.lora_core.backends.effnet import EfficientNet
from lora_loom.lora_core.backends.opening import ONE_NETWORK, TWO_STAGES, open_backend
from lora_loom.lora_core.config import TrainConfig
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.nodes.jobs.headless import open_base
from safetensors.torch import load_file, save_file

PARTS = {  # family -> its networks, by folder
    "sd1": ("unet", "vae", "text_encoder"),
    "sd2": ("unet", "vae", "text_encoder"),
    "sd2-v": ("unet", "vae", "text_encoder"),
    "sdxl": ("unet", "vae", "text_encoder", "text_encoder_2"),
    **dict.fromkeys(tiny_flow.MAKERS, ("transformer", "vae", "text_encoder")),  # but for those with more
    "sd3": ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"),
    "flux1": ("transformer", "vae", "text_encoder", "text_encoder_2"),
    "kandinsky prior": ("prior", "image_encoder", "text_encoder", "companion:unet", "companion:movq"),
    "kandinsky decoder": ("unet", "movq", "companion:prior", "companion:image_encoder", "companion:text_encoder"),
    "wuerstchen prior": ("prior", "text_encoder", "effnet", "companion:decoder", "companion:vqgan"),
    "wuerstchen decoder": ("decoder", "vqgan", "text_encoder", "companion:prior", "companion:effnet"),
}
ONE = {**tiny_unet.MAKERS, **tiny_flow.MAKERS}
CASES = [(family, part) for family, parts in PARTS.items() for part in parts]


class SmallBackbone(EfficientNet):
    """The picture encoder of Würstchen without torchvision."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.conv = torch.nn.Conv2d(3, 16, 32, stride=32)

    def forward(self, x):
        return self.conv(x)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """`folders(family)` -> (folder, that of the other stage or None)."""
    place = tmp_path_factory.mktemp("whole")

    @functools.cache
    def stages(family):
        prior, decoder = getattr(tiny_stages, family)(place)
        if family == "wuerstchen":
            (prior / "effnet").mkdir()
            save_file(SmallBackbone().state_dict(), prior / "effnet" / "model.safetensors")
        return prior, decoder

    @functools.cache
    def made(family):
        if family in ONE:
            return (tiny_unet if family in tiny_unet.MAKERS else tiny_flow).saved(family, place), None
        first, second = stages(family.split()[0])
        return (first, second) if family.endswith("prior") else (second, first)

    return made


@pytest.fixture(autouse=True)
def without_torchvision(monkeypatch):
    monkeypatch.setattr(effnet, "EfficientNet", SmallBackbone)


def without_one(folder: Path, copy: Path, part: str) -> tuple[Path, str]:
    """(a copy of a model whose `part` lacks its middle weight, the name of that)."""
    shutil.copytree(folder, copy, copy_function=os.link)
    [file] = (copy / part).glob("*.safetensors")
    tensors = load_file(file)
    name = sorted(tensors)[len(tensors) // 2]
    file.unlink()
    save_file({key: value for key, value in tensors.items() if key != name}, file, {"format": "pt"})
    return copy, name


def plain(name: str) -> str:
    """A weight's name without what newer and older transformers put in or leave out."""
    return name.replace("text_model.", "").replace("language_model.", "")


def test_every_headless_family_and_each_of_its_networks_is_in_the_table(folders):
    pipelines = {json.loads((folders(family)[0] / "model_index.json").read_text())["_class_name"] for family in PARTS}
    assert pipelines == {*ONE_NETWORK, *TWO_STAGES}
    for family, parts in PARTS.items():
        folder, _ = folders(family)
        networks = {file.parent.name for file in folder.glob("*/*.safetensors")}
        assert networks == {part for part in parts if not part.startswith("companion:")}


@pytest.mark.parametrize(("family", "part"), CASES)
def test_a_weight_that_is_missing_from_a_folder_is_refused_by_name(family, part, folders, tmp_path):
    folder, other = folders(family)
    where, _, inner = part.rpartition(":")
    if where:
        other, name = without_one(other, tmp_path / "lacking", inner)
    else:
        folder, name = without_one(folder, tmp_path / "lacking", inner)
    field = where or "base"
    with pytest.raises(LoomError) as told:
        open_backend(str(folder), str(other or ""), device="cpu")
    message = told.value.message
    assert (message.code, message.field, message.values["count"]) == ("base.weights_missing", field, 1)
    assert inner in message.values["file"]
    assert plain(message.values["key"]) == plain(name)


@pytest.mark.parametrize("family", [family for family in ONE if family not in ("sd2-v",)])
def test_another_vae_that_lacks_a_weight_is_refused_as_a_folder_and_as_a_file(family, folders, tmp_path):
    folder, _ = folders(family)
    lacking, name = without_one(folder, tmp_path / "lacking", "vae")
    [file] = (lacking / "vae").glob("*.safetensors")
    backend = open_base(TrainConfig(base=str(folder)), "cpu")
    for place in (lacking, lacking / "vae", file):
        with pytest.raises(LoomError) as told:
            backend.use_vae(place)
        message = told.value.message
        assert (message.code, message.field) == ("base.weights_missing", "base_vae")
        assert (message.values["count"], message.values["key"]) == (1, name)


@pytest.mark.parametrize("family", tiny_flow.MAKERS)
def test_a_single_file_of_a_transformer_that_lacks_a_weight_is_refused(family, folders, tmp_path):
    folder, _ = folders(family)
    lacking, name = without_one(folder, tmp_path / "lacking", "transformer")
    [file] = (lacking / "transformer").glob("*.safetensors")
    with pytest.raises(LoomError) as told:
        open_backend(str(file), device="cpu", base_config=str(folder))
    message = told.value.message
    assert (message.code, message.values["count"], message.values["key"]) == ("base.weights_missing", 1, name)


@pytest.fixture(scope="module")
def checkpoints(folders, tmp_path_factory):
    """`checkpoints(family, *without)` -> (file, folder of its configs): a single file without the weights whose names begin so."""
    place = tmp_path_factory.mktemp("files")

    def made(family, *without):
        folder, _ = folders(family)
        file = place / f"{family}-{len(list(place.iterdir()))}.safetensors"
        weights = tiny_unet.checkpoint(folder, family)
        save_file({name: w for name, w in weights.items() if not name.startswith(tuple(without) or "no name")}, file)
        configs = place / f"{family} configs"
        if not configs.is_dir():
            shutil.copytree(folder, configs, ignore=shutil.ignore_patterns("*.safetensors"))
        return file, configs

    return made


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_whole_checkpoint_is_read_as_the_folder_it_was_made_of(family, folders, checkpoints):
    file, configs = checkpoints(family)
    backend, plain = (
        open_backend(str(file), device="cpu", base_config=str(configs)),
        open_backend(str(folders(family)[0]), device="cpu"),
    )
    for mine, theirs in zip(
        (backend.unet, backend.vae, *backend.text_encoders()),
        (plain.unet, plain.vae, *plain.text_encoders()),
        strict=True,
    ):
        assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in mine.state_dict().items())


CHECKPOINT_PARTS = {
    "sd1": ("model.diffusion_model.", "first_stage_model.", "cond_stage_model."),
    "sdxl": ("model.diffusion_model.", "first_stage_model.", "conditioner.embedders.0.", "conditioner.embedders.1."),
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "part"), [(family, part) for family, parts in CHECKPOINT_PARTS.items() for part in parts]
)
@pytest.mark.parametrize(
    "place",
    ["middle", "all", pytest.param("first", marks=pytest.mark.slow), pytest.param("last", marks=pytest.mark.slow)],
)
def test_a_checkpoint_that_lacks_a_weight_or_a_whole_part_is_refused(family, part, place, folders, checkpoints):
    names = sorted(name for name in tiny_unet.checkpoint(folders(family)[0], family) if name.startswith(part))
    lacking = {"first": names[0], "middle": names[len(names) // 2], "last": names[-1], "all": part}[place]
    file, configs = checkpoints(family, lacking)
    with pytest.raises(LoomError) as told:
        open_backend(str(file), device="cpu", base_config=str(configs))
    assert file.name in str(told.value)
    if (place, told.value.message.code) == ("first", "base.other_kind"):  # the weight by which diffusers knows a CLIP
        assert "CLIP" in told.value.message.values["reason"]
    else:
        assert told.value.message.code in ("base.weights_missing", "base.no_weight", "base.no_part"), told.value


@pytest.mark.parametrize("part", ["first_stage_model.", "conditioner."])
def test_what_a_checkpoint_has_nothing_of_comes_whole_from_the_folder_of_its_configs(
    part, folders, checkpoints, tmp_path
):
    file, _ = checkpoints("sdxl", part)
    folder, _ = folders("sdxl")
    backend, plain = (
        open_backend(str(file), device="cpu", base_config=str(folder)),
        open_backend(str(folder), device="cpu"),
    )
    assert torch.equal(backend.encode(["zog"]).hidden, plain.encode(["zog"]).hidden)
    assert backend.picture_fingerprint() == plain.picture_fingerprint()
    lacking, name = without_one(
        folder, tmp_path / "lacking", "vae" if part == "first_stage_model." else "text_encoder_2"
    )
    with pytest.raises(LoomError, match=f"^base_config: .* lacks 1 of its model's weights .such as {name}"):
        open_backend(str(file), device="cpu", base_config=str(lacking))


@pytest.mark.parametrize(("family", "part"), [("sd1", "unet"), ("sd1", "text_encoder"), ("sd3", "text_encoder_3")])
def test_weights_of_another_shape_than_the_config_says_are_told_with_both_shapes(family, part, folders, tmp_path):
    copy = shutil.copytree(folders(family)[0], tmp_path / "other")
    [file] = (copy / part).glob("*.safetensors")
    tensors = load_file(file)
    name = next(key for key in sorted(tensors) if tensors[key].ndim == 2)
    rows, columns = tensors[name].shape
    save_file({**tensors, name: torch.zeros(rows, columns + 1)}, file, {"format": "pt"})
    with pytest.raises(LoomError) as told:
        open_backend(str(copy), device="cpu")
    message = told.value.message
    assert (message.code, message.values["file"], message.values["key"]) == ("base.other_shape", f"other/{part}", name)
    assert (message.values["shape"], message.values["wanted"]) == (f"{rows}x{columns + 1}", f"{rows}x{columns}")
