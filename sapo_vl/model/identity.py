"""Whether two model folders are one model, told by what is in them and cheaply: a moved copy is the same model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from sapo_vl.model.folder import ModelError, weight_files
from sapo_vl.strict import Unreadable, parse_json, read_mapping

SAMPLE = 4096  # bytes of every tensor that are read: training and another seed change all of it
NOT_THE_MODEL = ("_name_or_path", "transformers_version")  # keys of config.json that say who wrote it, and where


def model_digest(path: str, revision: str | None = None) -> str:
    """32 hex digits of config.json, of names, sizes and headers of the weight files, and of a piece of every tensor.

    A hub id stands for itself and its revision. Raises ModelError naming a file that is missing or damaged.
    """
    folder, digest = Path(path), hashlib.blake2b(digest_size=16)
    if not folder.is_dir():
        digest.update(f"{path}@{revision}".encode())
        return digest.hexdigest()
    try:
        config = read_mapping(folder / "config.json")
    except Unreadable as error:
        raise ModelError(f"{error}; get the folder again") from error
    kept = {key: value for key, value in config.items() if key not in NOT_THE_MODEL}
    digest.update(json.dumps(kept, sort_keys=True).encode())
    for file in (folder / name for name in sorted(weight_files(folder))):
        try:
            with file.open("rb") as data:
                digest.update(f"{file.name} {file.stat().st_size}".encode())
                for piece in _pieces(data, file):
                    digest.update(piece)
        except OSError as error:
            raise ModelError(f"{file} cannot be read ({error.strerror}); copy or download it again") from error
    return digest.hexdigest()


def _pieces(data: BinaryIO, file: Path) -> list[bytes]:
    """The header of a safetensors file, and bytes from the middle of each of its tensors, in file order."""
    length = int.from_bytes(data.read(8), "little")
    if length > file.stat().st_size:
        raise ModelError(f"{file} is no whole safetensors file; copy or download it again")
    raw = data.read(length)
    try:
        header: dict[str, Any] = parse_json(raw)
        places = sorted(_place(tensor) for name, tensor in header.items() if name != "__metadata__")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} has no safetensors header that can be read; copy or download it again") from error
    pieces = [raw]
    for begin, end in places:
        size = min(SAMPLE, end - begin)
        data.seek(8 + length + (begin + end - size) // 2)
        pieces.append(data.read(size))
    return pieces


def _place(tensor: Mapping[str, Any]) -> tuple[int, int]:
    begin, end = tensor["data_offsets"]
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
        raise ValueError(f"{tensor['data_offsets']} is no place in a file")
    return begin, end
