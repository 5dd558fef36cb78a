import numpy as np
import pytest
from lora_loom.lora_core.config import DataConfig
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.data.lengths import TextLength
from lora_loom.lora_core.data.lint import BLUR_RATIO, look, sharpness
from lora_loom.lora_core.data.sheet import kept, sheet
from PIL import Image, ImageEnhance, ImageFilter


def natural(seed, size=256, slope=1.0):
    """A picture with the spectrum of photographs, amplitude 1 / f (Field 1987)."""
    rng, f = np.random.default_rng(seed), np.fft.fftfreq(size)
    radius = np.hypot(f[:, None], f[None])
    radius[0, 0] = 1
    planes = [np.fft.ifft2(np.fft.fft2(rng.standard_normal((size, size))) / radius**slope).real for _ in range(3)]
    planes = [np.clip((p - p.mean()) / p.std() * 50 + 128, 0, 255) for p in planes]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


def looked_at(folder, length=None, **data):
    return look(
        scan(DataConfig(folder=str(folder), **{"resolution": 256, "bucket_step_px": 64, **data})),
        length,
        lambda n, of: None,
    )


def put(folder, name, image, caption=None):
    image.save(folder / name)
    if caption is not None:
        (folder / name).with_suffix(".txt").write_text(caption)


@pytest.mark.parametrize("slope", [0.8, 1.0, 1.2])
def test_pictures_out_of_focus_are_told_from_sharp_ones(slope):
    for seed in range(5):
        image = natural(seed, slope=slope)
        assert sharpness(image) > 2 * BLUR_RATIO
        assert sharpness(image.filter(ImageFilter.GaussianBlur(3))) < BLUR_RATIO
        assert sharpness(image.resize((48, 48)).resize((256, 256), Image.Resampling.BICUBIC)) < BLUR_RATIO
    assert sharpness(Image.new("RGB", (64, 64), (200, 30, 40))) == float("inf")


def test_near_duplicates_are_found_and_different_pictures_are_not(tmp_path):
    for n in range(12):
        put(tmp_path, f"{n:02}.png", natural(n))
    first = natural(0)
    put(tmp_path, "00 smaller.jpg", first.resize((200, 200)))
    put(tmp_path, "00 brighter.png", ImageEnhance.Brightness(first).enhance(1.04))
    put(tmp_path, "00 cut.png", first.crop((4, 4, 256, 256)))
    for n, colour in enumerate([(200, 30, 40), (30, 200, 40), (30, 40, 200)]):
        put(tmp_path, f"plain {n}.png", Image.new("RGB", (256, 256), colour))
    report = looked_at(tmp_path)
    doubles = {name for name, notes in report.notes.items() if any("near-duplicate" in str(note) for note in notes)}
    assert doubles == {"00.png", "00 smaller.jpg", "00 brighter.png", "00 cut.png"}


def test_every_kind_of_note(tmp_path):
    put(tmp_path, "good.png", natural(1), "zog, red, on a chair, best")
    put(tmp_path, "blurred.png", natural(2).filter(ImageFilter.GaussianBlur(4)), "zog, blue, best")
    put(tmp_path, "small.png", natural(3, 100), "zog, green, best")
    put(tmp_path, "wide.png", natural(4).resize((290, 257)), "zog, long, best")
    put(tmp_path, "bare.png", natural(5), "")
    put(tmp_path, "long.png", natural(6), "zog, long caption, best")
    put(tmp_path, "black.png", natural(7), "zog, masked, best")
    Image.new("L", (256, 256), 0).save(tmp_path / "black.mask.png")
    put(tmp_path, "white.png", natural(8), "zog, unmasked, best")
    Image.new("L", (256, 256), 255).save(tmp_path / "white.mask.png")
    put(tmp_path, "cut.png", natural(9), "zog, cut caption, best")
    lengths = {"zog, long caption, best": TextLength(160, 3), "zog, cut caption, best": TextLength(90, 1, 15)}
    report = looked_at(tmp_path, lambda caption: lengths.get(caption, TextLength(5)), masks="file")
    assert {name: [*map(str, notes)] for name, notes in report.notes.items()} == {
        "blurred.png": ["blurred, or upscaled"],
        "small.png": ["small: 100 x 100 px, trained at 64 x 64"],
        "wide.png": ["the crop removes 15.4 %"],
        "bare.png": ["no caption"],
        "long.png": ["caption with 160 tokens, read in 3 pieces of 75"],
        "black.png": ["its mask is black: it will be left out"],
        "white.png": ["its mask is white everywhere and changes nothing"],
        "cut.png": ["caption with 90 tokens: the last 15 are cut off"],
    }
    (said,) = report.general
    assert (
        str(said)
        == "in nearly every caption: best, zog. The model cannot tell this from the trigger; leave it out of the captions, or describe what differs"
    )
    assert "256 x 256     7" in report.text()
    assert "wide.png: the crop removes 15.4 %" in report.text()


