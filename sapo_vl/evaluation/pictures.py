"""Small copies of the items' pictures beside the records, so that results can be looked at without their source."""

from __future__ import annotations

import io
import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from PIL import Image

from sapo_vl.types import Problem

log = logging.getLogger(__name__)
FOLDER = "pictures"
MAX_BYTES = 40_000  # of a copy
PER_ITEM = 8  # pictures of an item that are kept, from the first
SIZES = ((512, 85), (512, 70), (384, 60), (256, 50), (128, 40))  # (longest side in pixels, quality), until one is small


class PictureFolder:
    """<first 32 hex digits of the item's prompt hash>.<place among its pictures>.jpg: equal prompts, equal names, so an
    evaluation that is repeated in training adds nothing. sapo_vl.viewing.evaluations reads them."""

    def __init__(self, folder: Path, items: Collection[str]) -> None:
        """items: ids of those whose pictures are kept."""
        self._folder, self._items = folder, frozenset(items)
        self._failed = False

    def new(self, problem: Problem, prompt: str) -> dict[str, bytes]:
        """Name -> JPEG of the pictures of an item that is to be kept and is not there yet; `prompt` is its hash."""
        if problem.id not in self._items:
            return {}
        names = [f"{prompt[:32]}.{i}.jpg" for i in range(min(PER_ITEM, len(problem.images)))]
        if (self._folder / names[-1]).exists() if names else True:
            return {}
        return {name: small_copy(problem.images[i]) for i, name in enumerate(names)}

    def write(self, files: Mapping[str, bytes]) -> None:
        """Each file appears when complete. A disk that is full costs pictures, with one warning, and no result."""
        try:
            for name, data in files.items():
                self._folder.mkdir(parents=True, exist_ok=True)
                beside = self._folder / f".{name}.tmp"
                try:
                    beside.write_bytes(data)
                    beside.replace(self._folder / name)
                finally:
                    beside.unlink(missing_ok=True)
        except OSError as error:
            if not self._failed:
                log.warning("%s: pictures of items were not written (%s)", self._folder, error)
            self._failed = True


def small_copy(image: Image.Image) -> bytes:
    """A JPEG of at most MAX_BYTES; its comment is the size of the picture itself, "640x480"."""
    data = b""
    for side, quality in SIZES:
        copy = image.convert("RGB")
        copy.thumbnail((side, side))
        out = io.BytesIO()
        copy.save(out, "JPEG", quality=quality, comment=f"{image.width}x{image.height}".encode())
        data = out.getvalue()
        if len(data) <= MAX_BYTES:
            break
    return data
