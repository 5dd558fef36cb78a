"""What is cached is what would be computed: nothing stale, nothing partial, and memory that does not grow with the number of pictures."""

import os

import numpy as np
import pytest
import torch
from lora_loom.lora_core.config import DataConfig, TrainConfig
from lora_loom.lora_core.data.batches import Batches
from lora_loom.lora_core.data.dataset import joined
from lora_loom.lora_core.data.encoder import Encoder
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.data.latents import LatentCache, View, ahead
from lora_loom.lora_core.data.store import Disk
from lora_loom.lora_core.messages.errors import LoomError
from PIL import Image

BIG = 10**12


class Vae:
    """Counts what it encodes; its latents show the picture."""

    def __init__(self, scale=1.0):
        self.scale, self.calls = scale, 0

    def __call__(self, pixels):
        self.calls += 1
        return torch.nn.functional.avg_pool2d(pixels.permute(0, 3, 1, 2), 8) * self.scale

    def encoder(self, **more):
        return Encoder(self, f"vae {self.scale}", **more)


def paint(path, shade, size=(64, 64)):
    image = np.zeros((size[1], size[0], 3), np.uint8)
    image[..., 0], image[..., 1] = shade, np.linspace(0, 255, size[0]).astype(np.uint8)[None]
    Image.fromarray(image).save(path, compress_level=0)  # stored, not packed: files of one size whatever they show


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "pictures"
    place.mkdir()
    for n in range(4):
        paint(place / f"{n}.png", 50 * n)
    return place


def cached(folder, store, vae, **data):
    config = DataConfig(folder=str(folder), **{"resolution": 64, "bucket_step_px": 16, **data})
    return LatentCache(scan(config), vae.encoder(), lambda n, of: None, store)


def test_the_second_start_encodes_nothing_and_gives_the_same(folder, tmp_path):
    first, second = Vae(), Vae()
    one = cached(folder, Disk(tmp_path / "cache", BIG), first, flip=True)
    two = cached(folder, Disk(tmp_path / "cache", BIG), second, flip=True)
    assert (first.calls, second.calls) == (8, 0)
    for n in range(4):
        for flipped in (False, True):
            assert torch.equal(one[View(n, 0, flipped)]["latent"], two[View(n, 0, flipped)]["latent"])
    assert [e.pixels for e in one.entries] == [e.pixels for e in two.entries]


