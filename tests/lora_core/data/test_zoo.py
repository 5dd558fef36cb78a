"""A folder as people really have it: every picture is decoded to what a closed form says, or left out by name; every caption is the expected string."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from lora_loom.lora_core.config import DataConfig
from lora_loom.lora_core.data.encoder import Encoder
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.data.latents import LatentCache
from lora_loom.lora_core.messages.message import Message
from lora_loom.lora_core.pictures.reading import open_rgb
from PIL import Image

RED, BLUE = (200, 30, 40), (30, 40, 200)
EXACT, LOSSY = (
    0,
    12,
)  # levels of 255; the lossy ones are flat colours away from any edge, so JPEG's error is that of its colour transform and rounding


def halves(mode="RGB"):
    """64 x 32 px, red on the left, blue on the right."""
    image = Image.new("RGB", (64, 32), RED)
    image.paste(BLUE, (32, 0, 64, 32))
    return image.convert(mode)


def chunked(*chunks):
    out = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        out += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return out


def png16(values, colour_type):
    """(H, W, channels) of 16 bit."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return chunked((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))


def bomb(width, height):
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return chunked((b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))


ADOBE = np.array(
    [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]
)  # Adobe RGB (1998) -> XYZ D50, Lindbloom
SRGB = np.array(
    [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
)  # sRGB -> XYZ D50, the same


def wide_profile():
    """An ICC v2 matrix profile with the primaries of Adobe RGB and gamma 2.2, written by hand."""

    def fixed(values):
        return struct.pack(f">{len(values)}i", *(round(v * 65536) for v in values))

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(2.2 * 256)) + bytes(2)
    name = b"Wide test"
    description = b"desc" + bytes(4) + struct.pack(">I", len(name) + 1) + name + b"\0" + bytes(4 + 4 + 2 + 1 + 67)
    tags = [
        (b"desc", description),
        (b"cprt", b"text" + bytes(4) + b"none\0"),
        (b"wtpt", b"XYZ " + bytes(4) + fixed((0.9642, 1.0, 0.8249))),
    ]
    tags += [(tag, b"XYZ " + bytes(4) + fixed(ADOBE[:, n])) for n, tag in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))]
    tags += [(tag, curve) for tag in (b"rTRC", b"gTRC", b"bTRC")]
    table, body, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for tag, data in tags:
        data += bytes(-len(data) % 4)
        table += tag + struct.pack(">II", at + len(body), len(data))
        body += data
    head = struct.pack(
        ">I4sI4s4s4s12s4s", at + len(body), bytes(4), 0x02400000, b"mntr", b"RGB ", b"XYZ ", bytes(12), b"acsp"
    )
    head += bytes(68 - len(head)) + fixed((0.9642, 1.0, 0.8249))
    return head + bytes(128 - len(head)) + table + body


def as_srgb(rgb):
    """What a colour of `wide_profile` is in sRGB, from the definitions (relative colorimetric: both are seen under D50)."""
    linear = np.linalg.solve(SRGB, ADOBE @ (np.array(rgb) / 255) ** 2.2).clip(0, 1)
    return (np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255).round()


def bilevel():
    return Image.fromarray(np.tile(np.repeat([0, 255], 32), (32, 1)).astype(np.uint8)).convert("1")


def ramp():
    return Image.fromarray(np.tile(np.linspace(0, 1, 64, dtype=np.float32), (32, 1)))


def frames():
    return [halves(), Image.new("RGB", (64, 32), (0, 255, 0))]


Image.init()
NO_AVIF = pytest.mark.skip(reason="this Pillow was built without AVIF")