def test_what_holds_for_the_whole_set(tmp_path):
    for n in range(6):
        put(tmp_path, f"{n}.png", natural(n, 64), "the same" if n < 4 else f"caption {n}")
    natural(9, 64).save(tmp_path / "5.jpg")
    general = looked_at(tmp_path, resolution=64).general
    assert [*map(str, general)] == [
        "4 of 7 captions are the same ('the same'); say what differs, or it becomes part of the concept",
        "1 name stands for several pictures (5.*), which share a caption file",
    ]
    few = tmp_path / "few"
    few.mkdir()
    put(few, "a.png", natural(1, 64), "x")
    assert [*map(str, looked_at(few, resolution=64).general)] == [
        "1 picture is few: 10 to 30 varied ones are usual for a subject or a style"
    ]
    for n in range(3):
        put(few, f"{n}.png", natural(2 + n, 64), f"x{n}")
    assert [note.code for note in looked_at(few, resolution=64).general] == ["lint.few"]
    put(few, "b.png", natural(7, 64), "y")
    assert looked_at(few, resolution=64).general == []


def test_a_picture_that_is_scaled_up_is_told_and_one_that_is_large_enough_is_not(tmp_path):
    put(tmp_path, "small.png", natural(1, 100), "x")
    put(tmp_path, "large.png", natural(2, 128), "y")
    notes = looked_at(tmp_path, resolution=128, upscale=True).notes
    assert {name: [note.code for note in said] for name, said in notes.items()} == {"small.png": ["lint.scaled_up"]}


def test_the_sheet_shows_pictures_with_notes_first_and_veils_what_is_cut_off(tmp_path):
    for n in range(5):
        put(tmp_path, f"{n}.png", natural(n), f"caption {n}")
    put(tmp_path, "wide.png", Image.new("RGB", (512, 256), (40, 200, 40)), "wide")
    report = looked_at(tmp_path, aspect_buckets=False)
    image = sheet(report, columns=3)
    pixels = np.asarray(image).reshape(-1, 3).astype(int)
    veiled = (np.abs(pixels - (146, 118, 52)).max(1) < 12).sum()  # 150 of 255 red over the green
    clear = (np.abs(pixels - (40, 200, 40)).max(1) < 12).sum()
    assert 0.7 < veiled / clear < 1.3  # half of a picture twice as wide as high is cut off
    one = sheet(report, columns=3, most=1)
    assert (np.abs(np.asarray(one).reshape(-1, 3).astype(int) - (40, 200, 40)).max(1) < 12).any()


def test_what_is_kept_lies_where_the_crop_is():
    from lora_loom.lora_core.data.buckets import Fit

    assert kept(Fit((400, 200), (200, 100), (50, 0), (100, 100)), (100, 50)) == (25, 0, 75, 50)


def test_very_long_captions_do_not_hold_up_the_sheet(tmp_path, counted):
    work = []
    for words in (200, 20_000):
        folder = tmp_path / str(words)
        folder.mkdir()
        for n in range(6):
            put(folder, f"{n}.png", natural(n, 64), "word " * words)
        report = looked_at(folder, resolution=64)
        work.append(counted(lambda shown=report: sheet(shown))[2])
    assert work[1] < 2 * work[0]  # only what fits below a picture is laid out
