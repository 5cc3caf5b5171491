"""Reading pictures that somebody else made: limits are checked on the header, everything ends as RGB."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # of an animation the first frame is taken
MAX_IMAGE_PIXELS = 50_000_000  # a decoded RGB image of this size takes 150 MB

# What Pillow's decoders raise on data that is cut off or malformed.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def decode_image(data: bytes) -> Image.Image:
    """The image in `data` as RGB, turned upright if its EXIF header says so.

    Raises ValueError if the format is not one of IMAGE_FORMATS, the header announces more than
    MAX_IMAGE_PIXELS pixels (nothing is decoded then), or the data is damaged.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns about large images; the limit below is the lower one and raises.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except UnidentifiedImageError as error:
        # Its text holds the address of our buffer, which would differ from run to run in logs and checkpoints.
        raise ValueError(f"not a readable {'/'.join(IMAGE_FORMATS)} image ({len(data)} bytes)") from error
    except _DECODE_ERRORS as error:
        raise ValueError(f"not a readable {'/'.join(IMAGE_FORMATS)} image ({error})") from error
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        raise ValueError(f"image of {width}x{height} pixels is over the limit of {MAX_IMAGE_PIXELS} pixels")
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
    except _DECODE_ERRORS as error:
        raise ValueError(f"damaged {image.format} image ({error})") from error
    return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` as RGB whatever its mode: transparent parts become white, 16-bit grey is scaled down."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit grey: "I;16*", or "I" where the file's reader widens it
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        # A drawing on a transparent ground is often black on (0, 0, 0, 0): without alpha all would be black.
        picture = image.convert("RGBA")
        ground = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, picture).convert("RGB")
    return image.convert("RGB")


def encode_png(image: Image.Image) -> bytes:
    """`image` as PNG bytes, lossless; low compression because the rows of a recipe are small and many."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def blank_like(image: Image.Image) -> Image.Image:
    """A uniform image of the same size in the most frequent colour, usually the background.

    Any other colour would be unlike everything a model has seen: it would then fail for surprise, and the control
    would not show what can be answered without looking.
    """
    colours = image.convert("RGB").getcolors(image.width * image.height)
    assert colours is not None  # there cannot be more colours than pixels
    return Image.new("RGB", image.size, max(colours)[1])
