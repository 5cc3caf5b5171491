"""Pictures of every mode and format become RGB; huge, damaged and foreign ones are refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from sapo_vl.data.images import MAX_IMAGE_PIXELS, ImageRefused, blank_like, decode_image, encode_png


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


SHORT, ASCII, LONG, RATIONAL = 3, 2, 4, 5  # types of an EXIF tag
TURNED = (0x0112, SHORT, 1, b"\x06\0")  # orientation 6: to be turned clockwise by 90 degrees


def exif_of(*tags: tuple[int, int, int, bytes], values: bytes = b"") -> bytes:
    """EXIF with tags as (number, type, count, value or its offset), little-endian; `values` lie behind them."""
    written = b"".join(struct.pack("<HHI4s", *tag) for tag in tags)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + written + bytes(4) + values


def with_corners(format: str, **options) -> bytes:
    """40 x 24: red at the top left, green at the top right, blue at the bottom left, white elsewhere."""
    image = Image.new("RGB", (40, 24), (255, 255, 255))
    for corner, colour in (((0, 0), (255, 0, 0)), ((24, 0), (0, 255, 0)), ((0, 16), (0, 0, 255))):
        image.paste(colour, (*corner, corner[0] + 16, corner[1] + 8))
    return encoded(image, format, **options)


def corners(image: Image.Image) -> list[str]:
    """The colours of the corners: top left, top right, bottom left, bottom right."""
    right, bottom = image.width - 2, image.height - 2
    pixels = [image.getpixel(at) for at in ((1, 1), (right, 1), (1, bottom), (right, bottom))]
    names = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 1): "white"}
    return [names[tuple(channel > 127 for channel in pixel)] for pixel in pixels]


@pytest.mark.parametrize(
    "broken",
    [
        (0x011A, ASCII, 4, b"ab\0\0"),  # XResolution, which is a RATIONAL
        (0x011A, 7, 4, b"abcd"),  # bytes
        (0x010E, RATIONAL, 1, struct.pack("<I", 38)),  # ImageDescription, which is text
        (0x0100, ASCII, 4, b"40\0\0"),  # ImageWidth
        (0x8769, ASCII, 4, b"ab\0\0"),  # the offset of more tags
        (0x8769, LONG, 1, b"\xff\xff\xff\0"),  # beyond the end
    ],
)
def test_a_picture_with_a_mistyped_exif_tag_is_turned_and_used(broken):
    exif = exif_of(TURNED, broken, values=struct.pack("<II", 72, 1))
    image = decode_image(with_corners("JPEG", exif=exif, quality=95))
    assert image.size == (24, 40)
    assert corners(image) == ["blue", "red", "white", "green"]


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0no header of a TIFF file",
        exif_of(TURNED)[:20],
        exif_of((0x0112, SHORT, 1, b"\x09\0")),
        exif_of((0x0112, SHORT, 1, b"\0\0")),
        exif_of((0x0112, ASCII, 2, b"6\0")),
        exif_of((0x0112, SHORT, 0, b"")),
    ],
)
def test_a_picture_whose_orientation_cannot_be_read_is_used_as_it_is(exif):
    image = decode_image(with_corners("JPEG", exif=exif, quality=95))
    assert image.size == (40, 24) and corners(image) == ["red", "green", "blue", "white"]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = with_corners(format, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    found = decode_image(data)
    assert found.size == expected.size and found.tobytes() == expected.tobytes()


GOOD_EXIF = exif_of(
    TURNED,
    (0x011A, RATIONAL, 1, struct.pack("<I", 62)),
    (0x0128, SHORT, 1, b"\x02\0"),
    (0x8769, LONG, 1, struct.pack("<I", 8)),
    values=struct.pack("<II", 72, 1),
)
BYTES = st.one_of(st.sampled_from([0, 1, 2, 3, 5, 7, 12, 255]), st.integers(0, 255))  # the first ones are types of tags


@given(
    changes=st.dictionaries(st.integers(6, len(GOOD_EXIF) - 1), BYTES, min_size=1, max_size=4),
    format=st.sampled_from(["JPEG", "PNG", "WEBP"]),
)
@examples(200)
def test_no_exif_breaks_more_than_its_picture(changes, format):
    exif = bytes(changes.get(place, byte) for place, byte in enumerate(GOOD_EXIF))
    try:
        image = decode_image(with_corners(format, exif=exif))
    except ImageRefused:
        return
    assert image.size in ((40, 24), (24, 40))


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


def chunks(png: bytes) -> list[bytes]:
    """The names of the chunks of a PNG file."""
    names, place = [], 8
    while place < len(png):
        (length,) = struct.unpack_from(">I", png, place)
        names.append(png[place + 4 : place + 8])
        place += 12 + length
    return names


def with_a_profile(mode: str) -> bytes:
    """A JPEG of noise with more than its pixels: a colour profile over the 1 MiB that a reader of PNG inflates."""
    rng = np.random.default_rng(len(mode))
    bands = [Image.fromarray(rng.integers(0, 256, (9, 7), np.uint8)) for _ in mode]
    exif = Image.Exif()
    exif[0x010E] = "what is seen"
    extra = {"icc_profile": bytes(2_000_000), "exif": exif, "dpi": (300, 300), "comment": b"made by hand"}
    return encoded(Image.merge(mode, bands), "JPEG", **extra)


@pytest.mark.parametrize("mode", ["CMYK", "RGB", "L"])
def test_nothing_but_pixels_is_kept_of_a_picture(mode):
    decoded = decode_image(with_a_profile(mode))
    assert decoded.info == {}
    png = encode_png(decoded)
    read = decode_image(png)
    assert read.size == (7, 9) and read.tobytes() == decoded.tobytes()
    assert set(chunks(png)) == {b"IHDR", b"IDAT", b"IEND"}


def test_a_png_is_written_without_the_profile_of_its_source():
    with Image.open(io.BytesIO(with_a_profile("RGB"))) as image:  # as a recipe may open one itself
        png = encode_png(image)
        assert decode_image(png).tobytes() == image.tobytes()
    assert set(chunks(png)) == {b"IHDR", b"IDAT", b"IEND"}


def test_a_blank_image_is_uniform_in_the_commonest_colour():
    image = Image.new("RGB", (6, 4), (1, 2, 3))
    image.putpixel((0, 0), (200, 0, 0))
    blank = blank_like(image)
    assert blank.size == (6, 4) and blank.getcolors() == [(24, (1, 2, 3))]
