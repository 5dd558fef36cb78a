import math
import random

import numpy as np
import pytest
from lora_loom.lora_core.adapters.tokens import wanted_tokens
from lora_loom.lora_core.config import DataConfig, EmbeddingConfig
from lora_loom.lora_core.data import buckets
from lora_loom.lora_core.data.clips import lengths
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.messages.errors import LoomError
from PIL import Image


def many_sizes(limit=4000):
    rng = random.Random(0)
    for _ in range(20_000):
        step, resolution = rng.choice([8, 16, 32, 64, 128]), rng.choice([64, 512, 768, 1024, 1536])
        width, height = (int(math.exp(rng.uniform(math.log(step), math.log(limit)))) + 1 for _ in range(2))
        yield width, height, max(resolution, step), step


def test_a_bucket_is_never_larger_than_the_picture_and_its_sides_are_multiples_of_the_step():
    for width, height, resolution, step in many_sizes():
        how = buckets.fit(width, height, resolution, step)
        assert how.bucket[0] % step == how.bucket[1] % step == 0
        assert step <= how.bucket[0] <= width
        assert step <= how.bucket[1] <= height
        assert how.scaled[0] <= width
        assert how.scaled[1] <= height  # never upscaled


def test_the_crop_lies_in_the_middle_of_the_scaled_picture():
    for width, height, resolution, step in many_sizes():
        how = buckets.fit(width, height, resolution, step)
        for side in (0, 1):
            left, right = how.crop[side], how.scaled[side] - how.bucket[side] - how.crop[side]
            assert 0 <= left <= right <= left + 1


def test_the_picture_is_scaled_evenly_to_within_a_pixel():
    for width, height, resolution, step in many_sizes():
        how = buckets.fit(width, height, resolution, step)
        factors = how.scaled[0] / width, how.scaled[1] / height
        # Each side is rounded to whole pixels, so the factors agree to half a pixel of the shorter side.
        assert abs(factors[0] - factors[1]) * min(width, height) <= 1.0


def test_a_bucket_has_at_most_the_asked_number_of_pixels():
    for width, height, resolution, step in many_sizes():
        how = buckets.fit(width, height, resolution, step)
        assert how.bucket[0] * how.bucket[1] <= resolution**2, (width, height, resolution, step)


def test_at_most_one_step_of_each_side_is_lost_for_ordinary_shapes():
    for width, height, resolution, step in many_sizes():
        if max(width, height) > 4 * min(width, height) or min(width, height) < 4 * step or resolution < 8 * step:
            continue
        how = buckets.fit(width, height, resolution, step)
        scale = min(1.0, resolution / math.sqrt(width * height))
        assert how.bucket[0] > width * scale - step
        assert how.bucket[1] > height * scale - step


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((512, 512), (512, 512)),
        ((1024, 1024), (512, 512)),
        ((300, 300), (256, 256)),
        ((1024, 512), (704, 320)),
        ((512, 1024), (320, 704)),
    ],
)
def test_known_sizes_at_512_in_steps_of_64(size, bucket):
    assert buckets.fit(*size, 512, 64).bucket == bucket


def test_a_small_picture_is_scaled_up_where_the_set_asks_for_it_and_nowhere_else():
    plain = buckets.fit(64, 64, 128, 16)
    assert (plain.bucket, plain.scaled) == ((64, 64), (64, 64))
    assert buckets.fit(64, 64, 128, 16, upscale=True).bucket == (128, 128)
    wide = buckets.fit(64, 32, 128, 16, upscale=True)
    assert (wide.bucket, wide.scaled) == (
        (176, 80),
        (176, 88),
    )  # as many pixels as 128 x 128 at most, sides in whole steps


def test_a_side_below_one_step_is_an_error():
    with pytest.raises(ValueError, match="63 x 500 px is below one step of 64 px"):
        buckets.fit(63, 500, 512, 64)


def test_a_picture_of_bucket_size_is_not_touched():
    image = Image.effect_noise((64, 128), 60).convert("RGB")
    assert np.array_equal(np.asarray(buckets.apply(image, buckets.fit(64, 128, 512, 64))), np.asarray(image))


def test_applying_a_fit_gives_the_bucket_and_keeps_the_centre():
    image = Image.new("RGB", (300, 200), "white")
    image.paste("black", (140, 90, 160, 110))
    how = buckets.fit(300, 200, 128, 32)
    cut = buckets.apply(image, how)
    assert cut.size == how.bucket
    rows, columns = np.nonzero(np.asarray(cut.convert("L")) < 128)
    # The mark's centre may move by the half pixel that an odd remainder of the crop costs.
    assert abs(rows.mean() + 0.5 - cut.height / 2) <= 0.51
    assert abs(columns.mean() + 0.5 - cut.width / 2) <= 0.51


def test_numbers_of_thousands_of_digits_are_refused_in_our_words(tmp_path):
    """Python refuses to read them, in its own."""
    digits = "9" * 5000
    for part in (digits, "512, " + digits):
        with pytest.raises(LoomError, match="data.also_resolutions"):
            buckets.resolutions(DataConfig(also_resolutions=part))
    with pytest.raises(LoomError, match="data.frames"):
        lengths(DataConfig(frames=digits))
    with pytest.raises(LoomError, match="embedding.tokens"):
        wanted_tokens(EmbeddingConfig(tokens=f"TOK*{digits}"))
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text(f"file_name,text,control_path_{digits}\na.png,a cat,\n")
    assert [p.caption for p in scan(DataConfig(folder=str(tmp_path), controls="auto")).pictures] == ["a cat"]
