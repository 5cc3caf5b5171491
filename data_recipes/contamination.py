"""Does training data repeat what it will be measured on? Texts by n-grams, images by digest and by look.

A row is reported for a benchmark if one of these holds, and the first that does is the reason:

1. same image: size and decoded RGB pixels are the same (the file format does not matter).
2. similar image: the 64-bit difference hashes of the grey images differ in at most MAX_BITS bits, both have between
   FLAT and 64 - FLAT bits set (an image that is nearly flat says little), and the grey images, scaled down to SIDE x
   SIDE, correlate by LIKE or more. The last is for line drawings. On 600 random triangles with labels the hashes alone
   join 519 pairs of different ones (of 164,451), with the last rule 1 is left. Of their copies all that are re-encoded
   or scaled by half are found, but for the 5% whose hash is flat; nearly all that lost 1% at every side, and about half
   of those that lost 3%.
3. same text: equal but for case, white space and Unicode spelling, with MIN_WORDS words or more. Shorter texts ("Find
   x.") are everywhere and say nothing without their image.
4. shared words: GRAM words in a row in common, within one piece of text. Texts of MIN_WORDS to GRAM - 1 words are only
   found by 3.

In scripts without blanks (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each letter counts as half a word: 16 letters
make MIN_WORDS, 26 in a row GRAM. Korean has blanks, and words.

Texts and word sequences in more than COMMON of a benchmark's items (and in more than 3), or in all of them, are its own
phrases, such as its instruction, and do not count.

A paraphrase, a translation, or changed numbers in every sentence are not found.
"""

from __future__ import annotations

import contextlib
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

import numpy as np
from PIL import Image

from data_recipes.filters import folded, image_digest, texts
from sapo_vl.data.problem_set import BadRow, ProblemSet
from sapo_vl.types import Problem

GRAM = 13  # words, as in the GPT-3 report (arXiv 2005.14165)
MIN_WORDS = 8
MAX_BITS = 6
FLAT = 6
SIDE = 24
LIKE = 0.85
COMMON = 0.01
# Letters of scripts without blanks, and the marks that stand on those of the Thai and Lao ones.
_LETTERS = (
    "\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
    "\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46\u0e81-\u0eb0\u0eb2\u0eb3\u0ec0-\u0ec6\u1000-\u102a\u1780-\u17b3"
)
_MARKS = "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u17b6-\u17d3"
_LETTER = re.compile(f"[{_LETTERS}][{_MARKS}]*")
_TOKEN = re.compile(rf"{_LETTER.pattern}|[^\W_{_LETTERS}]+")

