"""Films as training data: read frame by frame, cut into clips, encoded one at a time, never mixed with another length in a batch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from film_files import STEP, av, frame, rising, write_film, write_frames, write_gif
from lora_loom.lora_core.config import DataConfig, parse
from lora_loom.lora_core.data.batches import Batches
from lora_loom.lora_core.data.clips import clips_of, lengths, mask_on_latent, require_lengths
from lora_loom.lora_core.data.encoder import Encoder
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.data.latents import LatentCache
from lora_loom.lora_core.data.shown import OfFrames, Showing
from lora_loom.lora_core.data.store import Disk
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.pictures.films import Film, first_frame, frames_of, read_film, scenes
from lora_loom.lora_core.pictures.reading import PictureError
from lora_loom.lora_core.pictures.thumbnails import thumbnail
from lora_loom.lora_core.training.length import batches_per_epoch
from PIL import Image

SMALL = {"resolution": 64, "bucket_step_px": 16}


def settings(folder: Path, frames: str = "5, 9", **more) -> DataConfig:
    return DataConfig(folder=str(folder), frames=frames, trigger="zog", **{**SMALL, **more})


def values_of(path: Path, numbers) -> list[int]:
    """Brightness of these frames, away from the bar."""
    film = read_film(path)
    return [round(float(np.asarray(image)[:, 30:].mean())) for image in frames_of(path, film, numbers)]


class Vae:
    """As the VAEs of films count: the first frame alone, then four at a time. Keeps what it was given."""

    def __init__(self):
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(pixels.shape))
        small = pixels[:, ::8, ::8].permute(3, 0, 1, 2)[None]
        return torch.cat(
            [small[:, :, :1], *[small[:, :, n : n + 4].mean(2, keepdim=True) for n in range(1, len(pixels), 4)]], 2
        )

    def encoder(self) -> Encoder:
        return Encoder(self, "vae")


def cached(dataset, store=None) -> tuple[LatentCache, Vae]:
    vae = Vae()
    return LatentCache(dataset, vae.encoder(), lambda n, of: None, store), vae


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv", ".mov"])
def test_any_frame_of_a_film_is_the_one_asked_for(tmp_path, suffix):
    path = write_film(tmp_path / f"film{suffix}", rising(40))
    film = read_film(path)
    assert (film.width_px, film.height_px, len(film.times_s), film.sound) == (96, 64, 40, False)
    assert film.rate == pytest.approx(24, rel=0.01)
    for numbers in ([0, 1, 2], [17, 18, 39], [30, 30, 31], [39]):
        assert values_of(path, numbers) == pytest.approx([n * STEP % 240 for n in numbers], abs=2)


@pytest.mark.parametrize("write", [write_gif, write_frames])
def test_moving_pictures_and_folders_of_frames_need_no_pyav(tmp_path, write):
    path = write(tmp_path / ("film.gif" if write is write_gif else "film.frames"), rising(12))
    film = read_film(path)
    assert (film.width_px, film.height_px, len(film.times_s)) == (96, 64, 12)
    assert values_of(path, [0, 5, 11]) == pytest.approx([0, 5 * STEP, 11 * STEP], abs=2)
    assert first_frame(path).size == (96, 64)
    assert max(thumbnail(path, 32).size) == 32


def test_a_frame_rate_chooses_frames_by_when_they_are_shown():
    film = Film(8, 8, tuple(n / 30 for n in range(60)))
    assert film.at_rate(0) == tuple(range(60))
    assert film.at_rate(15)[:4] == (0, 2, 4, 6)
    assert len(film.at_rate(16)) == 32
    uneven = Film(8, 8, (0.0, 0.1, 0.5, 0.6))
    assert uneven.at_rate(10) == (0, 1, 1, 1, 1, 2, 3)


@pytest.mark.parametrize(
    ("options", "starts"),
    [
        ({"clips": "head"}, [0]),
        ({"clips": "spread", "clip_count": 3}, [0, 10, 21]),
        ({"clips": "sliding"}, [0, 4, 8, 12, 16, 20]),
        ({"clips": "sliding", "clip_stride": 10}, [0, 10, 20]),
        ({"clips": "all"}, [0, 9, 18]),
    ],
)
def test_clips_are_taken_where_the_choice_says(options, starts):
    film = Film(8, 8, tuple(n / 24 for n in range(30)))
    clips = clips_of(film, (), DataConfig(frames="9", **options))
    assert [clip[0] for clip in clips] == starts
    assert all(clip == tuple(range(clip[0], clip[0] + 9)) for clip in clips)


def test_a_film_is_trained_at_its_longest_length_or_at_each():
    film = Film(8, 8, tuple(n / 24 for n in range(30)))
    assert [len(c) for c in clips_of(film, (), DataConfig(frames="1, 9, 17, 33"))] == [17]
    assert [len(c) for c in clips_of(film, (), DataConfig(frames="[33, 17, 9, 1]", clip_lengths="every"))] == [1, 9, 17]


def test_no_clip_lies_across_a_change_of_scene():
    film = Film(8, 8, tuple(n / 24 for n in range(30)))
    clips = clips_of(film, (12,), DataConfig(frames="9", clips="sliding", clip_stride=1))
    assert [clip[0] for clip in clips] == [0, 1, 2, 3, *range(12, 22)]


def test_a_long_film_is_cut_where_the_scene_changes_and_not_where_it_moves(tmp_path):
    """A fade of 8 s, a cut, a slow fade back."""
    values = [*range(0, 80), *[200 - n // 2 for n in range(60)]]
    path = write_film(tmp_path / "long.mp4", values, rate=10)
    film = read_film(path)
    assert scenes(path, film, 0.15) == (80,)
    assert scenes(path, film, 0.0) == ()
    short = write_film(tmp_path / "short.mp4", values[60:100], rate=10)
    assert scenes(short, read_film(short), 0.15) == ()


@pytest.mark.parametrize("frames", ["five", "0", "2000", "5; 9", "-3"])
def test_what_is_no_list_of_lengths_is_refused_in_a_sentence(tmp_path, frames):
    with pytest.raises(LoomError, match="length of a clip"):
        lengths(DataConfig(frames=frames))


def test_lengths_that_the_vae_does_not_take_are_refused_with_those_it_takes(tmp_path):
    write_gif(tmp_path / "a.gif", rising(20))
    dataset = scan(settings(tmp_path, "18"))

    def nearest(frames: int) -> tuple[int, int]:
        return (frames - 1) // 4 * 4 + 1, -(-(frames - 1) // 4) * 4 + 1

    with pytest.raises(LoomError, match=r"no clips of 18 frames.*17, 21 .*1, 5, 9, 13"):
        require_lengths([dataset], nearest)
    with pytest.raises(LoomError, match="single pictures"):
        require_lengths([dataset], None)
    require_lengths([scan(settings(tmp_path, "17"))], nearest)


def test_what_is_wrong_with_a_film_is_named_and_it_is_left_out(tmp_path):
    av()
    write_film(tmp_path / "good.mp4", rising(20), sound=True)
    write_film(tmp_path / "short.mp4", rising(3))
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.webm").write_text("no film")
    whole = write_film(tmp_path / "cut.mkv", rising(60)).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 20])
    dataset = scan(settings(tmp_path, "9"))
    assert [p.name for p in dataset.pictures] == ["good.mp4"]
    reasons = {name: why.code for name, why in dataset.skipped}
    assert reasons["short.mp4"] == "film.short"
    assert {"empty.mp4", "text.webm", "cut.mkv"} <= reasons.keys()
    assert any(w.code == "data.sound" for w in dataset.warnings)


def test_a_film_that_breaks_off_after_the_scan_is_left_out_when_it_is_encoded(tmp_path):
    av()
    write_film(tmp_path / "good.mp4", rising(20))
    broken = write_film(tmp_path / "bad.mkv", [int(v) for v in np.random.default_rng(0).integers(0, 255, 60)])
    dataset = scan(settings(tmp_path, "9", clips="all"))
    data = bytearray(broken.read_bytes())
    del data[len(data) // 3 :]
    broken.write_bytes(bytes(data))
    cache, _ = cached(dataset)
    assert [name for name, _ in cache.skipped] == ["bad.mkv"]
    assert {entry.picture.name for entry in cache.entries} == {"good.mp4"}


def test_films_are_left_out_with_the_setting_to_use_where_pictures_alone_are_trained(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"whatever")
    write_gif(tmp_path / "b.gif", rising(20))
    dataset = scan(settings(tmp_path, ""))
    assert dict(dataset.skipped)["a.mp4"].code == "picture.film"
    assert "data.frames" in str(dict(dataset.skipped)["a.mp4"])
    assert [(p.name, p.film) for p in dataset.pictures] == [("b.gif", None)]


def test_pictures_and_clips_are_mixed_but_never_in_one_batch(tmp_path):
    write_gif(tmp_path / "a.gif", rising(12))
    write_gif(tmp_path / "b.webp", rising(6))
    for n in range(3):
        Image.fromarray(frame(50 * n, 96, 64)).save(tmp_path / f"still{n}.png")
    config = parse({"batch_size": 2, "data": {"folder": str(tmp_path)}})
    dataset = scan(settings(tmp_path, "5, 9"))
    cache, vae = cached(dataset)
    batches = Batches(cache, config, "cpu")
    shapes = {tuple(batches.at(step, 0).latents.shape) for step in range(12)}
    assert {shape[2] for shape in shapes} == {1, 2, 3}
    assert batches_per_epoch(dataset, 2) == batches.per_epoch
    assert sorted({shape[0] for shape in vae.seen}) == [1, 5, 9]


def test_a_clip_is_encoded_once_frame_by_frame_and_kept_by_content(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    write_gif(folder / "a.gif", rising(20))
    dataset = scan(settings(folder, "9", clips="all", flip=True))
    store = Disk(tmp_path / "store", 10**9)
    cache, vae = cached(dataset, store)
    assert len(cache.entries) == 2
    assert len(vae.seen) == 4  # plain and mirrored
    values = [cache[view]["latent"][0, 0] for view in _views(cache)]
    # Away from the bar, the third latent frame of a clip that begins at 9 is the mean of frames 14 to 17.
    assert values[2][2, 0, 4] * 255 == pytest.approx(15.5 * STEP, abs=2)
    assert torch.equal(values[0].flip(-1)[..., 1:-1].round(decimals=1), values[1][..., 1:-1].round(decimals=1))
    again, vae = cached(dataset, Disk(tmp_path / "store", 10**9))
    assert vae.seen == []
    assert [e.pixels for e in again.entries] == [e.pixels for e in cache.entries]
    (folder / "a.gif").rename(folder / "renamed.gif")
    _, vae = cached(scan(settings(folder, "9", clips="all", flip=True)), Disk(tmp_path / "store", 10**9))
    assert vae.seen == []
    write_gif(folder / "renamed.gif", rising(21)[1:])
    _, vae = cached(scan(settings(folder, "9", clips="all", flip=True)), Disk(tmp_path / "store", 10**9))
    assert len(vae.seen) == 4


def _views(cache):
    from lora_loom.lora_core.data.latents import View

    return [View(n, 0, flipped) for n in range(len(cache.entries)) for flipped in (False, True)]


def test_one_clip_is_in_memory_at_a_time(tmp_path, monkeypatch):
    """However many clips there are, the pixels of one are alive while another is decoded."""
    import weakref

    from lora_loom.lora_core.data import clip_latents

    for n in range(6):
        write_gif(tmp_path / f"{n}.gif", rising(20 + n))
    alive: list[weakref.ref] = []
    decode, most = clip_latents.pixels_of, []

    def noted(*args):
        most.append(sum(ref() is not None for ref in alive))
        pixels = decode(*args)
        alive.append(weakref.ref(pixels))
        return pixels

    monkeypatch.setattr(clip_latents, "pixels_of", noted)
    cached(scan(settings(tmp_path, "9", clips="all")))
    assert len(most) == 12
    assert max(most) == 0


def test_a_still_mask_counts_for_every_frame_and_a_moving_one_for_its_own(tmp_path):
    write_gif(tmp_path / "a.gif", rising(9))
    write_gif(tmp_path / "b.gif", rising(9))
    left = np.zeros((64, 96, 3), np.uint8)
    left[:, :48] = 255
    Image.fromarray(left).save(tmp_path / "a.mask.png")
    moves = [left if n < 5 else 255 - left for n in range(9)]
    for n, pixels in enumerate(moves):  # Pillow keeps no two equal frames
        pixels = moves[n] = pixels.copy()
        pixels[-1, n] = 128
    frames = list(map(Image.fromarray, moves))
    frames[0].save(tmp_path / "b.mask.gif", save_all=True, append_images=frames[1:], duration=50)
    dataset = scan(settings(tmp_path, "9", masks="file"))
    assert [p.name for p in dataset.pictures] == ["a.gif", "b.gif"]
    cache, _ = cached(dataset)
    still, moving = (cache[view]["mask"] for view in _views(cache)[::2])
    assert still.shape[2] == 1
    assert moving.shape[2] == 3
    assert still[0, 0, 0, 0, 0] == 1
    assert still[0, 0, 0, 0, -1] == 0
    assert [round(float(moving[0, 0, t, 0, 0])) for t in range(3)] == [1, 1, 0]
    assert [round(float(moving[0, 0, t, 0, -1])) for t in range(3)] == [0, 0, 1]
    batch = Batches(cache, parse({"batch_size": 2}), "cpu").at(0, 0)
    assert batch.mask is not None
    assert batch.mask.shape[:3] == (2, 1, 3)


def test_a_mask_in_time_is_averaged_over_what_each_latent_frame_stands_for():
    mask = np.zeros((9, 8, 8), np.float32)
    mask[0] = 1
    mask[3:5] = 1
    weights = mask_on_latent(mask, torch.zeros(1, 4, 3, 1, 1), 9)
    assert weights is not None
    assert weights.flatten().tolist() == [1.0, 0.5, 0.0]
    with pytest.raises(PictureError):
        mask_on_latent(np.zeros((9, 8, 8), np.float32), torch.zeros(1, 4, 3, 1, 1), 9)
    assert mask_on_latent(np.ones((9, 8, 8), np.float32), torch.zeros(1, 4, 3, 1, 1), 9) is None


def test_a_folder_of_frames_with_a_caption_of_its_own_is_one_clip(tmp_path):
    write_frames(tmp_path / "walk", rising(9))
    (tmp_path / "walk.txt").write_text("a dog walks")
    write_frames(tmp_path / "run.frames", rising(12))
    write_frames(tmp_path / "stills", rising(2))
    dataset = scan(settings(tmp_path, "9"))
    assert {p.name: len(p.clips) for p in dataset.pictures} == {
        "walk": 1,
        "run.frames": 1,
        "stills/0.png": 0,
        "stills/1.png": 0,
    }
    assert next(p.caption for p in dataset.pictures if p.name == "walk") == "zog, a dog walks"
    assert not any(w.code == "data.orphans" for w in dataset.warnings)
    plain = scan(settings(tmp_path, ""))
    assert len(plain.pictures) == 23
    cache, _ = cached(dataset)
    assert {e.shape[1] for e in cache.entries if e.picture.film} == {3}


def test_frames_of_another_size_and_masks_of_another_length_are_named(tmp_path):
    folder = write_frames(tmp_path / "a.frames", rising(9))
    Image.fromarray(frame(9, 64, 64)).save(folder / "4.png")
    write_gif(tmp_path / "b.gif", rising(9))
    write_gif(tmp_path / "b.mask.gif", rising(7))
    write_gif(tmp_path / "c.gif", rising(9))
    cache, _ = cached(scan(settings(tmp_path, "9", masks="file")))
    assert {name: why.code for name, why in cache.skipped} == {
        "a.frames": "film.frame_size",
        "b.gif": "mask.unreadable",
    }


def test_the_columns_of_video_data_sets_name_films(tmp_path):
    write_gif(tmp_path / "a.gif", rising(9))
    (tmp_path / "metadata.jsonl").write_text('{"video_path": "a.gif", "caption": "a dog walks"}\n')
    dataset = scan(dataclasses.replace(settings(tmp_path, "9"), trigger=""))
    assert dataset.pictures[0].caption == "a dog walks"


def test_many_clips_and_long_films_are_refused():
    film = Film(8, 8, tuple(n / 24 for n in range(3000)))
    with pytest.raises(PictureError, match="2992 clips"):
        clips_of(film, (), DataConfig(frames="9", clips="sliding", clip_stride=1))
    with pytest.raises(PictureError, match="too short"):
        clips_of(film, (), DataConfig(frames="9", frame_rate=0.01))


class Guiding(Vae):
    """A VAE of a model that is shown the first frame of a clip."""

    in_place = True

    def guided(self, needed: bool = False, in_place: bool = True, last: bool = False) -> Encoder:
        self.in_place = in_place
        return Encoder(self, "vae", showing=Showing(0, needed, of_film=True, last=last), guide=self.shown)

    def shown(self, pixels: torch.Tensor, last: bool) -> OfFrames:
        """The frame alone is encoded a little brighter than with what follows, as by a VAE whose norms span frames."""
        frames = self(pixels[:1]), self(pixels[-1:])
        return OfFrames((*frames[: 1 + last], torch.ones(1, 1, 3, 1, 1)), frames[0] + 0.25 if self.in_place else None)


def guided_batches(folder: Path, encoder: Encoder, size: int = 2, **data) -> Batches:
    config = parse(
        {"batch_size": size, "data": {"folder": str(folder), "frames": "9", "trigger": "zog", **SMALL, **data}}
    )
    return Batches(LatentCache(scan(config.data), encoder, lambda n, of: None), config, "cpu")


@pytest.mark.parametrize(
    ("first_frame", "low", "high"),
    [("auto", 0, 0), ("never", 0, 0), ("half of the time", 70, 130), ("always", 200, 200)],
)
def test_a_first_frame_is_shown_as_often_as_the_set_says(tmp_path, first_frame, low, high):
    write_gif(tmp_path / "a.gif", rising(9))
    write_gif(tmp_path / "b.gif", rising(18)[9:])
    batches = guided_batches(tmp_path, Guiding().guided(), first_frame=first_frame)
    drawn = [batches.at(step, 0) for step in range(100)]
    count = sum(bool(shown.identity) for batch in drawn for shown in batch.shown)
    assert low <= count <= high
    again = guided_batches(tmp_path, Guiding().guided(), first_frame=first_frame)
    for step in (0, 7, 99):
        assert [s.identity for s in again.at(step, 0).shown] == [s.identity for s in drawn[step].shown]


def test_a_given_frame_has_no_noise_and_nothing_is_asked_of_it(tmp_path):
    write_gif(tmp_path / "a.gif", rising(9))
    for in_place in (False, True):
        batch = guided_batches(tmp_path, Guiding().guided(in_place=in_place), 1, first_frame="always").at(0, 0)
        noisy = torch.full_like(batch.latents, 7.0)
        seen, given = batch.as_given(noisy), int(in_place)
        assert torch.equal(seen[:, :, given:], noisy[:, :, given:])
        assert torch.equal(
            seen[:, :, :given], batch.latents[:, :, :given] + 0.25
        )  # encoded alone, as when a clip is made
        assert bool((noisy == 7.0).all())
        assert batch.asked is None if not in_place else batch.asked[0, 0, :, 0, 0].tolist() == [0, 1, 1]
    masked = dataclasses.replace(batch, mask=torch.full_like(batch.latents[:, :1], 0.5))
    assert masked.asked[0, 0, :, 0, 0].tolist() == [0, 0.5, 0.5]


def test_samples_that_are_given_a_frame_and_samples_that_are_not_share_a_batch(tmp_path):
    write_gif(tmp_path / "a.gif", rising(9))
    write_gif(tmp_path / "b.gif", rising(18)[9:])
    batches = guided_batches(tmp_path, Guiding().guided(), first_frame="half of the time")
    mixed = next(
        b for b in map(lambda step: batches.at(step, 0), range(50)) if len({s.identity == "" for s in b.shown}) == 2
    )
    asked = [[0.0, 1.0, 1.0] if shown.clean is not None else [1.0, 1.0, 1.0] for shown in mixed.shown]
    assert mixed.asked[:, 0, :, 0, 0].tolist() == asked


def test_a_clip_says_its_frame_rate_and_a_picture_has_none(tmp_path):
    write_film(tmp_path / "a.mp4", rising(24))
    write_frames(tmp_path / "b.frames", rising(9))
    Image.fromarray(frame(90, 96, 64)).save(tmp_path / "c.png")
    for rate, wanted in (
        (0.0, {"a.mp4": 24.0, "b.frames": 0.0, "c.png": 0.0}),
        (12.0, {"a.mp4": 12.0, "b.frames": 12.0, "c.png": 0.0}),
    ):
        pictures = scan(settings(tmp_path, "5", frame_rate=rate)).pictures
        assert {picture.name: picture.frame_rate for picture in pictures} == wanted
    batches = guided_batches(tmp_path, Vae().encoder(), 1, frames="5")
    told = {batch.names[0]: list(batch.frame_rates) for batch in (batches.at(step, 0) for step in range(12))}
    assert told == {"a.mp4": [24.0], "b.frames": [0.0], "c.png": []}


def test_the_last_frame_is_shown_where_it_is_asked_for_and_kept_apart(tmp_path):
    write_gif(tmp_path / "a.gif", rising(9))
    encoder = Guiding().guided(needed=True, in_place=False, last=True)
    one, both = (guided_batches(tmp_path, encoder, 1, last_frame=last).at(0, 0).shown[0] for last in (False, True))
    assert [len(shown.latents) for shown in (one, both)] == [2, 3]
    assert one.identity != both.identity


@pytest.mark.parametrize(("encoder", "data", "code"), [
    (Guiding().guided(needed=True), {"first_frame": "never"}, "data.first_frame.needed"),
    (Guiding().guided(needed=True), {"first_frame": "half of the time"}, "data.first_frame.needed"),
    (Guiding().guided(needed=True), {"frames": "1"}, "data.frames.needed"),
    (Guiding().guided(), {"last_frame": True}, "data.last_frame.not_taken"),
    (Vae().encoder(), {"last_frame": True}, "data.last_frame.not_taken"),
    (Guiding().guided(), {"input_mask": "random"}, "data.input_mask.not_taken"),
])  # fmt: skip
def test_frames_that_a_model_does_not_take_are_refused(tmp_path, encoder, data, code):
    write_gif(tmp_path / "a.gif", rising(9))
    with pytest.raises(LoomError) as refused:
        guided_batches(tmp_path, encoder, 1, **data)
    assert refused.value.message.code == code


def test_pictures_and_clips_are_trained_together_where_a_first_frame_is_no_need(tmp_path):
    write_gif(tmp_path / "a.gif", rising(9))
    Image.fromarray(frame(90, 96, 64)).save(tmp_path / "still.png")
    batches = guided_batches(tmp_path, Guiding().guided(), 1, first_frame="always", frames="1, 9")
    shown = {batch.latents.shape[2]: batch.shown for batch in (batches.at(step, 0) for step in range(8))}
    assert shown[1] == []
    assert shown[3][0].clean is not None
