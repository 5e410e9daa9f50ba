"""Image files of any mode -> upright uint8 RGB arrays; and their sizes from the header alone."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from wsod_jax.errors import DataError

ImageSource = Path | Callable[[], bytes]

SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm",
    ".jp2", ".avif",
)  # fmt: skip
# Photographs in formats that Pillow does not read without plug-ins.
UNREAD_SUFFIXES = (".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw")

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Exceptions of Pillow's decoders for broken files.
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    struct.error,
)
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def read_image(source: str | ImageSource | bytes, *, name: str | None = None) -> np.ndarray:
    """Read an image as 8-bit RGB, turned upright by its EXIF orientation.

    Grayscale is repeated over the channels, CMYK and palettes are converted, 16-bit values keep their
    high byte, transparent pixels are blended with white, and only the first frame of animations is read.

    Args:
      source: a path, the encoded bytes, or a function that returns the encoded bytes.
      name: of the image for errors; the path by default.

    Returns:
      [h, w, 3] uint8 RGB; not necessarily writeable.

    Raises:
      DataError: if the file is missing, truncated, not an image, of a floating-point mode, or of more
        pixels than Pillow's limit against decompression bombs (179 million by default).
    """
    name = name or _name(source)
    try:
        with _open(source) as image:
            turn = _UPRIGHT.get(_orientation(image))
            image.load()
            rgb = _to_rgb(image, name)
            return np.asarray(rgb if turn is None else rgb.transpose(turn))
    except DataError:
        raise
    except _BOMB as error:
        raise DataError(_bomb_message(name, error)) from error
    except BROKEN as error:
        raise DataError(_broken_message(name, error)) from error


def image_size(source: str | ImageSource | bytes, *, name: str | None = None) -> tuple[int, int]:
    """Return an image's upright (height, width) from its header, without decoding pixels.

    Args:
      source: as in `read_image`.
      name: of the image for errors; the path by default.

    Returns:
      (height, width) in pixels, equal to the shape that `read_image` returns.

    Raises:
      DataError: if the header cannot be read or declares too many pixels.
    """
    name = name or _name(source)
    try:
        with _open(source) as image:
            width, height = image.size
            return (width, height) if _orientation(image) >= 5 else (height, width)
    except _BOMB as error:
        raise DataError(_bomb_message(name, error)) from error
    except BROKEN as error:
        raise DataError(_broken_message(name, error)) from error


def encode(image: np.ndarray) -> bytes:
    """Return an image [h, w, 3] uint8 RGB as the bytes of a lossless file.

    Raises:
      DataError: for another shape or type.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise DataError(
            f"an array must be one image, [height, width, 3] uint8 RGB in 0..255; found {list(image.shape)} "
            f"{image.dtype}."
        )
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "BMP")
    return file.getvalue()


def text_of_name(name: str) -> str:
    """Return a file name as valid Unicode: bytes that are not UTF-8 become backslash escapes.

    Args:
      name: from `os` or `pathlib`, with surrogates for such bytes.

    Returns:
      The name, with such bytes escaped: `\\udce9`, six characters, for the byte E9.
    """
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _name(source: str | ImageSource | bytes) -> str:
    return str(source) if isinstance(source, str | Path) else "<image in memory>"


def _open(source: str | ImageSource | bytes) -> Image.Image:
    if callable(source):
        source = source()
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1..8, if the header before the pixels has it, else 1."""
    if image.format == "TIFF":  # Pillow applies it itself
        return 1
    if image.format == "PNG" and "exif" not in image.info:  # getexif would decode the pixels
        return 1
    value = image.getexif().get(_EXIF_ORIENTATION, 1)
    return value if value in _UPRIGHT else 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise DataError(
            f"{name}: floating-point pixels have no standard range; save it as 8 or 16 bit."
        )
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        high_byte = np.clip(values >> 8, 0, 255).astype(np.uint8)
        return Image.fromarray(high_byte).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")


def _bomb_message(name: str, error: BaseException) -> str:
    return f"{name}: refused, the image is too large to be safe ({error}). Shrink it first."


def _broken_message(name: str, error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{name}: no such image file."
    if Path(name).suffix.lower() in UNREAD_SUFFIXES:
        return f"{name}: this format is not supported; convert it to JPEG."
    return f"{name}: not a readable image ({error}). It may be truncated; copy or re-encode it."
