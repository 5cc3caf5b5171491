"""Whether two model folders are one model, told by what is in them and cheaply: a moved copy is the same model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO

from sapo_vl.model.folder import ModelError, weight_files

SAMPLE = 4096  # bytes of every tensor that are read: training and another seed change all of it
NOT_THE_MODEL = ("_name_or_path", "transformers_version")  # keys of config.json that say who wrote it, and where


def model_digest(path: str, revision: str | None = None) -> str:
    """32 hex digits of config.json, of names, sizes and headers of the weight files, and of a piece of every tensor.

    A hub id stands for itself and its revision. Raises ModelError naming a weight file that is cut off.
    """
    folder, digest = Path(path), hashlib.blake2b(digest_size=16)
    if not folder.is_dir():
        digest.update(f"{path}@{revision}".encode())
        return digest.hexdigest()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in config.items() if key not in NOT_THE_MODEL}
    digest.update(json.dumps(kept, sort_keys=True).encode())
    for file in (folder / name for name in sorted(weight_files(folder))):
        digest.update(f"{file.name} {file.stat().st_size}".encode())
        with file.open("rb") as data:
            for piece in _pieces(data, file):
                digest.update(piece)
    return digest.hexdigest()


def _pieces(data: BinaryIO, file: Path) -> list[bytes]:
    """The header of a safetensors file, and bytes from the middle of each of its tensors, in file order."""
    length = int.from_bytes(data.read(8), "little")
    if length > file.stat().st_size:
        raise ModelError(f"{file} is no whole safetensors file; copy or download it again")
    raw = data.read(length)
    try:
        header: dict[str, Any] = json.loads(raw)
    except ValueError as error:
        raise ModelError(f"{file} has no safetensors header that can be read; copy or download it again") from error
    pieces = [raw]
    for begin, end in sorted(tuple(t["data_offsets"]) for name, t in header.items() if name != "__metadata__"):
        size = min(SAMPLE, end - begin)
        data.seek(8 + length + (begin + end - size) // 2)
        pieces.append(data.read(size))
    return pieces
