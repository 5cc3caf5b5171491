"""Inputs from outside that nobody meant to write, and the bounds that reading one must keep.

Every test draws a few dozen of them. With FUZZ=n in the environment it draws n times as many (scripts/fuzz.sh).
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SCALE = int(os.environ.get("FUZZ", "1"))
CPU_S = 20.0  # seconds of CPU that reading one input may take: far above any that ends, so a busy machine is no fault
MEMORY = 1 << 30  # bytes that it may add to the process
PAGES = Path("/proc/self/statm")
Bytes = st.SearchStrategy[bytes]


class Hangs(AssertionError):
    """Reading one input took more than CPU_S seconds of CPU."""


def examples(number: int) -> Any:
    """Settings of a test that draws so many inputs."""
    health = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(max_examples=number * SCALE, suppress_health_check=health)


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Raises Hangs, or MemoryError, if what is inside takes more than one input may."""

    def stop(*_: object) -> None:
        raise Hangs(f"more than {CPU_S:g} seconds of CPU")

    before = signal.signal(signal.SIGPROF, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = int(PAGES.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, hard))
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, before)


# --- texts ----------------------------------------------------------------------------------------

WORDS = (
    "<answer>", "</answer>", "<think>", "</think>", "\\boxed{", "\\boxed ", "{", "}", "[", "]", "(", ")", "Answer:",
    "**", "*", "_", "`", "```", "```json\n", "$", "$$", "\\(", "\\)", "\\[", "\\]", "\\frac", "\\frac{1}{2}",
    "\\sqrt", "\\text{", "\\begin{pmatrix}", "\\end{pmatrix}", "&", "\\\\", "^", "^{", "_{", ",", ";", ":", '"', "'",
    '\\"', "\n", "\n\n", "\t", " ", "0", "1", "9", "12345678901234567890", "1e999", "-", "+", "/", "%", ".", "...",
    "=", "<", ">", "\\le", "\\pi", "\\infty", "\\sum_{i=1}^{n}", "\\int", "!", "\\times", "\\cdot", "x", "y", "pi",
    "cm", "and", "or", "A", "B.", "true", "null", "NaN", "\u0301", "\uff11", "\u2212", "\u00bd", "\u200b", "\u202e",
    "\ud800", "\x00", "\U0001f600", "\u0410",
)  # fmt: skip


def texts(words: tuple[str, ...] = WORDS, most: int = 12, longest: int = 3000) -> st.SearchStrategy[str]:
    """Words that parsers look for, in any order, some of them many times over."""
    word = st.one_of(st.sampled_from(words), st.sampled_from(words), st.text(max_size=4))
    times = st.one_of(st.just(1), st.just(1), st.just(1), st.integers(2, longest))
    piece = st.tuples(word, times).map(lambda pair: pair[0] * pair[1])
    return st.lists(piece, max_size=most).map("".join)


# --- values and bytes -----------------------------------------------------------------------------

_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**31, 2**63, 10**400, -1, 0]),
    st.floats(),
    st.text(max_size=9),
)
values = st.recursive(
    _LEAVES,
    lambda below: st.one_of(st.lists(below, max_size=4), st.dictionaries(st.text(max_size=6), below, max_size=4)),
)
"""What JSON can hold, NaN among it."""

ODD_JSON = (
    b"",
    b"null",
    b"[]",
    b"{}",
    b'"x"',
    b"3",
    b"NaN",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"9" * 100_000,
    b"\xff\xfe",
    b"\0",
)


def damaged(whole: bytes, other: bytes = b"") -> Bytes:
    """`whole` with bits flipped, a part cut off, left out, doubled, overwritten, or something else in its place."""
    place = st.integers(0, max(0, len(whole) - 1))

    def flip(spots: list[tuple[int, int]]) -> bytes:
        out = bytearray(whole)
        for at, bit in spots:
            out[at] ^= 1 << bit
        return bytes(out)

    def splice(at: tuple[int, int], between: Callable[[bytes], bytes]) -> bytes:
        begin, end = min(at), max(at)
        return whole[:begin] + between(whole[begin:end]) + whole[end:]

    spans = st.tuples(place, place)
    return st.one_of(
        st.lists(st.tuples(place, st.integers(0, 7)), min_size=1, max_size=6).map(flip),
        st.lists(st.tuples(place, st.integers(0, 7)), min_size=1, max_size=1).map(flip),
        place.map(lambda at: whole[:at]),
        spans.map(lambda at: splice(at, lambda _: b"")),
        spans.map(lambda at: splice(at, lambda part: part * 2)),
        st.tuples(spans, st.binary(max_size=40)).map(lambda pair: splice(pair[0], lambda _: pair[1])),
        st.sampled_from([*ODD_JSON, other]),
        st.binary(max_size=200),
    )


def changed(tree: Any) -> st.SearchStrategy[Any]:
    """A JSON value with one of its parts replaced by any other, taken out, or put in twice."""
    return st.tuples(st.randoms(use_true_random=False), values).map(lambda pair: _change(tree, *pair))


def _change(tree: Any, rng: Any, value: Any) -> Any:
    if isinstance(tree, dict) and tree and rng.random() < 0.9:
        key = rng.choice(sorted(tree))
        if rng.random() < 0.15:
            return {k: v for k, v in tree.items() if k != key}
        if rng.random() < 0.1:
            return {**tree, str(value)[:9]: value}
        return {**tree, key: _change(tree[key], rng, value)}
    if isinstance(tree, list) and tree and rng.random() < 0.9:
        at = rng.randrange(len(tree))
        if rng.random() < 0.15:
            return [*tree[:at], *tree[at + 1 :]]
        if rng.random() < 0.1:
            return [*tree, tree[at]]
        return [*tree[:at], _change(tree[at], rng, value), *tree[at + 1 :]]
    return value
