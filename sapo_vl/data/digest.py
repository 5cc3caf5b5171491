"""A digest of the rows of a data set, in a time that goes with their number and not with the bytes of their images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

PIECE = 64  # bytes of an image that are read at a third, at two thirds and at the end of it
IMAGES_AT_A_TIME = 10_000


def table_digest(table: pa.Table, columns: Sequence[str]) -> str:
    """32 hex digits of these columns, which hold text or lists of images ({"bytes", ...}), and of the order of rows.

    Text is read whole. Of an image its length and three short pieces, the last of them its end, where a PNG has a
    checksum of all its pixels. How the rows are cut into files and chunks makes no difference.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in columns:
        chunks = table.column(name).chunks
        digest.update(f"{name} {table.num_rows}".encode())
        for piece in _text(chunks) if _is_text(table.schema.field(name).type) else _images(chunks):
            digest.update(np.ascontiguousarray(piece).data)
    return digest.hexdigest()


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _text(chunks: Sequence[pa.Array]) -> Iterator[np.ndarray]:
    """The length of every cell (-1 for none), then all bytes."""
    yield from (_filled(pc.call_function("binary_length", [chunk])) for chunk in chunks)
    for chunk in chunks:
        values, at = _bytes_of(chunk)
        yield values[at[0] : at[-1]]


def _images(chunks: Sequence[pa.Array]) -> Iterator[np.ndarray]:
    """How many images every row has, the length of each, then pieces of each."""
    yield from (_filled(pc.call_function("list_value_length", [chunk])) for chunk in chunks)
    cells = [chunk.flatten().field("bytes") for chunk in chunks]
    yield from (_filled(pc.call_function("binary_length", [c])) for c in cells)
    for c in cells:
        for start in range(0, len(c), IMAGES_AT_A_TIME):
            yield _pieces(*_bytes_of(c.slice(start, IMAGES_AT_A_TIME)))


def _pieces(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """[images, 3, PIECE] uint8; zeros where an image is shorter than a piece."""
    begin, length = at[:-1, None], np.diff(at)[:, None]
    first = begin + np.maximum(0, length * np.arange(1, 4) // 3 - PIECE)  # [images, 3]
    inside = np.arange(PIECE) < np.minimum(length, PIECE)[:, :, None]  # [images, 1, PIECE]
    index = np.where(inside, first[:, :, None] + np.arange(PIECE), 0)
    return np.where(inside, values[index], 0).astype(np.uint8) if len(values) else np.zeros(index.shape, np.uint8)


def _filled(lengths: pa.Array) -> np.ndarray:
    """[cells] int64, -1 where there is nothing."""
    return lengths.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)


def _bytes_of(cells: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(bytes [n] uint8 of a column of text or binary, [cells + 1] int64 where each cell begins and the last ends)."""
    _, offsets, values = cells.buffers()
    if offsets is None or not len(cells):
        return np.zeros(0, np.uint8), np.zeros(len(cells) + 1, np.int64)
    large = pa.types.is_large_string(cells.type) or pa.types.is_large_binary(cells.type)
    at = np.frombuffer(offsets, np.int64 if large else np.int32)[cells.offset : cells.offset + len(cells) + 1]
    return np.frombuffer(values or b"", np.uint8), at.astype(np.int64)
