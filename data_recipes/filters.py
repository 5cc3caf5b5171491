"""Which problems a recipe leaves out: pure rules, and the memory that finds repeated rows."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from sapo_vl.types import Problem

PIXELS_PER_TOKEN = 32 * 32  # of an image, as Qwen3-VL cuts it
MAX_IMAGE_TOKENS = 1280  # of one image: the processor scales larger ones down
COPIED = 12  # characters from which on an answer that stands in the question counts as given away
CLOSED = ("choice", "word", "code", "maze", "json_grid", "box")  # the options or the words must stand in the question
# What tokenizers of the Qwen family read as one token with a meaning of its own, wherever it stands in a text, and the
# word that older processors put in place of a picture.
SPECIAL_TOKENS = tuple(
    f"<|{name}|>"
    for name in (
        "endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start",
        "quad_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad", "fim_prefix", "fim_middle",
        "fim_suffix", "fim_pad", "repo_name", "file_sep", "audio_start", "audio_end", "audio_pad", "placeholder",
    )
)  # fmt: skip
_SPECIAL = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
_SAID = re.compile(r"(?:answer|result|solution)\s*(?:is|:|=)(?:\s|\$|\\\()*", re.I)
# Behind what is said: the end of the text, of a line or of a sentence. "The result is 3 times larger" says no 3.
_SAID_ALL = re.compile(r"(?:[ $]|\\\))*(?:[.;!?)\]](?!\w)|\n|\Z)")
_OPTION_BEFORE = re.compile(r"(?:(?<!\w)|\()[a-j1-9][.):\u3001](?:[\s${]|\\\()*\Z")  # "b. ", "(c) $"
_DENSE = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")  # scripts without blanks: about a token a character


def texts(problem: Problem) -> Iterator[str]:
    """Every piece of text the model is shown, the instruction among them."""
    for message in problem.messages:
        yield from (part["text"] for part in _parts(message) if part["type"] == "text")


def _parts(message: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def special_token(problem: Problem) -> str:
    """The first special token that a turn or the solution spells out, or "".

    Such a row would not be read as it is written: a turn would end in its middle, a picture would be looked for. The
    gold may have one, no model reads it.
    """
    # Parts of a turn are one text to the tokenizer, but for the pictures between them.
    turns = ("".join(part.get("text", "\0") for part in _parts(message)) for message in problem.messages)
    found = next((m for text in (*turns, problem.solution) if (m := _SPECIAL.search(text))), None)
    return found[0] if found else ""


def check_writable(problem: Problem) -> None:
    """Raises ValueError for texts that are no Unicode (half of a surrogate pair) and for meta that is no JSON."""
    everything = [list(problem.messages), problem.answer, problem.solution, problem.task, dict(problem.meta)]
    try:
        json.dumps(everything, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the row cannot be written as JSON in UTF-8 ({error})") from error


def printable(text: str) -> str:
    """`text` for a log or a manifest: what is no Unicode is written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def folded(text: str) -> str:
    """The text without differences of case, white space and Unicode spelling; signs stay, x+1 is not x-1."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def image_digest(image: Image.Image) -> str:
    """sha256 of size and decoded RGB pixels: the same picture in another file format without loss has the same."""
    return hashlib.sha256(f"{image.size}".encode() + image.convert("RGB").tobytes()).hexdigest()


def estimated_tokens(problem: Problem) -> int:
    """A stated estimate, no tokenizer: 1 token a CJK character, 1 for 3.5 other characters, 1 for 32x32 pixels."""
    text = "".join(texts(problem))
    dense = len(_DENSE.findall(text))
    pixels = sum(min(MAX_IMAGE_TOKENS, -(-i.width * i.height // PIXELS_PER_TOKEN)) for i in problem.images)
    return dense + int((len(text) - dense) / 3.5) + pixels


def answer_in_question(problem: Problem) -> bool:
    """Whether the question gives its answer away.

    It does if it says "answer is", "result =" and the like followed by the gold and nothing more, or holds a gold of
    COPIED or more characters word for word, unless as an option. The second does not go for rewards whose answer is
    picked from the question (CLOSED). A list of options says no answer: "Choose the answer: A. red B. blue".
    """
    gold = folded(problem.answer)
    if not gold or problem.reward in ("code", "maze"):
        return False
    question = "\n".join(folded(line) for text in texts(problem) for line in text.splitlines())
    for said in _SAID.finditer(question):
        rest = question[said.end() :]
        behind = rest.removeprefix(gold)
        if behind != rest and _SAID_ALL.match(behind) and not _goes_on(gold, behind):
            return True
    if len(gold) < COPIED or problem.reward in CLOSED:
        return False
    copies = re.finditer(rf"(?<!\w){re.escape(gold)}(?!\w)", question.replace("\n", " "))
    return any(_OPTION_BEFORE.search(question, 0, copy.start()) is None for copy in copies)


def _goes_on(label: str, behind: str) -> bool:
    """Whether a letter is the first option of a list: the next letter comes behind it, set the same way."""
    if len(label) != 1 or not label.isalpha() or not behind:
        return False
    following = rf"(?<!\w){re.escape(chr(ord(label) + 1))}{re.escape(behind[0])}"
    return re.search(following, behind + "\n") is not None


def too_long(max_tokens: int) -> Callable[[Problem], str]:
    """The rule that leaves prompts of more than `max_tokens` estimated tokens out; 0 = none are."""
    return lambda problem: "too long" if max_tokens and estimated_tokens(problem) > max_tokens else ""


@dataclass(slots=True)
class Seen:
    """What was met so far, over all splits of a set; the splits that are measured are read first."""

    answers: dict[str, str] = field(default_factory=dict)  # digest of a question with its images -> gold
    test_images: set[str] = field(default_factory=set)  # digests of the images of the test split

    def reason(self, problem: Problem, split: str) -> str:
        """Why the problem is left out of `split`, or "" if it is new; it is remembered then.

        A picture of one colour is nobody's: it does not tie a training row to a test row.
        """
        images = [image_digest(image) for image in problem.images]
        key = hashlib.sha256("\0".join([folded(" ".join(texts(problem))), *images]).encode()).hexdigest()
        if key in self.answers:
            return "duplicate" if self.answers[key] == folded(problem.answer) else "duplicate with another answer"
        real = [d for d, i in zip(images, problem.images, strict=True) if not _plain(i)]
        if split == "test":
            self.test_images.update(real)
        elif not self.test_images.isdisjoint(real):
            return "image of the test split"
        self.answers[key] = folded(problem.answer)
        return ""


def _plain(image: Image.Image) -> bool:
    return all(low == high for low, high in image.convert("RGB").getextrema())  # type: ignore[misc]
