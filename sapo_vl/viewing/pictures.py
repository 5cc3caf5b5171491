"""Pictures for the page: small ones as they are, large ones as smaller JPEGs."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

from sapo_vl.data.images import ImageRefused, decode_image

_HASH = re.compile(r"[0-9a-f]{8,64}")
AS_IS = 60_000  # bytes of a PNG that goes into the page as it is
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
    size = {"w": image.width, "h": image.height}
    if len(data) <= AS_IS and data.startswith(b"\x89PNG"):
        return {"src": _uri("png", data), **size}
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=82)
    return {"src": _uri("jpeg", out.getvalue()), **size}


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
