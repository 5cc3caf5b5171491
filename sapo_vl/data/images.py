"""Reading pictures that somebody else made: limits are checked on the header, everything ends as RGB."""

from __future__ import annotations

import base64
import io
import math
import os
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import unquote

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # of an animation the first frame is taken
MAX_IMAGE_PIXELS = 50_000_000  # a decoded RGB image of this size takes 150 MB
MAX_IMAGE_BYTES = 50_000_000  # of the file, checked before anything of it is read
MAX_ASPECT = 200  # longer side by shorter one: the limit of qwen-vl-utils and of transformers' own resizing

MAX_ROW_PIXELS = 400_000_000  # of all pictures of a row: decoded they are in memory together, 3 bytes a pixel
KEPT_PIXELS = 4_000_000  # a larger picture of a problem is kept as its file, and decoded when it is looked at

# Why a picture is refused, as it is counted. The message of the error has the details.
Refusal = Literal[
    "missing",  # no cell, an empty one, or a path to nothing
    "url",  # nothing is fetched while rows are read
    "outside",  # a path that leaves the folder of the data
    "link",  # a symbolic link that leads out of it
    "not a file",  # a folder, a device, a pipe
    "too many bytes",
    "too many pixels",
    "aspect ratio",  # over MAX_ASPECT: a whole picture, but one that no Qwen-VL processor takes
    "wrong type",  # not one of IMAGE_FORMATS, or no image cell at all
    "damaged",  # of a known format, but cut off or malformed
]
REFUSALS: tuple[Refusal, ...] = get_args(Refusal)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")  # two characters at least: "C:" is a drive
_DATA_URI = re.compile(r"data:[^,]{0,200};base64,", re.I)
# The first characters of base64 of PNG, JPEG, GIF, WebP (RIFF) and BMP files; nobody's path starts like the long ones.
_BASE64_START = re.compile(r"iVBORw0KGgo|/9j/|_9j_|R0lGODdh|R0lGODlh|UklGR")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,3}")
MIN_BASE64 = 40  # characters; no picture of these formats is shorter
MAX_NAME = 255  # characters of a file's name; a longer text of nothing but base64 characters is no path


class ImageRefused(ValueError):
    """A picture that cannot or must not be read; `kind` is the reason in the words of REFUSALS."""

    def __init__(self, kind: Refusal, message: str) -> None:
        super().__init__(message)
        self.kind: Refusal = kind


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


