"""What an inpainting model is asked to fill: from files, from alpha, drawn by the seed of the step; no loss mask, and nothing beside it changes."""

import numpy as np
import pytest
import torch
from lora_loom.lora_core.config import DataConfig, TrainConfig
from lora_loom.lora_core.data.batches import Batches
from lora_loom.lora_core.data.encoder import Encoder
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.data.input_masks import drawn
from lora_loom.lora_core.data.latents import LatentCache, View
from lora_loom.lora_core.data.shown import Showing
from lora_loom.lora_core.data.store import Memory
from lora_loom.lora_core.messages.errors import LoomError
from PIL import Image

SIDE = 64


def small(pixels):
    return torch.nn.functional.avg_pool2d(pixels.permute(0, 3, 1, 2), 8)


INPAINTS = Encoder(small, "vae", shown=small, showing=Showing(1, True, True, filled=True))


@pytest.fixture
def folder(tmp_path):
    for n in range(3):
        image = np.random.default_rng(n).integers(0, 255, (SIDE, SIDE, 4), np.uint8)
        image[..., 3] = 255
        image[: 16 + 8 * n, :, 3] = 0
        Image.fromarray(image).save(tmp_path / f"{n}.png")
        (tmp_path / f"{n}.txt").write_text("zog")
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[:, : 8 * (n + 1)] = 255
        Image.fromarray(mask).save(tmp_path / f"{n}.mask.png")
    return tmp_path


def config(folder, **data):
    return DataConfig(folder=str(folder), **{"resolution": SIDE, "bucket_step_px": 16, **data})


def batches(folder, seed=0, encoder=INPAINTS, **data):
    cache = LatentCache(scan(config(folder, **data)), encoder, lambda n, of: None, Memory())
    return Batches(cache, TrainConfig(base="toy", data=config(folder), batch_size=3, seed=seed), "cpu")


def test_drawn_masks_follow_their_seed_and_are_lines_boxes_and_now_and_then_everything():
    masks = [drawn(f"{n}".encode(), (SIDE, 96)) for n in range(200)]
    assert all(np.array_equal(mask, drawn(f"{n}".encode(), (SIDE, 96))) for n, mask in enumerate(masks))
    assert {mask.shape for mask in masks} == {(96, SIDE)}
    assert set(np.unique(np.stack(masks))) == {0, 255}
    shares = np.array([(mask > 0).mean() for mask in masks])
    assert shares.min() > 0.009
    assert 0.15 < (shares == 1).mean() < 0.35
    assert 0.15 < shares[shares < 1].mean() < 0.6
    assert len({mask.tobytes() for mask in masks}) > 140


@pytest.mark.parametrize("source", ["file", "alpha", "random"])
def test_the_picture_shown_is_the_target_without_what_the_mask_fills(folder, source):
    batch = batches(folder, input_mask=source, background="black").at(0, 0)
    for name, shown, latent in zip(batch.names, batch.shown, batch.latents, strict=True):
        mask = shown.mask
        assert mask.shape == (1, 1, SIDE, SIDE)
        n = int(name[0])
        if source == "file":
            assert mask[..., : 8 * (n + 1)].all()
            assert not mask[..., 8 * (n + 1) :].any()
        if source == "alpha":
            assert mask[:, :, : 16 + 8 * n].all()
            assert not mask[:, :, 16 + 8 * n :].any()
        whole = torch.nn.functional.avg_pool2d(mask, 8)[0, 0]
        assert torch.equal(shown.latents[0][0, :, whole == 0], latent[:, whole == 0])
        assert (shown.latents[0][0, :, whole == 1] == 0.5).all()
    assert batch.mask is None  # the loss looks everywhere


def test_masks_change_from_step_to_step_by_the_seed_alone(folder):
    one, again, other = (batches(folder, seed, input_mask="random") for seed in (0, 0, 1))

    def masks(of):
        return [[shown.identity for shown in of.at(step, 0).shown] for step in range(8)]

    assert masks(one) == masks(again)
    assert len({identity for step in masks(one) for identity in step}) > 8
    assert sorted(map(str, masks(one))) != sorted(map(str, masks(other)))
    assert again.at(5, 0).shown[0].identity == one.at(5, 0).shown[0].identity  # as a run that goes on begins


def test_a_mirrored_picture_has_a_mirrored_mask(folder):
    cache = batches(folder, input_mask="file", flip=True).cache
    plain, mirrored = (cache[View(0, 0, flipped)]["shown.mask.0"] for flipped in (False, True))
    assert torch.equal(plain.flip(-1), mirrored)


def test_loss_mask_and_input_mask_are_two_things(folder):
    both = batches(folder, input_mask="random", masks="file").at(0, 0)
    assert both.mask is not None
    assert not torch.equal(both.mask[0, 0] > 0.5, torch.nn.functional.avg_pool2d(both.shown[0].mask, 8)[0, 0] > 0.5)
    prints = [batches(folder, input_mask=source).fingerprint() for source in ("random", "file", "alpha")]
    assert len(set(prints)) == 3


def test_what_does_not_go_together_is_one_sentence(folder):
    with pytest.raises(LoomError, match="^data.input_mask: this is an inpainting model"):
        batches(folder)
    with pytest.raises(LoomError, match="^data.input_mask: this model fills no masks"):
        batches(folder, encoder=Encoder(small, "vae"), input_mask="random")
    (folder / "1.mask.png").unlink()
    cache = batches(folder, input_mask="file").cache
    assert [(name, reason.code) for name, reason in cache.skipped] == [("1.png", "picture.no_input_mask")]
