"""Pictures for the page: small ones as they are, large ones as smaller JPEGs."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

from PIL import Image

from sapo_vl.data.images import IMAGE_FORMATS, ImageRefused, decode_image

_SIZE = re.compile(rb"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")
STARTS = {"png": b"\x89PNG", "jpeg": b"\xff\xd8\xff"}  # of files that a browser shows as they are
_HASH = re.compile(r"[0-9a-f]{8,64}")
AS_IS = 60_000  # bytes of a file that goes into the page as it is
SIDE = 768  # pixels of the longer side of one that does not


def saved_image(folder: Path, name: str) -> dict[str, Any] | None:
    """The image of that hash in <folder>/images; None if the run did not save it, or the name is no hash."""
    path = folder / "images" / f"{name}.png"
    if not _HASH.fullmatch(name) or not path.is_file():
        return None
    return picture(path.read_bytes())


def picture(data: bytes) -> dict[str, Any] | None:
    """{"src": a data URI, "w", "h": pixels of the picture itself}; None for bytes that are no picture."""
    try:
        image = decode_image(data)
    except ImageRefused:
        return None
    size = dict(zip("wh", _whole_size(data) or image.size, strict=True))
    if len(data) <= AS_IS:
        for kind, start in STARTS.items():
            if data.startswith(start):
                return {"src": _uri(kind, data), **size}
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=82)
    return {"src": _uri("jpeg", out.getvalue()), **size}


def _whole_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of the picture that a small copy was made of, as its comment says; None where there is none."""
    comment = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS).info.get("comment")
    told = _SIZE.fullmatch(comment) if isinstance(comment, bytes) else None
    return (int(told[1]), int(told[2])) if told else None


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