# What turns a picture upright, by its EXIF orientation. 1 is upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(data: bytes) -> Image.Image:
    """The image in `data` as RGB, turned upright if its EXIF header says so and can be read; only the pixels are kept.

    Raises ImageRefused, a ValueError, if there are more than MAX_IMAGE_BYTES, the format is not one of
    IMAGE_FORMATS, the header announces more than MAX_IMAGE_PIXELS pixels or sides of more than MAX_ASPECT to 1
    (nothing is decoded then), or the data is damaged.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise ImageRefused("too many bytes", f"{len(data)} bytes, over the limit of {MAX_IMAGE_BYTES}")
    try:
        with warnings.catch_warnings():
            # Pillow warns about large images; the limit below is the lower one and raises.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except UnidentifiedImageError as error:
        # Its text holds the address of our buffer, which would differ from run to run in logs and checkpoints.
        message = f"not a readable {'/'.join(IMAGE_FORMATS)} image ({len(data)} bytes)"
        raise ImageRefused("wrong type", message) from error
    except Image.DecompressionBombError as error:
        raise ImageRefused("too many pixels", str(error)) from error
    except _DECODE_ERRORS as error:
        raise ImageRefused("damaged", f"not a readable {'/'.join(IMAGE_FORMATS)} image ({error})") from error
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        message = f"image of {width}x{height} pixels is over the limit of {MAX_IMAGE_PIXELS} pixels"
        raise ImageRefused("too many pixels", message)
    if max(width, height) > MAX_ASPECT * min(width, height):
        message = f"image of {width}x{height} pixels: one side is over {MAX_ASPECT} times the other; crop or split it"
        raise ImageRefused("aspect ratio", message)
    try:
        image.load()
    except _DECODE_ERRORS as error:
        raise ImageRefused("damaged", f"damaged {image.format} image ({error})") from error
    picture = to_rgb(_upright(image))
    picture.info.clear()  # megabytes at worst, which every copy would keep and some writers would pass on
    return picture


def _upright(image: Image.Image) -> Image.Image:
    """A copy of `image`, turned as its EXIF header says; as it is where there is none or it cannot be read.

    Not ImageOps.exif_transpose: it writes the whole EXIF anew, which raises for any tag of a wrong type.
    """
    try:
        turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises all kinds for malformed EXIF, which says nothing about the pixels
        turn = None
    return image.copy() if turn is None else image.transpose(turn)


def read_image(cell: Any, root: Path | None = None) -> Image.Image:
    """The picture in a cell of somebody else's data set, as `decode_image` gives it.

    A cell is {"bytes", "path"} as `datasets` stores images, bytes, a path relative to `root` (a leading "file://" is
    dropped), a data URI, or base64 alone; base64 may have line breaks, the URL-safe alphabet or no padding. Nothing is
    ever fetched, and no file outside of `root` is read.

    Args:
        root: folder that paths start at and stay in; None where the data has no files of its own.

    Raises:
        ImageRefused: with the reason.
    """
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path") or cell.get("url")
    if is_missing(cell):
        raise ImageRefused("missing", "the image is missing")
    if isinstance(cell, bytes):
        return decode_image(_from_base64_bytes(cell))
    if not isinstance(cell, str):
        raise ImageRefused("wrong type", f"an image must be bytes or a path, got {type(cell).__name__}")
    if (written := _base64_in(cell)) is not None:
        data = _from_base64(written)
        try:
            return decode_image(data)
        except ImageRefused as error:
            raise ImageRefused(error.kind, f"base64 of {len(data)} bytes: {error}") from error
    return decode_image(_read_file(cell.removeprefix("file://"), root))


def is_missing(cell: Any) -> bool:
    """Whether nothing stands in a cell: null, NaN (as pandas writes null), a text of white space, {} or no bytes."""
    if isinstance(cell, float):
        return math.isnan(cell)
    if isinstance(cell, str):
        return not cell.strip()
    return cell is None or (isinstance(cell, bytes | Mapping | list | tuple) and not cell)


def _base64_in(cell: str) -> str | None:
    """The base64 in a data URI, or the cell itself if it is nothing else; None where it must be a path."""
    if uri := _DATA_URI.match(cell):
        payload = cell[uri.end() :]
        return unquote(payload) if "%" in payload else payload
    if cell[:5].lower() == "data:":
        raise ImageRefused("wrong type", f"{cell[:40]!r} is a data URI without base64; write data:image/png;base64,...")
    if len(cell) < MIN_BASE64:
        return None
    cell = cell[2:-1] if cell[:2] in ("b'", 'b"') else cell  # what str() makes of bytes
    if _BASE64_START.match(cell.lstrip()):
        return cell
    plain = "".join(cell.split())
    is_bmp = plain.startswith("Qk") and len(plain) >= MIN_BASE64
    return cell if (is_bmp or len(plain) > MAX_NAME) and _BASE64.fullmatch(plain) else None


def _from_base64(text: str) -> bytes:
    """The bytes that `text` spells: with white space, in either alphabet, padded or not. Raises ImageRefused."""
    plain = "".join(text.split()).rstrip("=").translate(str.maketrans("-_", "+/"))
    if len(plain) * 3 // 4 > MAX_IMAGE_BYTES:
        raise ImageRefused("too many bytes", f"base64 of {len(plain)} characters, over {MAX_IMAGE_BYTES} bytes")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except ValueError as error:  # binascii.Error, or characters beyond ASCII
        raise ImageRefused("damaged", f"the image is no base64 ({error}): {text[:40]!r}") from error


def _from_base64_bytes(data: bytes) -> bytes:
    """`data`, or what it spells where it is base64 text stored as bytes."""
    start = data[:16].lstrip().decode("latin-1")
    if len(data) < MIN_BASE64 or not _BASE64_START.match(start):
        return data
    return _from_base64(data.decode("latin-1"))


def _read_file(name: str, root: Path | None) -> bytes:
    """The bytes of the file `name` under `root`. Raises ImageRefused."""
    if _SCHEME.match(name):
        raise ImageRefused("url", f"{name[:80]!r} is an address; nothing is fetched while rows are read")
    if root is None:
        raise ImageRefused("missing", f"{name[:80]!r} is missing: it is a path, and this data has no folder of its own")
    if "\0" in name:
        raise ImageRefused("outside", f"{name[:80]!r} is no path")
    root = root.resolve()
    plain = Path(os.path.normpath(root / name))
    if not plain.is_relative_to(root):
        raise ImageRefused("outside", f"{name[:80]!r} leads out of the folder of the data")
    try:
        path = plain.resolve()
        if not path.is_relative_to(root):
            raise ImageRefused("link", f"{name[:80]!r} is a link out of the folder of the data")
        # Not following links again: the file may have been swapped since. Not blocking: it may be a pipe.
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ImageRefused("not a file", f"{name[:80]!r} is not a regular file")
            if found.st_size > MAX_IMAGE_BYTES:
                message = f"{name[:80]!r} has {found.st_size} bytes, over the limit of {MAX_IMAGE_BYTES}"
                raise ImageRefused("too many bytes", message)
            return file.read(MAX_IMAGE_BYTES + 1)
    except IsADirectoryError as error:
        raise ImageRefused("not a file", f"{name[:80]!r} is not a regular file") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        why = getattr(error, "strerror", None) or str(error)[:100]  # without the name again, which may be long
        raise ImageRefused("missing", f"{name[:80]!r} is missing or cannot be read: {why}") from error


class Pictures(Sequence[Image.Image]):
    """The pictures of a problem, the large ones as the files they came in, which are decoded each time.

    A batch holds its problems until it is learned from: a hundred decoded pictures of 20 megapixels would be 6 GB.
    """

    def __init__(self, kept: Sequence[Image.Image | bytes]) -> None:
        """`kept`: pictures, and files that `decode_image` has read before."""
        self._kept = tuple(kept)

    @staticmethod
    def of(pictures: Iterable[tuple[Image.Image, Callable[[], bytes]]]) -> Sequence[Image.Image]:
        """From pictures and what gives the file of one. Without a large one among them a plain tuple."""
        kept = [image if image.width * image.height <= KEPT_PIXELS else file() for image, file in pictures]
        plain = tuple(one for one in kept if not isinstance(one, bytes))
        return plain if len(plain) == len(kept) else Pictures(kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: Any) -> Any:
        found = self._kept[index]
        if isinstance(found, tuple):
            return Pictures(found)
        return decode_image(found) if isinstance(found, bytes) else found


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
    """The pixels of `image` as PNG bytes, lossless; low compression because the rows of a recipe are small and many.

    Without the colour profile that Pillow would copy from the file the image came in: nobody here looks at it, and
    no reader takes a PNG with one over 1 MiB, which a JPEG may have. Pillow copies no text, EXIF or resolution.
    """
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1, icc_profile=None)
    return buffer.getvalue()


def blank_like(image: Image.Image) -> Image.Image:
    """A uniform image of the same size in the most frequent colour, usually the background.

    Any other colour would be unlike everything a model has seen: it would then fail for surprise, and the control
    would not show what can be answered without looking.
    """
    # Not getcolors: a list of as many tuples as there are colours, gigabytes for a photograph.
    channels = np.asarray(image.convert("RGB"), np.uint8).reshape(-1, 3)
    packed = (channels[:, 0].astype(np.uint32) << 16) | (channels[:, 1].astype(np.uint32) << 8) | channels[:, 2]
    colours, counts = np.unique(packed, return_counts=True)
    colour = int(colours[counts == counts.max()][-1])  # of equally frequent ones the brightest red, green, blue
    return Image.new("RGB", image.size, (colour >> 16, colour >> 8 & 255, colour & 255))
