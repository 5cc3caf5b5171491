"""Pictures that lie in a zip beside the rows, read one by one: nothing is unpacked."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path, PurePosixPath

from PIL import Image

from sapo_vl.data.images import MAX_IMAGE_BYTES, ImageRefused, decode_image
from sapo_vl.data.problem_set import DataError


class PictureArchive:
    """A zip of pictures under the paths that rows have, with or without their first folder."""

    def __init__(self, path: Path) -> None:
        """Raises DataError if it is no zip."""
        try:
            self._file = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is no zip archive of pictures ({error})") from error
        self._members = {info.filename: info for info in self._file.infolist() if not info.is_dir()}

    def __contains__(self, name: str) -> bool:
        return self._member(name) is not None

    def image(self, name: str) -> Image.Image:
        """The picture of that path. Raises ImageRefused."""
        info = self._member(name)
        if info is None:
            raise ImageRefused("missing", f"{name[:80]!r} is missing in the archive of pictures")
        if info.file_size > MAX_IMAGE_BYTES:
            message = f"{name[:80]!r} has {info.file_size} bytes, over the limit of {MAX_IMAGE_BYTES}"
            raise ImageRefused("too many bytes", message)
        try:
            with self._file.open(info) as file:
                data = file.read(MAX_IMAGE_BYTES + 1)  # what the header announces need not be true
        except (OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            raise ImageRefused("damaged", f"{name[:80]!r} cannot be taken out of the archive ({error})") from error
        return decode_image(data)

    def _member(self, name: str) -> zipfile.ZipInfo | None:
        plain = PurePosixPath(name.removeprefix("file://"))
        found = self._members.get(str(plain))
        return found or self._members.get(str(PurePosixPath(*plain.parts[1:])))
