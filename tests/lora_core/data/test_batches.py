import collections

import pytest
import torch
from lora_loom.lora_core.config import parse
from lora_loom.lora_core.data.batches import Batches
from lora_loom.lora_core.data.encoder import Encoder
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.data.latents import LatentCache
from lora_loom.lora_core.messages.errors import LoomError
from PIL import Image


def encode(pixels):
    """A latent that still shows which picture it came from: 3 channels, an eighth of the size."""
    return torch.nn.functional.avg_pool2d(pixels.permute(0, 3, 1, 2), 8)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Eleven pictures in three shapes, some in a Kohya folder with three repeats."""
    root = tmp_path_factory.mktemp("tree")
    (root / "3_more").mkdir()
    for n in range(11):
        size = ((64, 64), (96, 48), (48, 96))[n % 3]
        image = Image.new("RGB", size, (n * 20, 0, 0))
        image.paste((n * 20, 255, 0), (0, 0, 8, 8))  # the left differs from the right
        path = root / ("3_more" if n % 2 else "") / f"{n:02}.png"
        image.save(path)
        path.with_suffix(".txt").write_text(f"picture {n}, a, b, c, d")
    return root


def make(tree, **changes):
    data = {"folder": str(tree), "resolution": 64, "bucket_step_px": 16, **changes.pop("data", {})}
    config = parse({"batch_size": 2, "seed": 1, "data": data, **changes})
    return Batches(LatentCache(scan(config.data), Encoder(encode), lambda n, of: None), config, "cpu")


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 40])
def test_a_batch_never_mixes_buckets_and_always_has_the_asked_size(tree, batch_size):
    batches = make(tree, batch_size=batch_size)
    seen = set()
    for step in range(2 * batches.per_epoch):
        batch = batches.at(step, 0)
        assert len(batch.names) == len(batch.captions) == len(batch.weight) == len(batch.latents) == batch_size
        assert len({fit.bucket for fit in batch.fits}) == 1
        assert tuple(batch.latents.shape[2:]) == (batch.fits[0].bucket[1] // 8, batch.fits[0].bucket[0] // 8)
        seen.add(batch.fits[0].bucket)
    assert len(seen) == 3


def test_pictures_of_several_sizes_share_the_batches_of_their_bucket(tmp_path):
    for name, side in (("small", 64), ("large", 128)):
        Image.new("RGB", (side, side), (90, 20, 200)).save(tmp_path / f"{name}.png")
    batches = make(tmp_path, data={"trigger": "zog"})
    assert batches.per_epoch == 1
    assert sorted(batches.at(0, 0).names) == ["large.png", "small.png"]


def test_an_epoch_shows_every_picture_as_often_as_its_repeats_say(tree):
    batches = make(tree, batch_size=1)
    for epoch in range(3):
        shown = collections.Counter(
            batches.at(epoch * batches.per_epoch + k, 0).names[0] for k in range(batches.per_epoch)
        )
        assert shown == {p.name: p.repeats for p in batches.pictures}
    assert batches.per_epoch == 6 * 1 + 5 * 3


@pytest.mark.parametrize("batch_size", [2, 4])
def test_filling_up_the_last_batch_of_a_bucket_never_costs_a_picture_its_turn(tree, batch_size):
    batches = make(tree, batch_size=batch_size)
    shown = collections.Counter(name for k in range(batches.per_epoch) for name in batches.at(k, 0).names)
    assert all(shown[p.name] >= p.repeats for p in batches.pictures)
    assert (
        sum(shown.values()) - sum(p.repeats for p in batches.pictures) < 3 * batch_size
    )  # three buckets, each filled up once


def test_a_batch_is_a_pure_function_of_seed_step_and_pass(tree):
    options = {"shuffle_tags": True, "flip": True, "caption_dropout": 0.3}
    first, second = make(tree, grad_accum=2, data=options), make(tree, grad_accum=2, data=options)
    forward = {(s, m): first.at(s, m) for s in range(30) for m in range(2)}
    for key in reversed(forward):  # another order of calls, another object
        again = second.at(*key)
        assert (again.names, again.captions) == (forward[key].names, forward[key].captions)
        assert torch.equal(again.latents, forward[key].latents)


def test_another_seed_and_another_epoch_give_another_order(tree):
    def order(batches, epoch):
        return [tuple(batches.at(epoch * batches.per_epoch + k, 0).names) for k in range(batches.per_epoch)]

    batches = make(tree)
    assert order(batches, 0) != order(batches, 1)
    assert order(batches, 0) != order(make(tree, seed=2), 0)


def test_accumulated_passes_go_through_the_epoch_one_after_the_other(tree):
    single, double = make(tree, batch_size=1), make(tree, batch_size=1, grad_accum=2)
    assert [double.at(k // 2, k % 2).names for k in range(20)] == [single.at(k, 0).names for k in range(20)]


def test_flip_mirrors_about_half_of_the_pictures_and_off_mirrors_none(tree):
    def mirrored(batches):
        out = []
        for step in range(10 * batches.per_epoch):
            for latent in batches.at(step, 0).latents:
                out.append(bool(latent[1, 0, -1] > latent[1, 0, 0]))
        return sum(out) / len(out), len(out)

    share, n = mirrored(make(tree, data={"flip": True}))
    assert abs(share - 0.5) < 5 * 0.5 / n**0.5  # five deviations of n coin flips
    assert mirrored(make(tree))[0] == 0


def test_captions_and_latents_belong_to_the_named_picture(tree):
    batches = make(tree, data={"shuffle_tags": True})
    for step in range(batches.per_epoch):
        batch = batches.at(step, 0)
        for latent, caption, name in zip(batch.latents, batch.captions, batch.names):
            number = int(name[-6:-4])
            assert caption.startswith(f"picture {number}, ")
            # The red channel is n * 20 / 255 everywhere; float32 pooling of equal values.
            assert torch.allclose(latent[0], torch.tensor(number * 20 / 255), atol=1e-5)


def test_shapes_are_listed_largest_first(tree):
    assert make(tree).shapes()[0] == (3, 8, 8)
    assert set(make(tree).shapes()[1:]) == {(3, 4, 10), (3, 10, 4)}


def test_a_vae_that_returns_nan_is_refused_with_the_pictures_name(tree):
    config = parse({"data": {"folder": str(tree), "resolution": 64, "bucket_step_px": 16}})
    with pytest.raises(LoomError, match=r"00\.png: the VAE returns numbers that are not finite"):
        LatentCache(scan(config.data), Encoder(lambda pixels: encode(pixels) * float("nan")), lambda n, of: None)


def test_pictures_that_all_break_after_the_scan_are_one_sentence(tree, tmp_path):
    Image.effect_noise((64, 64), 80).save(tmp_path / "a.jpg")
    config = parse({"data": {"folder": str(tmp_path), "resolution": 64, "bucket_step_px": 16}})
    dataset = scan(config.data)
    (tmp_path / "a.jpg").write_bytes(b"gone bad")
    with pytest.raises(LoomError, match=r"data\.folder: no picture could be opened, the first is a\.jpg: "):
        LatentCache(dataset, Encoder(encode), lambda n, of: None)


def test_progress_counts_every_picture(tree):
    config, calls = parse({"data": {"folder": str(tree), "resolution": 64, "bucket_step_px": 16}}), []
    LatentCache(scan(config.data), Encoder(encode), lambda n, of: calls.append((n, of)))
    assert calls == [(n, 11) for n in range(12)]