Reason = Literal["same image", "similar image", "same text", "shared words"]
REASONS: tuple[Reason, ...] = get_args(Reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A problem that repeats an item of a benchmark."""

    id: str
    benchmark: str
    item: str  # id of the item
    reason: Reason
    detail: str  # how much alike, or the words in common


class Reference:
    """The items of one benchmark, ready to be compared with."""

    def __init__(self, name: str, items: Iterable[Problem]) -> None:
        self.name = name
        self.items = 0
        self.images = 0
        self._digests: dict[str, str] = {}  # -> id of an item, here and below
        pieces: dict[str, str] = {}
        grams: dict[str, str] = {}
        often: Counter[str] = Counter()
        hashes: list[int] = []
        self._owners: list[str] = []  # of the hashes
        looks: list[np.ndarray] = []
        for item in items:
            self.items += 1
            for image in item.images:
                self.images += 1
                self._digests.setdefault(image_digest(image), item.id)
                if (bits := difference_hash(image)) is not None:
                    hashes.append(bits)
                    looks.append(_look(image))
                    self._owners.append(item.id)
            whole = set(_pieces(item))
            found = {gram for piece in texts(item) for gram in grams_of(piece)}
            often.update(found | whole)
            pieces |= {text: item.id for text in whole if text not in pieces}
            grams |= {gram: item.id for gram in found if gram not in grams}
        limit = max(3.0, COMMON * self.items)
        own = {text for text, n in often.items() if n > limit or n == self.items > 1}
        self._texts = {text: id for text, id in pieces.items() if text not in own}
        self._grams = {gram: id for gram, id in grams.items() if gram not in own}
        self._hashes = np.array(hashes, dtype=np.uint64)
        self._looks = looks

    def hit(self, problem: Problem) -> Hit | None:
        """The first item found that `problem` repeats, or None."""
        for image in problem.images:
            if item := self._digests.get(image_digest(image)):
                return self._found(problem, item, "same image", "")
        for image in problem.images:
            bits = difference_hash(image)
            if bits is None or not len(self._hashes):
                continue
            close = np.flatnonzero(np.bitwise_count(self._hashes ^ np.uint64(bits)) <= MAX_BITS)
            look = _look(image) if len(close) else None
            alike, nearest = max(((float(self._looks[i] @ look), int(i)) for i in close), default=(0.0, -1))
            if alike >= LIKE:
                return self._found(problem, self._owners[nearest], "similar image", f"correlation {alike:.2f}")
        for text in _pieces(problem):
            if item := self._texts.get(text):
                return self._found(problem, item, "same text", text[:80])
        for piece in texts(problem):
            for gram in grams_of(piece):
                if item := self._grams.get(gram):
                    return self._found(problem, item, "shared words", gram)
        return None

    def _found(self, problem: Problem, item: str, reason: Reason, detail: str) -> Hit:
        return Hit(id=problem.id, benchmark=self.name, item=item, reason=reason, detail=detail)


def contaminated(problems: ProblemSet, references: Sequence[Reference]) -> dict[int, Hit]:
    """Row -> what it repeats, for the rows that repeat something. Rows that cannot be read are passed over."""
    hits: dict[int, Hit] = {}
    for index in range(len(problems)):
        with contextlib.suppress(BadRow):  # training counts and names it
            problem = problems.get(index)
            for reference in references:
                if hit := reference.hit(problem):
                    hits[index] = hit
                    break
    return hits


def report(hits: Mapping[int, Hit], references: Sequence[Reference], rows: int, shown: int = 20) -> str:
    """Counts by benchmark and reason, then the first rows."""
    lines = [f"{'benchmark':20} {'items':>6} {'images':>7}" + "".join(f"{reason:>15}" for reason in REASONS)]
    for reference in references:
        found = Counter(hit.reason for hit in hits.values() if hit.benchmark == reference.name)
        lines.append(
            f"{reference.name:20} {reference.items:6} {reference.images:7}" + "".join(f"{found[r]:15}" for r in REASONS)
        )
    lines.append(f"{len(hits)} of {rows} rows repeat a benchmark")
    for hit in list(hits.values())[:shown]:
        lines.append(f"  {hit.id}  {hit.reason} as {hit.benchmark} {hit.item}" + (f": {hit.detail}" * bool(hit.detail)))
    lines += [f"  and {len(hits) - shown} more"] if len(hits) > shown else []
    return "\n".join(lines)


def grams_of(text: str) -> Iterator[str]:
    """Every GRAM words in a row, folded, signs left out; of a script without blanks twice as many letters."""
    tokens = _TOKEN.findall(folded(text))
    before = [0, *accumulate(map(_half_words, tokens))]  # half words before each token, and in all
    for start, halves in enumerate(before):
        end = bisect_left(before, halves + 2 * GRAM)
        if end == len(before):
            return
        yield " ".join(tokens[start:end])


def _half_words(token: str) -> int:
    return 1 if _LETTER.fullmatch(token) else 2


def difference_hash(image: Image.Image) -> int | None:
    """64 bits: is each of 8x8 places of the grey image darker than its right neighbour? None if nearly flat."""
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS)).astype(int)
    bits = (small[:, 1:] > small[:, :-1]).ravel()
    return int(np.packbits(bits).view(">u8")[0]) if FLAT <= bits.sum() <= 64 - FLAT else None


def _look(image: Image.Image) -> np.ndarray:
    """[SIDE * SIDE] float32: the grey image, small, with mean 0 and length 1 (0 where it is flat)."""
    small = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)).astype(np.float32).ravel()
    small -= small.mean()
    return small / max(float(np.linalg.norm(small)), 1e-9)


def _pieces(problem: Problem) -> Iterator[str]:
    """The texts that are long enough to be compared as a whole."""
    for piece in texts(problem):
        text = folded(piece)
        if sum(map(_half_words, _TOKEN.findall(text))) >= 2 * MIN_WORDS:
            yield text
