import io
import struct
import zlib

import numpy as np
import pytest
from lora_loom.lora_core.pictures import reading as pictures
from lora_loom.lora_core.pictures.reading import EXTENSIONS, PictureError, open_rgb, read_size
from PIL import Image
from since import since

RED, BLUE = (200, 30, 40), (30, 40, 200)


def png_that_claims(width, height):
    """A few hundred bytes whose header promises width x height pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(500))) + chunk(b"IEND", b"")


READ_BACK = since("pillow", "10.1", "reads the YCbCr TIFF files it writes")


def halves(mode="RGB"):
    """40 x 20 px, red on the left, blue on the right."""
    image = Image.new("RGB", (40, 20), RED)
    image.paste(BLUE, (20, 0, 40, 20))
    return image.convert(mode)


@pytest.mark.parametrize(
    ("orientation", "size", "red_at"),
    [(1, (40, 20), (5, 10)), (3, (40, 20), (35, 10)), (6, (20, 40), (10, 5)), (8, (20, 40), (10, 35))],
)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_a_turned_picture_is_shown_upright_and_its_size_read_that_way(orientation, size, red_at, suffix, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    halves().save(tmp_path / f"x{suffix}", exif=exif, **({"quality": 95} if suffix != ".png" else {}))
    image = open_rgb(tmp_path / f"x{suffix}")
    assert read_size(tmp_path / f"x{suffix}") == image.size == size
    assert np.abs(np.array(image.getpixel(red_at), int) - RED).max() < 25  # JPEG and WebP are lossy


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_on_white_and_half_transparency_is_mixed(mode, tmp_path):
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.putpixel((2, 0), (0, 0, 0, 128))
    image.convert(mode).save(tmp_path / "x.png")
    pixels = np.asarray(open_rgb(tmp_path / "x.png"))[0, :, 0].tolist()
    assert pixels[:2] == [0, 255]
    assert abs(pixels[2] - 127) <= 1  # 255 * (1 - 128 / 255) is 127, rounded either way


def test_a_transparent_palette_colour_lies_on_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    for name in ("x.gif", "x.png"):
        image.save(tmp_path / name, transparency=0)
        assert np.asarray(open_rgb(tmp_path / name))[0].tolist() == [[255, 255, 255], [40, 50, 60]]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(suffix, tmp_path):
    values = np.array([[0, 257, 256 * 128, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"x{suffix}")
    assert np.asarray(open_rgb(tmp_path / f"x{suffix}"))[0, :, 1].tolist() == [0, 1, 128, 255]


def test_float_grey_is_scaled_to_its_largest_value(tmp_path):
    Image.fromarray(np.array([[-1.0, 0.0, 2.0, 4.0]], np.float32)).save(tmp_path / "x.tif")
    assert np.asarray(open_rgb(tmp_path / "x.tif"))[0, :, 0].tolist() == [0, 0, 128, 255]
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)).save(tmp_path / "x.tif")
    assert np.asarray(open_rgb(tmp_path / "x.tif"))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGB", pytest.param("YCbCr", marks=READ_BACK)])
def test_every_ordinary_mode_becomes_rgb_of_the_same_size(mode, tmp_path):
    suffix = ".tif" if mode in ("CMYK", "YCbCr") else ".png"
    halves(mode).save(tmp_path / f"x{suffix}")
    image = open_rgb(tmp_path / f"x{suffix}")
    assert (image.mode, image.size) == ("RGB", (40, 20))
    assert np.asarray(image).std() > 10  # not one flat colour


WRITABLE = sorted(
    s for s in EXTENSIONS if Image.registered_extensions().get(s) in Image.SAVE
)  # AVIF depends on how Pillow was built


def encoded(suffix):
    buffer, image = io.BytesIO(), Image.effect_noise((24, 20), 80).convert("RGB")
    image.save(buffer, Image.registered_extensions()[suffix])
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", WRITABLE)
def test_every_allowed_extension_can_be_opened(suffix, tmp_path):
    (tmp_path / f"x{suffix}").write_bytes(encoded(suffix))
    assert read_size(tmp_path / f"x{suffix}") == open_rgb(tmp_path / f"x{suffix}").size == (24, 20)


@pytest.mark.filterwarnings("ignore")  # Pillow warns about what it meets in garbled files
@pytest.mark.parametrize("suffix", WRITABLE)
def test_a_file_cut_or_garbled_anywhere_is_a_picture_or_a_picture_error_and_never_a_crash(suffix, tmp_path):
    data, path, refused = encoded(suffix), tmp_path / f"x{suffix}", 0
    places = sorted({*range(0, 48), *range(0, len(data), max(1, len(data) // 24))})
    for place in places:
        for damaged in (data[:place], data[:place] + b"\xff\x00\x5a" + data[place + 3 :]):
            path.write_bytes(damaged)
            try:
                read_size(path)
                assert open_rgb(path).mode == "RGB"
            except PictureError:
                refused += 1
    assert refused >= len(places) // 2


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
def test_a_truncated_picture_is_refused_not_filled_with_grey(suffix, tmp_path):
    data = encoded(suffix)
    (tmp_path / f"x{suffix}").write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(PictureError):
        open_rgb(tmp_path / f"x{suffix}")


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"<html>not found</html>", b"RIFF", b"GIF89a", b"\x89PNG\r\n\x1a\n"]
)
def test_an_empty_or_foreign_file_is_refused_with_a_reason(content, tmp_path):
    (tmp_path / "x.png").write_bytes(content)
    for read in (read_size, open_rgb):
        with pytest.raises(PictureError, match="cannot be read as a picture"):
            read(tmp_path / "x.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8001, 12_000])
def test_a_header_that_promises_too_many_pixels_is_refused_before_any_is_decoded(side, tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(png_that_claims(side, side))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for read in (read_size, open_rgb):
        with pytest.raises(PictureError, match=f"has {side} x {side} pixels, more than the 64 million allowed"):
            read(tmp_path / "x.png")


def test_a_header_beyond_what_pillow_opens_is_refused_too(tmp_path):
    (tmp_path / "x.png").write_bytes(png_that_claims(60_000, 60_000))
    with pytest.raises(PictureError, match="cannot be read as a picture"):
        read_size(tmp_path / "x.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_the_size_is_read_from_the_header_alone(suffix, tmp_path, monkeypatch):
    (tmp_path / f"x{suffix}").write_bytes(encoded(suffix))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    assert read_size(tmp_path / f"x{suffix}") == (24, 20)


def test_a_picture_of_the_largest_allowed_size_is_not_refused_by_its_header(tmp_path):
    Image.new("1", (8000, 8000)).save(tmp_path / "x.png")
    assert read_size(tmp_path / "x.png") == (8000, 8000)
    assert pictures.MAX_PIXELS == 8000 * 8000


def test_an_animation_is_its_first_frame(tmp_path):
    halves().save(tmp_path / "x.gif", save_all=True, append_images=[Image.new("RGB", (40, 20), "black")])
    assert np.abs(np.array(open_rgb(tmp_path / "x.gif").getpixel((5, 5)), int) - RED).max() < 10  # the palette rounds
