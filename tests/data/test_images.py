"""Pictures of every mode and format become RGB; huge, damaged and foreign ones are refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sapo_vl.data.images import MAX_IMAGE_PIXELS, blank_like, decode_image


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def only_colour(image: Image.Image) -> tuple[int, ...]:
    assert image.mode == "RGB"
    colours = {tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()}
    assert len(colours) == 1, colours
    return colours.pop()


@pytest.mark.parametrize(
    ("image", "format", "expected"),
    [
        (Image.new("RGB", (3, 2), (1, 2, 3)), "PNG", (1, 2, 3)),
        (Image.new("L", (3, 2), 77), "PNG", (77, 77, 77)),
        (Image.new("1", (3, 2), 1), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (3, 2), (0, 0, 0, 0)), "PNG", (255, 255, 255)),  # see-through black is not black
        (Image.new("RGBA", (3, 2), (0, 100, 200, 51)), "PNG", (204, 224, 244)),  # 0.2 colour + 0.8 white
        (Image.new("LA", (3, 2), (0, 255)), "PNG", (0, 0, 0)),
        (Image.new("I;16", (3, 2), 40_000), "PNG", (156, 156, 156)),  # 40000 // 256, not clipped to white
        (Image.new("CMYK", (3, 2), (0, 255, 255, 0)), "JPEG", (254, 0, 0)),
        (Image.new("RGB", (3, 2), (9, 8, 7)), "BMP", (9, 8, 7)),
        (Image.new("RGB", (3, 2), (255, 0, 0)), "GIF", (255, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb(image, format, expected):
    decoded = decode_image(encoded(image, format))
    assert decoded.size == (3, 2)
    assert np.abs(np.subtract(only_colour(decoded), expected)).max() <= (1 if format == "JPEG" else 0)


def test_palette_images_and_their_transparent_colour():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert only_colour(decode_image(encoded(image, "PNG"))) == (10, 200, 30)
    assert only_colour(decode_image(encoded(image, "PNG", transparency=1))) == (255, 255, 255)


def test_a_photo_is_turned_upright():
    image = Image.new("RGB", (40, 20), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 40, 10))  # the top half is black
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees: the top goes to the right
    turned = np.asarray(decode_image(encoded(image, "JPEG", exif=exif)))
    assert turned.shape == (40, 20, 3)
    assert turned[:, :8].min() > 200 and turned[:, 12:].max() < 50


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (5, 5), colour) for colour in ((0, 0, 255), (255, 0, 0))]
    for format, options in (("GIF", {}), ("WEBP", {"lossless": True})):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert only_colour(decode_image(data)) == (0, 0, 255)


def png_header_only(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return start + struct.pack(">I", 1000) + b"IDAT"  # pixel data is announced and does not come


@pytest.mark.parametrize("side", [8_000, 12_000, 60_000])  # pillow itself is silent, warns, raises
def test_a_huge_image_is_refused_by_its_header(side):
    assert side * side > MAX_IMAGE_PIXELS
    with pytest.raises(ValueError, match=r"over the limit|exceeds limit"):
        decode_image(png_header_only(side, side))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        encoded(Image.new("RGB", (4, 4)), "TIFF"),  # a readable image, of a format that is not allowed
        encoded(Image.effect_noise((64, 64), 50), "PNG")[:900],
        encoded(Image.effect_noise((64, 64), 50), "JPEG")[:300],
        png_header_only(10, 10),
    ],
)
def test_unreadable_images_are_value_errors(data):
    with pytest.raises(ValueError, match=r"not a readable|damaged") as error:
        decode_image(data)
    assert " at 0x" not in str(error.value), "the same data, the same words"


def test_a_blank_image_is_uniform_in_the_commonest_colour():
    image = Image.new("RGB", (6, 4), (1, 2, 3))
    image.putpixel((0, 0), (200, 0, 0))
    blank = blank_like(image)
    assert blank.size == (6, 4) and blank.getcolors() == [(24, (1, 2, 3))]
