"""Pictures that are written out in a cell, and pictures of a shape that no processor takes."""

from __future__ import annotations

import base64
import contextlib
import io
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from qwen_vl_utils.vision_process import MAX_RATIO

from sapo_vl.data.images import MAX_ASPECT, MAX_IMAGE_BYTES, ImageRefused, decode_image, is_missing, read_image


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
SPELLINGS = {
    "plain": lambda b: b.decode(),
    "lines of 76": lambda b: "\n".join(textwrap.wrap(b.decode(), 76)),
    "lines of mail": lambda b: "\r\n".join(textwrap.wrap(b.decode(), 64)) + "\r\n",
    "blanks around": lambda b: f"  {b.decode()} \t",
    "no padding": lambda b: b.decode().rstrip("="),
    "too much padding": lambda b: b.decode().rstrip("=") + "===",
    "urlsafe": lambda b: b.decode().replace("+", "-").replace("/", "_"),
    "urlsafe, bare": lambda b: b.decode().replace("+", "-").replace("/", "_").rstrip("="),
    "str of bytes": lambda b: str(b),
    "data URI": lambda b: f"data:image/png;base64,{b.decode()}",
    "data URI, lines": lambda b: "data:image/png;base64,\n" + "\n".join(textwrap.wrap(b.decode(), 76)),
    "data URI, capitals": lambda b: f"DATA:IMAGE/PNG;BASE64,{b.decode()}",
    "data URI, parameters": lambda b: f"data:image/png;charset=utf-8;base64,{b.decode()}",
    "data URI, no type": lambda b: f"data:;base64,{b.decode()}",
    "data URI, octets": lambda b: f"data:application/octet-stream;base64,{b.decode()}",
    "data URI, escaped": lambda b: "data:image/png;base64," + b.decode().replace("+", "%2B").replace("=", "%3D"),
    "data URI, urlsafe": lambda b: "data:image/png;base64," + b.decode().translate(str.maketrans("+/", "-_")),
    "bytes": lambda b: b,
    "in bytes of a struct": lambda b: {"bytes": b.decode(), "path": None},
    "in path of a struct": lambda b: {"bytes": None, "path": b.decode()},
    "as OpenAI has it": lambda b: {"url": f"data:image/png;base64,{b.decode()}"},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_base64_is_read(spelling: str, tmp_path: Path) -> None:
    for format in ("PNG", "JPEG", "GIF", "WEBP", "BMP"):
        if spelling == "bytes" and format == "BMP":
            continue  # two letters are too few to tell text in bytes from bytes
        data = encoded(NOISE, format, **({"lossless": True} if format == "WEBP" else {}))
        cell = SPELLINGS[spelling](base64.b64encode(data))
        for root in (None, tmp_path):
            assert read_image(cell, root).tobytes() == decode_image(data).tobytes()


GOOD = base64.b64encode(encoded(NOISE)).decode()


@pytest.mark.parametrize(
    ("cell", "kind", "words"),
    [
        (GOOD[:60] + "!" + GOOD[60:], "damaged", "no base64"),
        (GOOD[:61], "damaged", "no base64"),
        (GOOD[:60], "damaged", "base64 of 45 bytes"),
        ("data:image/png;base64," + GOOD[:60], "damaged", "base64 of 45 bytes"),
        ("data:image/png;base64," + GOOD + "\u00e9", "damaged", "no base64"),
        ("data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(), "wrong type", "base64 of 6 bytes"),
        ("data:image/svg+xml;utf8,<svg/>", "wrong type", "data URI without base64"),
        ("data:image/png;base64", "wrong type", "data URI without base64"),
        (base64.b64encode(bytes(300)).decode(), "wrong type", "base64 of 300 bytes"),
        ("iVBORw0KGgo" + "A" * (MAX_IMAGE_BYTES * 4 // 3), "too many bytes", "base64 of"),
        ("folder/" + "a" * 100 + ".png", "missing", "missing"),  # no base64, for the point
        ("Qk/" + "a" * 10, "missing", "missing"),
    ],
)  # fmt: skip
def test_base64_that_is_no_picture_is_named(cell: str, kind: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ImageRefused, match=words) as error:
        read_image(cell, tmp_path)
    assert error.value.kind == kind and len(str(error.value)) < 300


def test_a_file_with_a_long_name_of_such_letters_is_a_file(tmp_path: Path) -> None:
    name = "a" * 200  # no base64 of a picture, though every letter could be
    (tmp_path / name).write_bytes(encoded(NOISE))
    assert read_image(name, tmp_path).size == (7, 5)


@pytest.mark.parametrize("cell", [None, "", "  ", float("nan"), {}, [], b"", {"bytes": None, "path": None}])
def test_nothing_in_a_cell_is_missing(cell: Any, tmp_path: Path) -> None:
    with pytest.raises(ImageRefused) as error:
        read_image(cell, tmp_path)
    assert error.value.kind == "missing"
    assert is_missing(cell) or isinstance(cell, dict)


@pytest.mark.parametrize(
    ("size", "taken"),
    [
        ((1000, 4), False), ((4, 1000), False), ((201, 1), False), ((1, 201), False), ((3000, 14), False),
        ((200, 1), True), ((1, 200), True), ((1, 1), True), ((1000, 5), True),
    ],
)  # fmt: skip
def test_strips_are_refused_before_they_are_decoded(size: tuple[int, int], taken: bool) -> None:
    assert MAX_ASPECT == MAX_RATIO, "the limit of the library that resizes"
    data = encoded(Image.new("RGB", size))
    if taken:
        assert decode_image(data).size == size
        return
    with pytest.raises(ImageRefused, match=f"{size[0]}x{size[1]} pixels: one side is over 200 times") as error:
        decode_image(data)
    assert error.value.kind == "aspect ratio"


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=80) | st.binary(max_size=80),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["bytes", "path", "url"]), inner),
    max_leaves=4,
)


@given(cell=JSON | st.text(alphabet="iVBORw0KGgo/9j+-_=\n ", min_size=40).map(lambda t: "iVBORw0KGgo" + t))
def test_any_cell_is_a_picture_or_refused(cell: Any) -> None:
    with contextlib.suppress(ImageRefused):
        assert read_image(cell, None).mode == "RGB"
