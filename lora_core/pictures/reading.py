"""Opening one picture the right way: header first, EXIF applied, colours to sRGB, alpha on a chosen ground, 16 bit scaled, RGB out."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageColor, ImageOps, UnidentifiedImageError

from ..messages.errors import Problem
from ..messages.message import Message

MAX_PIXELS = 64_000_000
HEIF = frozenset({".heic", ".heif"})
FILMS = frozenset({".mp4", ".m4v", ".webm", ".mov", ".mkv", ".avi"})
EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}) | HEIF
UNREADABLE = frozenset(  # looks like something to train on, but is not a picture we open: named, not passed over
    {
        ".jxl",
        ".psd",
        ".svg",
        ".eps",
        ".pdf",
        ".ai",
        ".xcf",
        ".kra",
        ".exr",
        ".hdr",
        ".dng",
        ".cr2",
        ".nef",
        ".arw",
    }
)

_ORIENTATION = 0x0112
_TURNED_BY_PILLOW = ("HEIF", "TIFF")  # as they are loaded; not every Pillow then forgets that it was to be done
_TURNED_IN = ("exif", "Raw profile type exif", "XML:com.adobe.xmp")  # where a PNG may say how it is turned
_FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "BMP",
    "DIB",
    "GIF",
    "TIFF",
    "AVIF",
)  # nothing that starts another program, as EPS does
_BROKEN = (
    OSError, EOFError, ValueError, SyntaxError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError,
    struct.error, Image.DecompressionBombError,
)  # fmt: skip


class PictureError(Problem):
    """Why one picture cannot be used; the message does not repeat its name."""


@dataclasses.dataclass(frozen=True)
class Header:
    """Size as shown, EXIF rotation applied; whether the file holds more than one frame; the colour profile converted from, "" for sRGB."""

    width_px: int
    height_px: int
    animated: bool = False
    profile: str = ""


@dataclasses.dataclass(frozen=True)
class Opened:
    """8-bit RGB, and 8-bit opacity of the same size where the file has any."""

    rgb: Image.Image
    alpha: Image.Image | None


def read_header(path: Path) -> Header:
    """What a file says about its picture, without decoding it. Raises PictureError."""
    try:
        with _image(path, path.suffix) as image:
            width, height = _stored_size(image)
            _check_size(width, height)
            may_be_turned = image.format != "PNG" or any(
                key in image.info for key in _TURNED_IN
            )  # asking a PNG without EXIF for it would decode the picture
            turned = may_be_turned and image.format != "HEIF" and image.getexif().get(_ORIENTATION, 1) >= 5
            animated = image.format in ("GIF", "PNG", "WEBP", "AVIF") and bool(getattr(image, "is_animated", False))
            profile = _foreign_profile(image)
    except _BROKEN as error:
        raise PictureError("picture.unreadable", reason=_reason(error)) from error
    name = _profile_name(profile) if profile else ""
    return Header(height, width, animated, name) if turned else Header(width, height, animated, name)


def read_size(path: Path) -> tuple[int, int]:
    """(width, height) as shown. Raises PictureError."""
    header = read_header(path)
    return header.width_px, header.height_px


def open_picture(path: Path, background: str = "white", data: bytes | None = None) -> Opened:
    """The picture, upright, in sRGB, on `background` where it is transparent. `data`: the file's bytes, where they are read already.

    Raises PictureError when its header promises too much or its data is broken.
    """
    try:
        with _image(path if data is None else io.BytesIO(data), path.suffix) as image:
            _check_size(*_stored_size(image))
            image.load()
            profile, upright = _foreign_profile(image), image
            if image.format not in _TURNED_BY_PILLOW and image.getexif().get(_ORIENTATION, 1) != 1:
                upright = ImageOps.exif_transpose(upright)
            if upright.mode.startswith(("I", "F")):
                return Opened(_scaled_down(upright), None)
            upright = _as_srgb(upright, profile)
            if upright.mode not in ("RGBA", "LA", "PA", "RGBa", "La") and "transparency" not in upright.info:
                return Opened(upright if upright.mode == "RGB" else upright.convert("RGB"), None)
            upright = upright.convert("RGBA")
            ground = Image.new("RGBA", upright.size, ImageColor.getrgb(background))
            return Opened(Image.alpha_composite(ground, upright).convert("RGB"), upright.getchannel("A"))
    except UnidentifiedImageError as error:
        raise PictureError("picture.unreadable", reason=_reason(error)) from error
    except _BROKEN as error:
        raise PictureError("picture.damaged", reason=_reason(error)) from error


def open_rgb(path: Path, background: str = "white") -> Image.Image:
    """The picture as 8-bit RGB. Raises PictureError."""
    return open_picture(path, background).rgb


@contextlib.contextmanager
def animation(path: Path) -> Iterator[Image.Image]:
    """The file opened for one frame after the other. Raises PictureError for what is wrong with it, inside the block too."""
    try:
        with _image(path, path.suffix) as image:
            _check_size(*_stored_size(image))
            yield image
    except _BROKEN as error:
        raise PictureError("picture.damaged", reason=_reason(error)) from error


def small_picture(path: Path, side_px: int, background: str = "white") -> Image.Image:
    """At most side_px on each side, decoded small where the format allows it: for looking at, not for training."""
    try:
        with Image.open(path, formats=_formats()) as image:
            if image.format == "JPEG" and not _foreign_profile(image):
                _check_size(*image.size)
                image.draft("RGB", (2 * side_px, 2 * side_px))
                small = (ImageOps.exif_transpose(image) or image).convert("RGB")
                small.thumbnail((side_px, side_px))
                return small
    except _BROKEN:
        pass
    small = open_rgb(path, background)
    small.thumbnail((side_px, side_px))
    return small


def _image(source: Path | io.BytesIO, suffix: str) -> Image.Image:
    """The file opened, not decoded. HEIF through pillow-heif where it is installed, without registering anything for others."""
    if suffix.lower() not in HEIF:
        return Image.open(source, formats=_formats())
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise PictureError("picture.needs_heif") from error
    return HeifImageFile(source)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of _FORMATS this Pillow has."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise PictureError("picture.large", width=width, height=height, limit=MAX_PIXELS // 10**6)


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Size before rotation; Pillow already turns that of a TIFF."""
    if image.format == "TIFF":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        return tags[256], tags[257]
    return image.size