def saved(image, form, **options):
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def rgba():
    image = halves("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 8, 32))  # nothing at the left edge, black hidden under it
    image.paste((0, 0, 0, 51), (8, 0, 16, 32))  # a fifth of black: 255 * 0.8 = 204
    return image


def palette(transparent=None):
    image = Image.new("P", (64, 32))
    image.putpalette([*RED, *BLUE])
    image.paste(1, (32, 0, 64, 32))
    return saved(image, "PNG", **({} if transparent is None else {"transparency": transparent}))


def grey16():
    values = np.zeros((32, 64, 1), np.uint16)
    values[:, 16:32], values[:, 32:48], values[:, 48:] = 256, 32768, 65535
    return png16(values, 0)


GREY16 = {4: (0,) * 3, 20: (1,) * 3, 40: (128,) * 3, 60: (255,) * 3}
BOTH = {8: RED, 56: BLUE}
ADOBE_RED = tuple(as_srgb((180, 60, 50)))

ZOO = {  # name -> (bytes, {x: colour at (x, 16)}, tolerance)
    "plain.png": (saved(halves(), "PNG"), BOTH, EXACT),
    "UPPER.PNG": (saved(halves(), "PNG"), BOTH, EXACT),
    "bitmap.bmp": (saved(halves(), "BMP"), BOTH, EXACT),
    "plain.jpg": (saved(halves(), "JPEG", quality=95), BOTH, LOSSY),
    "old.jfif": (saved(halves(), "JPEG", quality=95), BOTH, LOSSY),
    "lossless.webp": (saved(halves(), "WEBP", lossless=True), BOTH, EXACT),
    "grey.png": (saved(halves("L"), "PNG"), {8: (82,) * 3, 56: (55,) * 3}, 1),  # 0.299 R + 0.587 G + 0.114 B
    "bilevel.png": (saved(bilevel(), "PNG"), {8: (0,) * 3, 56: (255,) * 3}, EXACT),
    "alpha.png": (saved(rgba(), "PNG"), {4: (255,) * 3, 12: (204,) * 3, 24: RED, 56: BLUE}, 1),
    "grey alpha.png": (saved(rgba().convert("LA"), "PNG"), {4: (255,) * 3, 12: (204,) * 3, 24: (82,) * 3}, 1),
    "alpha.webp": (saved(rgba(), "WEBP", lossless=True), {4: (255,) * 3, 12: (204,) * 3, 24: RED}, 1),
    "palette.png": (palette(), BOTH, EXACT),
    "palette transparent.png": (palette(0), {8: (255,) * 3, 56: BLUE}, EXACT),
    "16 bit grey.png": (grey16(), GREY16, EXACT),
    "16 bit colour.png": (png16(np.tile(np.array([51400, 7710, 10280], np.uint16), (32, 64, 1)), 2), {8: (200, 30, 40)}, 1),  # 257 x the colour
    "float.tif": (saved(ramp(), "TIFF"), {0: (0,) * 3, 63: (255,) * 3, 21: (85,) * 3}, EXACT),
    "cmyk.tif": (saved(Image.new("CMYK", (64, 32), (255, 0, 0, 0)), "TIFF"), {8: (0, 255, 255)}, EXACT),
    "cmyk.jpg": (saved(Image.new("CMYK", (64, 32), (0, 0, 0, 255)), "JPEG"), {8: (0, 0, 0)}, LOSSY),
    "turned 3.jpg": (saved(halves(), "JPEG", quality=95, exif=exif(3)), {8: BLUE, 56: RED}, LOSSY),
    "mirrored 2.png": (saved(halves(), "PNG", exif=exif(2)), {8: BLUE, 56: RED}, EXACT),
    "turned 6.jpg": (saved(halves().transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif(6)), BOTH, LOSSY),
    "turned 8.tif": (saved(halves().transpose(Image.Transpose.ROTATE_270), "TIFF", exif=exif(8)), BOTH, EXACT),
    "moves.gif": (saved(frames()[0].quantize(), "GIF", save_all=True, append_images=[frames()[1].quantize()]), BOTH, 2),
    "moves.webp": (saved(frames()[0], "WEBP", save_all=True, append_images=frames()[1:], lossless=True), BOTH, EXACT),
    "moves.png": (saved(frames()[0], "PNG", save_all=True, append_images=frames()[1:]), BOTH, EXACT),
    "wide gamut.png": (saved(Image.new("RGB", (64, 32), (180, 60, 50)), "PNG", icc_profile=wide_profile()), {8: ADOBE_RED}, 1),
    "broken profile.png": (saved(halves(), "PNG", icc_profile=b"no profile at all" * 20), BOTH, EXACT),
}  # fmt: skip
OUT = {
    "truncated.jpg": (saved(halves().resize((640, 320)), "JPEG")[:900], "is damaged"),
    "page.png": (b"<html>not found</html>", "cannot be read as a picture"),
    "empty.jpg": (b"", "cannot be read as a picture"),
    "bomb.png": (bomb(13377, 13377), "more than the 64 million allowed"),
    "thin.png": (saved(Image.new("RGB", (1, 4000)), "PNG"), "smaller than the smallest bucket"),
    "layers.psd": (b"8BPS", "is a .psd file, which cannot be read"),
    "new.jxl": (b"\xff\x0a", "is a .jxl file, which cannot be read"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("zoo")
    for name, (data, *_) in {**ZOO, **OUT}.items():
        (root / name).write_bytes(data)
    return root


def settings(folder, **changes):
    return DataConfig(folder=str(folder), resolution=32, bucket_step_px=8, **changes)


if "AVIF" in Image.SAVE:
    ZOO["plain.avif"] = (saved(halves(), "AVIF", quality=95), BOTH, LOSSY)


@pytest.mark.parametrize("name", [*ZOO, *([] if "plain.avif" in ZOO else [pytest.param("plain.avif", marks=NO_AVIF)])])
def test_a_picture_is_what_its_file_means(name, folder):
    _, colours, tolerance = ZOO[name]
    image = open_rgb(folder / name)
    assert (image.mode, image.size) == ("RGB", (64, 32))
    for x, colour in colours.items():
        assert np.abs(np.array(image.getpixel((x, 16)), int) - colour).max() <= tolerance, (
            x,
            image.getpixel((x, 16)),
            colour,
        )


def test_every_file_is_used_or_named_with_its_reason(folder):
    found = scan(settings(folder))
    cache = LatentCache(found, Encoder(lambda pixels: pixels.permute(0, 3, 1, 2)), lambda n, of: None)
    assert {p.name for p in cache.pictures} == set(ZOO)
    out = dict([*found.skipped, *cache.skipped])
    assert out.keys() == OUT.keys()
    for name, (_, reason) in OUT.items():
        assert reason in str(out[name]), out[name]
    said = "\n".join(map(str, found.warnings))
    assert "3 animated, e.g. moves.gif, moves.png, moves.webp: the first frame is trained" in said
    assert "1 converted from Wide test to sRGB, e.g. wide gamut.png" in said
    assert "1 read as sRGB because the colour profile is damaged, e.g. broken profile.png" in said


def test_transparency_lies_on_the_chosen_colour(folder):
    image = open_rgb(folder / "alpha.png", "#000080")
    assert image.getpixel((4, 16)) == (0, 0, 128)
    assert np.abs(np.array(image.getpixel((12, 16)), int) - (0, 0, 102)).max() <= 1


def test_heic_is_read_where_its_decoder_is_and_named_where_it_is_not(tmp_path, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(halves()).save(tmp_path / "phone.heic", quality=95)
    halves().save(tmp_path / "a.png")
    found = scan(settings(tmp_path))
    assert [p.name for p in found.pictures] == ["a.png", "phone.heic"]
    image = open_rgb(tmp_path / "phone.heic")
    for x, colour in BOTH.items():
        assert np.abs(np.array(image.getpixel((x, 16)), int) - colour).max() <= LOSSY
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    assert scan(settings(tmp_path)).skipped == (("phone.heic", Message("picture.needs_heif")),)


LONG = "word " * 10_000
CAPTIONS = {  # picture -> ({file: bytes}, caption)
    "utf8.png": ({"utf8.txt": "ein Café, 猫".encode()}, "ein Café, 猫"),
    "mark.png": ({"mark.txt": "ein Café".encode("utf-8-sig")}, "ein Café"),
    "utf16le.png": ({"utf16le.txt": "ein Café, 猫".encode("utf-16")}, "ein Café, 猫"),
    "utf16be.png": ({"utf16be.txt": b"\xfe\xff" + "ein Café".encode("utf-16-be")}, "ein Café"),
    "utf16 bare.png": ({"utf16 bare.txt": "a plain dog".encode("utf-16-le")}, "a plain dog"),
    "utf32.png": ({"utf32.txt": "ein Café".encode("utf-32")}, "ein Café"),
    "cp1252.png": ({"cp1252.txt": "“curly” – Café".encode("cp1252")}, "“curly” – Café"),
    "crlf.png": ({"crlf.txt": b"a dog,\r\nred\r\n"}, "a dog, red"),
    "oldmac.png": ({"oldmac.txt": b"a dog,\rred"}, "a dog, red"),
    "blankfirst.png": ({"blankfirst.txt": b"\n\n  a dog\n"}, "a dog"),
    "empty.png": ({"empty.txt": b""}, ""),
    "spaces.png": ({"spaces.txt": b" \t\n"}, ""),
    "missing.png": ({}, ""),
    "case.png": ({"case.TXT": b"a dog"}, "a dog"),
    "CASE2.PNG": ({"case2.txt": b"a cat"}, "a cat"),
    "other.png": ({"other.caption": b"a dog"}, "a dog"),
    "full.png": ({"full.png.txt": b"by the whole name", "full.txt": b"by the stem"}, "by the whole name"),
    "twice.png.png": ({"twice.png.txt": b"a dog"}, "a dog"),
    "p_q_r_s_t.png": ({"p_q_r_s_t.txt": b"five parts", "p.txt": b"an orphan"}, "five parts"),
    "nul.png": ({"nul.txt": b"a\0dog\x07"}, "a dog"),
    "emoji.png": ({"emoji.txt": "a 🐕‍🦺 dog".encode()}, "a 🐕‍🦺 dog"),
    "nfd.png": ({"nfd.txt": b"unused"}, "unused"),
    "e\u0301te\u0301.png": (
        {"\u00e9t\u00e9.txt": b"summer"},
        "summer",
    ),  # the picture's name decomposed (macOS), the caption's composed
    "tenthousand.png": ({"tenthousand.txt": LONG.encode()}, LONG.strip()),
    "tags.png": ({"tags.txt": b"1girl\nsolo\nlong hair\n"}, "1girl, solo, long hair"),
    "booru.png": (
        {"booru.png.json": b'{"id": 3, "rating": "s", "tag_string": "1girl long_hair ^_^ saber_(fate)"}'},
        "1girl, long hair, ^_^, saber (fate)",
    ),
    "e621.png": (
        {"e621.json": b'{"tags": {"general": ["red_fox", "outdoors"], "artist": ["some_one"]}}'},
        "red fox, outdoors, some one",
    ),
}


def test_every_caption_is_the_expected_string(tmp_path):
    for name, (texts, _) in CAPTIONS.items():
        Image.new("RGB", (32, 32)).save(tmp_path / name, "PNG")
        for file, data in texts.items():
            (tmp_path / file).write_bytes(data)
    found = scan(settings(tmp_path))
    assert {p.name: p.caption for p in found.pictures} == {name: caption for name, (_, caption) in CAPTIONS.items()}
    assert not found.skipped
    said = "\n".join(map(str, found.warnings))
    assert "3 without caption, e.g. empty.png, missing.png, spaces.png" in said
    assert (
        "1 caption is not Unicode, e.g. cp1252.txt: read as Windows-1252 (set data.caption_encoding if it is another)"
        in said
    )
    assert "1 caption file without a picture, e.g. p.txt" in said


LEGACY = [
    ("cp932", "赤い猫"),
    ("gb18030", "红色的猫"),
    ("big5", "紅色的貓"),
    ("euc-kr", "빨간 고양이"),
    ("cp1251", "рыжий кот"),
]


@pytest.mark.parametrize(("encoding", "text"), LEGACY)
def test_a_legacy_encoding_is_read_when_it_is_named(encoding, text, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert scan(settings(tmp_path, caption_encoding=encoding)).pictures[0].caption == text
    assert "caption is not Unicode" in scan(settings(tmp_path)).summary()


def test_a_file_that_would_start_another_program_is_no_picture(tmp_path):
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n")
    halves().save(tmp_path / "a.png")
    assert [name for name, _ in scan(settings(tmp_path)).skipped] == ["x.png"]


def test_a_linear_profile_is_converted_though_its_name_says_srgb(tmp_path):
    linear = wide_profile().replace(b"Wide test", b"sRGB line").replace(b"sRGB line", b"lin-sRGB ")
    Image.new("RGB", (64, 32), (180, 60, 50)).save(tmp_path / "x.png", icc_profile=linear)
    assert np.abs(np.array(open_rgb(tmp_path / "x.png").getpixel((8, 16)), int) - ADOBE_RED).max() <= 1


def test_transparency_by_colour_survives_a_profile(tmp_path):
    Image.new("RGB", (64, 32), (180, 60, 50)).save(
        tmp_path / "x.png", icc_profile=wide_profile(), transparency=(180, 60, 50)
    )
    assert open_rgb(tmp_path / "x.png").getpixel((8, 16)) == (255, 255, 255)


def test_no_mutation_of_a_picture_ends_a_scan(tmp_path):
    """A thousand files with a few bytes changed: each is read, or left out with a reason."""
    import random

    from lora_loom.lora_core.pictures.reading import PictureError, open_picture, read_header

    rng = random.Random(0)
    for n in range(1000):
        name, (data, *_) = rng.choice(list(ZOO.items()))
        changed = bytearray(data)
        for _ in range(rng.randint(1, 6)):
            changed[rng.randrange(min(len(changed), 2000))] = rng.randrange(256)
        path = tmp_path / f"{n}{name[name.rfind('.') :]}"
        path.write_bytes(changed)
        with contextlib.suppress(PictureError):
            read_header(path)
            assert open_picture(path).rgb.mode == "RGB"
