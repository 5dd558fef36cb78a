import numpy as np
import pytest
import torch
from lora_loom.lora_core.config import DataConfig
from lora_loom.lora_core.data.batches import Batch, Batches
from lora_loom.lora_core.data.encoder import Encoder
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.data.latents import LatentCache, View
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.messages.message import Message
from lora_loom.lora_core.objectives import DiscreteLevels, Objective
from lora_loom.lora_core.rng import step_rng
from lora_loom.lora_core.training.step import diffusion_loss
from PIL import Image


def write(folder, name, alpha=None, mask=None, size=(32, 32)):
    image = Image.new("RGB", size, (200, 50, 50))
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha))
    image.save(folder / f"{name}.png")
    (folder / f"{name}.txt").write_text("zog")
    if mask is not None:
        Image.fromarray(mask).save(folder / f"{name}.mask.png")


def left_white(size=(32, 32)):
    mask = np.zeros(size[::-1], np.uint8)
    mask[:, : size[0] // 2] = 255
    return mask


def encode(pixels):
    """A stand-in for a VAE with a factor of 8."""
    return torch.nn.functional.avg_pool2d(pixels.permute(0, 3, 1, 2), 8)


def cache_of(folder, toy_config, **data):
    config = toy_config(data={"folder": str(folder), "trigger": "", "bucket_step_px": 8, **data})
    cache = LatentCache(scan(config.data), Encoder(encode), lambda n, of: None)
    return cache, Batches(cache, config, "cpu")


@pytest.mark.parametrize("source", ["alpha", "file"])
def test_a_mask_says_where_the_loss_looks_and_is_mirrored_with_its_picture(source, toy_config, tmp_path):
    write(tmp_path, "a", **({"alpha": left_white()} if source == "alpha" else {"mask": left_white()}))
    cache, batches = cache_of(tmp_path, toy_config, masks=source, mask_floor=0.25, flip=True)
    expected = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(1, 1, 4, 4)
    torch.testing.assert_close(cache[View(0)]["mask"], expected)
    torch.testing.assert_close(cache[View(0, 0, True)]["mask"], expected.flip(-1))
    drawn = [batches.at(step, 0) for step in range(20)]  # mirrored in about half: all of one kind has probability 2^-19
    assert {tuple(b.mask[0, 0, 0].tolist()) for b in drawn} == {(1, 1, 0.25, 0.25), (0.25, 0.25, 1, 1)}
    assert source == "file" or all(
        (b.mask[0, 0, 0, 0] == 1) == torch.equal(b.latents[0], cache[View(0)]["latent"][0]) for b in drawn
    )
    assert (cache.masked, cache.unmasked) == (1, 0)


def test_masks_in_a_folder_of_their_own_are_found_and_are_no_pictures(toy_config, tmp_path):
    write(tmp_path, "a")
    (tmp_path / "mask").mkdir()
    Image.fromarray(left_white((64, 64))).save(tmp_path / "mask" / "a.png")  # of another size: brought to the picture's
    found = scan(DataConfig(folder=str(tmp_path), masks="file", bucket_step_px=8))
    assert [p.name for p in found.pictures] == ["a.png"]
    cache, _ = cache_of(tmp_path, toy_config, masks="file", mask_floor=0.0)
    assert cache[View(0)]["mask"][0, 0, 0].tolist() == pytest.approx(
        [1, 1, 0, 0], abs=0.1
    )  # one edge pixel is interpolated


def test_mask_files_are_never_trained_on_as_pictures(tmp_path):
    write(tmp_path, "a", mask=left_white())
    assert [p.name for p in scan(DataConfig(folder=str(tmp_path), bucket_step_px=8)).pictures] == ["a.png"]


def test_pictures_without_a_mask_are_named_and_trained_everywhere(toy_config, tmp_path):
    write(tmp_path, "a", mask=left_white())
    write(tmp_path, "b")
    found = scan(DataConfig(folder=str(tmp_path), masks="file", bucket_step_px=8))
    assert "1 without a mask, e.g. b.png: trained everywhere" in map(str, found.warnings)
    _, batches = cache_of(tmp_path, toy_config, masks="file", mask_floor=0.0)
    batch = batches.at(0, 0)
    by_name = dict(zip(batch.names, batch.mask, strict=True))
    assert by_name["b.png"].eq(1).all()
    assert by_name["a.png"].mean() == 0.5


def test_without_masks_batches_have_none(toy_config, tmp_path):
    write(tmp_path, "a", alpha=left_white(), mask=left_white())
    assert cache_of(tmp_path, toy_config)[1].at(0, 0).mask is None


def test_a_black_mask_leaves_its_picture_out_with_the_reason(toy_config, tmp_path):
    write(tmp_path, "a", mask=left_white())
    write(tmp_path, "b", mask=np.zeros((32, 32), np.uint8))
    cache, _ = cache_of(tmp_path, toy_config, masks="file")
    assert [p.name for p in cache.pictures] == ["a.png"]
    assert cache.skipped == [("b.png", Message("mask.black"))]


def test_a_damaged_mask_is_named(toy_config, tmp_path):
    write(tmp_path, "a", mask=left_white())
    write(tmp_path, "b")
    (tmp_path / "b.mask.png").write_bytes(b"no picture")
    ((name, why),) = cache_of(tmp_path, toy_config, masks="file")[0].skipped
    assert (name, str(why)) == ("b.png", "its mask b.mask.png cannot be read as a picture (not a known picture format)")


def test_masks_that_change_nothing_are_refused_or_reported(toy_config, run_toy, tmp_path):
    from lora_loom.lora_core.events import Listener

    class Heard(Listener):
        def __init__(self):
            self.messages = []

        def on_warning(self, message):
            self.messages.append(str(message))

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    write(pictures, "a", mask=np.full((32, 32), 255, np.uint8))
    config = toy_config(data={"folder": str(pictures), "masks": "file"}, steps=2)
    with pytest.raises(
        LoomError,
        match=r"data.masks: file was chosen, but no picture has a mask that leaves anything out \(1 is white everywhere\)",
    ):
        run_toy(config, tmp_path / "run")
    write(pictures, "b", mask=left_white())
    heard = Heard()
    run_toy(config, tmp_path / "run", heard)
    assert "1 mask is white everywhere and changes nothing" in heard.messages


def test_another_mask_makes_it_another_dataset(toy_config, tmp_path):
    write(tmp_path, "a", mask=left_white())
    first = cache_of(tmp_path, toy_config, masks="file")[1].fingerprint()
    write(tmp_path, "a", mask=left_white()[:, ::-1].copy())
    assert cache_of(tmp_path, toy_config, masks="file")[1].fingerprint() != first


def test_what_is_masked_has_no_say_in_the_loss():
    """Two latents that differ only behind the mask, under a network that looks at each place alone: the same loss, and another one without masks."""
    objective = Objective("epsilon", DiscreteLevels(torch.linspace(0.1, 10, 1000, dtype=torch.float64)))
    mask = torch.zeros(2, 1, 6, 6)
    mask[:, :, :2] = 1.0
    first = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    other = torch.where(mask.bool(), first, -first)

    def loss(latents, mask):
        batch = Batch(latents, ["", ""], [None, None], ["a", "b"], torch.ones(2), mask)
        return diffusion_loss(lambda x, s, b: 0.5 * x, batch, objective, step_rng(0, 0, 0, 0))

    assert torch.equal(loss(first, mask), loss(other, mask))
    assert not torch.allclose(loss(first, None), loss(other, None))