def test_an_edit_that_keeps_size_and_time_is_noticed(folder, tmp_path):
    cached(folder, Disk(tmp_path / "cache", BIG), Vae())
    facts = (folder / "2.png").stat()
    paint(folder / "2.png", 77)
    os.utime(folder / "2.png", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert (folder / "2.png").stat().st_size == facts.st_size
    vae = Vae()
    again = cached(folder, Disk(tmp_path / "cache", BIG), vae)
    assert vae.calls == 1
    assert again[View(2)]["latent"][0, 0, 0, 0].item() == pytest.approx(77 / 255)


@pytest.mark.parametrize(
    "change",
    [
        {"resolution": 32},
        {"aspect_buckets": False, "resolution": 48},
        {"background": "black"},
        {"latents": "sampled"},
        {"masks": "alpha"},
    ],
    ids=str,
)
def test_another_transform_is_another_entry(change, folder, tmp_path):
    cached(folder, Disk(tmp_path / "cache", BIG), Vae())
    vae = Vae()
    spread = lambda pixels: (vae(pixels), torch.ones(1))  # noqa: E731
    config = DataConfig(folder=str(folder), **{"resolution": 64, "bucket_step_px": 16, **change})
    LatentCache(scan(config), vae.encoder(spread=spread), lambda n, of: None, Disk(tmp_path / "cache", BIG))
    assert vae.calls == 4


def test_another_vae_is_another_entry(folder, tmp_path):
    cached(folder, Disk(tmp_path / "cache", BIG), Vae())
    other = Vae(2.0)
    found = cached(folder, Disk(tmp_path / "cache", BIG), other)
    assert other.calls == 4
    assert found[View(1)]["latent"][0, 0, 0, 0].item() == pytest.approx(2 * 50 / 255)


def test_a_picture_renamed_or_copied_is_not_encoded_again(folder, tmp_path):
    cached(folder, Disk(tmp_path / "cache", BIG), Vae())
    (folder / "0.png").rename(folder / "new.png")
    (folder / "copy.png").write_bytes((folder / "1.png").read_bytes())
    vae = Vae()
    assert len(cached(folder, Disk(tmp_path / "cache", BIG), vae).pictures) == 5
    assert vae.calls == 0


def test_a_picture_that_changes_between_scan_and_encoding_is_left_out_by_name(folder):
    config = DataConfig(folder=str(folder), resolution=64, bucket_step_px=16)
    found = scan(config)
    paint(folder / "1.png", 9, (80, 48))
    (folder / "2.png").unlink()
    cache = LatentCache(found, Vae().encoder(), lambda n, of: None)
    assert [p.name for p in cache.pictures] == ["0.png", "3.png"]
    assert [(name, why.code) for name, why in cache.skipped] == [
        ("1.png", "picture.changed"),
        ("2.png", "picture.unopened"),
    ]


def test_a_cache_emptied_during_a_run_is_one_sentence(folder, tmp_path):
    store = Disk(tmp_path / "cache", BIG)
    cache = cached(folder, store, Vae())
    store._open.clear()
    for file in (tmp_path / "cache").rglob("*.safetensors"):
        file.unlink()
    with pytest.raises(LoomError, match=r"0.png: its encoded data has disappeared from the cache; continue the run"):
        cache[View(0)]


def test_several_resolutions_give_each_picture_a_place_in_each(tmp_path):
    paint(tmp_path / "a.png", 1, (128, 128))
    paint(tmp_path / "b.png", 2, (64, 64))
    data = DataConfig(folder=str(tmp_path), resolution=128, also_resolutions="64, 32", bucket_step_px=16)
    cache = LatentCache(scan(data), Vae().encoder(), lambda n, of: None)
    assert [(e.picture.name, e.fits[0].bucket[0]) for e in cache.entries] == [
        ("a.png", 128),
        ("a.png", 64),
        ("a.png", 32),
        ("b.png", 64),
        ("b.png", 32),
    ]
    assert [p.name for p in cache.pictures] == ["a.png", "b.png"]
    batches = Batches(cache, TrainConfig(batch_size=2, data=data), "cpu")
    for step in range(2 * batches.per_epoch):
        assert len({tuple(x.shape) for x in batches.at(step, 0).latents}) == 1
    with pytest.raises(LoomError, match="data.also_resolutions: '6x' is not a resolution"):
        scan(DataConfig(folder=str(tmp_path), also_resolutions="6x"))


def test_random_crops_come_from_all_over_and_the_network_is_told_where(tmp_path):
    paint(tmp_path / "wide.png", 3, (256, 64))
    data = DataConfig(
        folder=str(tmp_path), resolution=64, bucket_step_px=64, aspect_buckets=False, crop="random", crops=5, flip=True
    )
    cache = LatentCache(scan(data), Vae().encoder(), lambda n, of: None)
    lefts = sorted(f.crop[0] for f in cache.entries[0].fits)
    assert len(lefts) == 5
    assert all(
        n * 192 / 5 - 1 <= left <= (n + 1) * 192 / 5 + 1 for n, left in enumerate(lefts)
    )  # one in each fifth of the way
    batches = Batches(cache, TrainConfig(data=data), "cpu")
    seen = set()
    for step in range(80):
        batch = batches.at(step, 0)
        green = batch.latents[0, 1, 0]
        (left, _), flipped = batch.fits[0].crop, bool(green[0] > green[-1])
        true_left = 192 - left if flipped else left
        assert green.min().item() == pytest.approx(
            (true_left + 3.5) / 255, abs=2 / 255
        )  # the ramp of the picture says where it was cut
        seen.add((true_left, flipped))
    assert len(seen) == 10


def test_a_salient_crop_keeps_what_there_is_to_see(tmp_path):
    plain = np.full((64, 256, 3), 128, np.uint8)
    plain[20:44, 200:224] = (255, 0, 0)
    Image.fromarray(plain).save(tmp_path / "a.png")
    data = DataConfig(folder=str(tmp_path), resolution=64, bucket_step_px=64, aspect_buckets=False)
    lefts = {}
    for crop in ("centre", "salient"):
        cache = LatentCache(scan(DataConfig(**{**vars(data), "crop": crop})), Vae().encoder(), lambda n, of: None)
        lefts[crop] = cache.entries[0].fits[0].crop[0]
    assert lefts["centre"] == 96
    assert lefts["salient"] <= 200
    assert lefts["salient"] + 64 >= 224


def test_a_sampled_latent_has_the_mean_and_spread_the_vae_gave(folder):
    data = DataConfig(folder=str(folder), resolution=64, bucket_step_px=16, latents="sampled", limit=1)
    vae = Vae()
    encoder = vae.encoder(spread=lambda pixels: (vae(pixels), torch.full((1, 3, 8, 8), 0.1)))
    cache = LatentCache(scan(data), encoder, lambda n, of: None)
    batches = Batches(cache, TrainConfig(data=data), "cpu")
    drawn = torch.stack([batches.at(step, 0).latents for step in range(400)])
    off = (drawn - cache[View(0)]["latent"]).flatten(1)
    assert off.std().item() == pytest.approx(0.1, rel=0.02)  # 76,800 normal draws: five standard errors are 1.3 %
    assert abs(off.mean().item()) < 5 * 0.1 / 76_800**0.5
    assert torch.equal(batches.at(3, 0).latents, batches.at(3, 0).latents)
    with pytest.raises(LoomError, match="data.latents: this VAE gives one answer"):
        LatentCache(scan(data), vae.encoder(), lambda n, of: None)


def test_several_sets_keep_their_own_settings(folder, tmp_path):
    other = tmp_path / "other" / "pictures"
    other.mkdir(parents=True)
    paint(other / "0.png", 200, (96, 64))
    (other / "0.txt").write_text("a, b, c")
    sets = [DataConfig(folder=str(folder), trigger="zog", resolution=64, bucket_step_px=16),
            DataConfig(folder=str(other), repeats=3, loss_weight=0.5, caption_dropout=1.0, resolution=64, bucket_step_px=16)]  # fmt: skip
    found = joined([scan(s) for s in sets])
    assert [p.name for p in found.pictures][-1] == "pictures (2)/0.png"
    assert found.trigger == "zog"
    batches = Batches(LatentCache(found, Vae().encoder(), lambda n, of: None), TrainConfig(), "cpu")
    assert batches.per_epoch == 4 + 3
    for step in range(7):
        batch = batches.at(step, 0)
        second = batch.names[0].startswith("pictures (2)")
        assert (batch.weight.item(), batch.captions[0]) == ((0.5, "") if second else (1.0, "zog"))


def test_batches_are_the_same_when_a_thread_makes_them_ahead(folder):
    data = DataConfig(folder=str(folder), resolution=64, bucket_step_px=16, flip=True)
    config = TrainConfig(batch_size=2, grad_accum=3, data=data)
    cache = LatentCache(scan(data), Vae().encoder(), lambda n, of: None)
    plain, threaded = Batches(cache, config, "cpu"), Batches(cache, config, "cpu")
    from lora_loom.lora_core.data.batches import _Ahead

    threaded._ahead = _Ahead(threaded._on_cpu)
    order = [(s, m) for s in range(10) for m in range(3)] + [(4, 1), (0, 0), (9, 2)]  # then jumps, as after a resume
    for key in order:
        assert torch.equal(plain.at(*key).latents, threaded.at(*key).latents)
        assert plain.at(*key).captions == threaded.at(*key).captions


def test_work_ahead_is_bounded_in_order_and_ends_with_its_reader():
    started = []

    def work(n):
        started.append(n)
        return n * n

    reader = ahead(work, range(10_000), threads=2)
    assert [next(reader) for _ in range(3)] == [(0, 0), (1, 1), (2, 4)]
    reader.close()
    assert len(started) < 20


def test_random_crops_that_miss_the_mask_are_left_out_and_the_others_used(tmp_path):
    paint(tmp_path / "wide.png", 3, (256, 64))
    mask = np.zeros((64, 256), np.uint8)
    mask[:, :100] = 255
    Image.fromarray(mask).save(tmp_path / "wide.mask.png")
    data = DataConfig(
        folder=str(tmp_path),
        resolution=64,
        bucket_step_px=64,
        aspect_buckets=False,
        crop="random",
        crops=6,
        masks="file",
    )
    cache = LatentCache(scan(data), Vae().encoder(), lambda n, of: None)
    lefts = [f.crop[0] for f in cache.entries[0].fits]
    assert 1 <= len(lefts) < 6
    assert all(left < 100 for left in lefts)
    Image.fromarray(mask * 0).save(tmp_path / "wide.mask.png")
    with pytest.raises(LoomError, match="its mask is black everywhere"):
        LatentCache(scan(data), Vae().encoder(), lambda n, of: None)