def _scaled_down(image: Image.Image) -> Image.Image:
    """16 and 32 bit grey, scaled instead of clipped to white."""
    values = np.nan_to_num(np.asarray(image, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(values.max())
    top = max(65535.0, largest) if image.mode.startswith("I") else max(1.0, largest)
    return Image.fromarray(np.clip(values / top * 255 + 0.5, 0, 255).astype(np.uint8)).convert("RGB")


def _foreign_profile(image: Image.Image) -> bytes:
    """The colour profile a picture has to be converted from; b"" where there is none, or where it is sRGB already."""
    data = image.info.get("icc_profile") or b""
    return b"" if not data or _is_srgb(data) else data


@functools.lru_cache(maxsize=64)
def _is_srgb(data: bytes) -> bool:
    name = _profile_name(data)
    return name.startswith("sRGB") and "inear" not in name


@functools.cache
def _srgb() -> Any:
    return ImageCms.createProfile("sRGB")


def _profile_name(data: bytes) -> str:
    try:
        return ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(data))).strip() or "ICC"
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return "damaged"


def _as_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Colours as they were meant, in sRGB. A profile that cannot be used leaves the numbers as they are."""
    if not profile:
        return image
    if image.mode in ("P", "PA", "1") or "transparency" in image.info:
        image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    try:
        alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
        plain = image.convert(image.mode[:-1]) if alpha else image
        out = ImageCms.profileToProfile(plain, ImageCms.ImageCmsProfile(io.BytesIO(profile)), _srgb(), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    if out is None:
        return image
    if alpha:
        out.putalpha(alpha)
    return out


def _reason(error: Exception) -> Message | str:
    """Why a picture cannot be read; of other errors a quotation, what the library says."""
    if isinstance(error, UnidentifiedImageError):
        return Message.of("picture.unknown_format")
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
