"""Image files of every kind become upright uint8 RGB, or a DataError that names the file."""

import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.readers.voc_tree import pixels
from wsod_jax.data.images import image_size, read_image
from wsod_jax.errors import DataError


def encode(image, **options):
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def test_rgb_png_is_exact_from_path_string_bytes_and_function(tmp_path):
    expected = pixels(0, 7, 11)
    path = tmp_path / "a.png"
    Image.fromarray(expected).save(path)
    for source in (path, str(path), path.read_bytes(), path.read_bytes.__call__):
        image = read_image(source)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, expected)
        assert image_size(source) == (7, 11)


def test_grayscale_is_repeated():
    gray = pixels(1, 4, 6)[..., 0]
    image = read_image(encode(Image.fromarray(gray), format="PNG"))
    np.testing.assert_array_equal(image, np.repeat(gray[..., None], 3, axis=2))


def test_one_bit_becomes_black_and_white():
    bits = np.array([[True, False], [False, True]])
    image = read_image(encode(Image.fromarray(bits), format="PNG"))
    np.testing.assert_array_equal(image[..., 0], bits * 255)


def test_cmyk_jpeg_keeps_its_color():
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    image = read_image(encode(red, format="JPEG", quality=95))
    assert image.shape == (16, 16, 3)
    assert np.abs(image[8, 8].astype(int) - [255, 0, 0]).max() < 12


def test_palette_png_with_alpha_lies_over_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putpixel((1, 0), 1)
    encoded = encode(image, format="PNG", transparency=0)
    np.testing.assert_array_equal(read_image(encoded), [[[255, 255, 255], [200, 0, 0]]])


def test_half_transparent_pixel_is_blended_with_white():
    image = read_image(encode(Image.new("RGBA", (1, 1), (0, 0, 0, 128)), format="PNG"))
    np.testing.assert_allclose(image, 127, atol=1)


def test_sixteen_bit_keeps_the_high_byte():
    values = np.array([[0, 255, 256], [0x1234, 0xFF00, 0xFFFF]], np.uint16)
    image = read_image(encode(Image.fromarray(values), format="PNG"))
    np.testing.assert_array_equal(image[..., 1], values >> 8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_to_pixels_and_size(orientation, kind):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255  # the top-left quarter
    # How the sensor saw what `orientation` turns upright, after the EXIF table (row 0 / column 0 is ...).
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a.transpose(1, 0, 2)[::-1],
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    encoded = encode(
        Image.fromarray(np.ascontiguousarray(stored)), format=kind, exif=exif, **options
    )
    image = read_image(encoded)
    assert image_size(encoded) == image.shape[:2] == (16, 32)
    assert np.abs(image.astype(int) - upright).max() < 40  # JPEG is lossy
    assert image[2, 2, 0] > 215 and image[2, 29, 0] < 40 and image[13, 2, 0] < 40


def test_invalid_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 77
    encoded = encode(Image.fromarray(pixels(0, 5, 9)), format="PNG", exif=exif)
    assert image_size(encoded) == read_image(encoded).shape[:2] == (5, 9)


def test_one_pixel_and_very_wide():
    assert read_image(encode(Image.new("RGB", (1, 1), (1, 2, 3)), format="PNG")).tolist() == [
        [[1, 2, 3]]
    ]
    encoded = encode(Image.new("RGB", (20_000, 3)), format="PNG")
    assert image_size(encoded) == read_image(encoded).shape[:2] == (3, 20_000)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_file_is_named(tmp_path, kind):
    path = tmp_path / "half.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    encoded = encode(Image.fromarray(noise), format=kind)
    path.write_bytes(encoded[: len(encoded) // 2])
    with pytest.raises(DataError, match="half.jpg"):
        read_image(path)
    assert image_size(path) == (64, 64)  # the header is whole


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"\xff\xd8\xff"]
)
def test_rubbish_is_named(tmp_path, content):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    for read in (read_image, image_size):
        with pytest.raises(DataError, match="bad.png"):
            read(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match="nothing.jpg"):
        read_image(tmp_path / "nothing.jpg")
    with pytest.raises(DataError):
        image_size(tmp_path)


def test_decompression_bomb_is_refused():
    # A PNG header that promises 60 000 x 60 000 pixels in a few bytes.
    encoded = bytearray(encode(Image.new("L", (1, 1)), format="PNG"))
    encoded[16:24] = (60_000).to_bytes(4, "big") * 2
    encoded[29:33] = zlib.crc32(bytes(encoded[12:29])).to_bytes(4, "big")
    for read in (read_image, image_size):
        with pytest.raises(DataError, match="too large"):
            read(bytes(encoded))


def test_floating_point_image_is_refused():
    encoded = encode(Image.fromarray(np.ones((2, 2), np.float32)), format="TIFF")
    with pytest.raises(DataError, match="floating-point"):
        read_image(encoded)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]),
    position=st.floats(0, 0.999),
    value=st.integers(0, 255),
)
def test_damaged_files_are_read_or_refused(kind, position, value):
    encoded = bytearray(encode(Image.fromarray(pixels(3, 12, 9)), format=kind))
    encoded[int(position * len(encoded))] = value
    try:
        image = read_image(bytes(encoded), name="damaged")
    except DataError as error:
        assert "damaged" in str(error)
    else:
        assert image.dtype == np.uint8 and image.shape[2] == 3
