r"""Find the final answer in a response. One reading, shared by every reward that compares answers:

the last complete `<answer>...</answer>`; else the last balanced `\boxed{...}` or what follows the last "Answer:" of the
closing lines, whichever begins last; else there is none. Only the part after the thinking is looked at.
`written_answer` is the whole of it.

Whatever the shape of a response, at most one string in it is its answer, and which one never depends on the
reference answer: listing candidates gains nothing.

What an answer says is then read without what is around all of it: marks of Markdown, the full stop that closes it, a
box (`settled`, the end of `last_answer`), and LaTeX that only sets it (`bare`). Golds are read by the same functions.

All functions are one pass over the text, or a bounded number of them, with plain string search or expressions without
repetition, so their time grows linearly with its length whatever a model writes.
"""

import re
import unicodedata
from collections import deque
from collections.abc import Callable

_ANSWER_TAG = re.compile(r"</?answer>")
# What moves the depth of braces; a line break `\\` and an escaped brace do not. `\\boxed{` is a `\boxed{`
# escaped once too often, as in JSON.
_BRACE = re.compile(r"\\boxed ?\{|\\\\(?!boxed ?\{)|\\[{}]|[{}]")
# "Answer:", whatever stands before it on its line, also with marks between word and colon: `*Answer*: B`. The colon
# may be full-width (U+FF1A).
_ANSWER_WORD = re.compile(r"(?<![^\W_])(?:Answer|ANSWER|[Ff]inal answer)(?:\*{1,3}|_{1,3}|`|\}|)[:\uff1a]")
_BEFORE_CHARS = 200  # before "Answer:" in which a bracket may open that closes behind it
_CLOSING_LINES = 5  # lines at the end of a reply, blank ones aside, in which an "Answer:" counts
# Full-width ASCII (common after Chinese text) and the Unicode minus have one plain equivalent each.
# Look-alikes from other alphabets are left alone: a Cyrillic letter is not the Latin option letter.
_PLAIN = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " ", 0x2212: "-"}

_MATH_MARKS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox) ?\{([^{}\\$]*)\}")

# What may open before "Answer:" and close behind it: `**Answer: B**`, `\[ \text{Answer: B} \]`, `<b>Answer:</b> B`.
_HTML = tuple((f"<{name}>", f"</{name}>") for name in ("b", "strong", "i", "em"))
_MATH_AROUND = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_AROUND = (*_MATH_AROUND, ("{", "}"), *_HTML)
_MATH_LINES = frozenset(mark for pair in _MATH_AROUND for mark in pair)
_MARKDOWN = ("**", "__", "*", "_", "``", "`")  # longer ones first; a fence of three backticks is a block, not a mark
_MARKS_AND_BLANKS = "*_` \t\n"
_STOPS = (".", "\u3002", "\uff0e")  # the latter two after Chinese and Japanese text
# The stop of "U.S.", "e.g." and "p.m." is a part of the word.
_ABBREVIATION = re.compile(r"[(\[\"']?(?:[^\W\d_]{1,3}\.){2,}")
_MAX_ROUNDS = 8  # of taking off marks, a stop and a box around an answer; nobody means more
_MAX_MARKS = 30  # combining marks on one letter: more than any script has (UAX #15, stream-safe text)


def plain(text: str) -> str:
    """NFC, full-width characters and the Unicode minus as ASCII, white space as single blanks, ends trimmed."""
    return " ".join(_composed(text).translate(_PLAIN).split())


def bare(text: str) -> str:
    """`plain` and `undressed`: the form in which short answers and golds are compared."""
    return undressed(plain(text))


def undressed(text: str) -> str:
    """Without anything around all of it that does not change what it says: `settled` and `unset`, in any order."""
    return _peeled(text, lambda left: _unboxed(_unmarked(_unstopped(unset(left)))))


def settled(text: str) -> str:
    r"""Without Markdown around all of it, without the one full stop that closes it, and out of its box.

    `**B**`, `*B*.`, `__B__`, "`B`", `\boxed{B}.` and "B." say B. What is left alone: marks that are not around all
    (`**A** or **B**`), the stop of an abbreviation ("U.S."), more than one stop ("...", "5.."), signs alone.
    """
    return _peeled(text, lambda left: _unboxed(_unmarked(_unstopped(left))))


def unset(text: str) -> str:
    r"""Without LaTeX around all of it that only sets it: `$...$`, `\(...\)`, `\[...\]`, then `\text{...}` and kin."""
    text = _without_marks(text.strip())
    command = _TEXT_COMMAND.fullmatch(text)
    return command[1].strip() if command else text


def reply(text: str) -> str:
    """The part after the thinking: all that follows the last `</think>`.

    A response without think tags is all reply; one whose thinking is never closed has an empty reply.
    """
    _, closing, after = text.rpartition("</think>")
    if "<think>" in after:
        return ""
    return after if closing else text


def last_answer(text: str) -> str | None:
    """What the final answer of a response says: the `written_answer`, `settled`. None if there is none."""
    written = written_answer(text)
    return None if written is None else settled(written)


def written_answer(text: str) -> str | None:
    r"""The final answer of a response as it stands there, trimmed; it may be empty. None if there is none.

    For answers in which Markdown has a meaning of its own, such as blocks of code. In the reply, the first of these
    that there is:

    * The content of the last complete `<answer>...</answer>`: an opening and a closing tag with no such tag
      between them. Tags that do not pair up are ignored, of nested pairs the innermost counts. Tags are
      lower case and without blanks. Content that is one `\boxed{...}`, with or without math marks around
      it, is what the box holds.
    * Of the following two the one that begins last: a value in a box before "Answer: B" is a step on the way to it,
      and that of "Answer: \boxed{B}" is in the box.
    * The content of the last `\boxed{...}` whose braces balance; of nested ones the innermost.
    * What follows the last "Answer:" (or "ANSWER:", "Final answer:", "final answer:") in the last five lines that are
      not blank, up to the end of its line; if that is nothing, the next line that is something. Before the word there
      may be anything ("Final Answer:", `### Answer:`). Of marks that open before the word and close behind it
      (`**Answer: B**`, `<b>Answer:</b> B`, `**Answer: B**.`, `\[ \text{Answer: B} \]`) the closing ones are no part
      of the answer. A last line without the word ("[D]", "Option D") is none: options that are listed end so, too.
    """
    final = reply(text)
    tagged = _last_tagged(final)
    if tagged is not None:
        return _unboxed(tagged)
    box = max(_boxes(final), default=None)  # the last to open
    line = _closing_answer(final)
    if box is not None and (line is None or line[0] < box[0]):
        return final[box[1] : box[2]].strip()
    return None if line is None else line[1]


def _last_tagged(text: str) -> str | None:
    opened, content = None, None
    for tag in _ANSWER_TAG.finditer(text):
        if tag.group() == "<answer>":
            opened = tag.end()
        elif opened is not None:
            opened, content = None, text[opened : tag.start()].strip()
    return content


def _closing_answer(text: str) -> tuple[int, str] | None:
    """(where the last "Answer:" of the closing lines begins, what follows it); None if there is none."""
    lines: deque[tuple[int, str]] = deque(maxlen=_CLOSING_LINES)  # where each begins, and its text
    start = 0
    for line in text.split("\n"):
        if line.strip():
            lines.append((start, line))
        start += len(line) + 1
    closing = [line for _, line in lines]
    for number in reversed(range(len(closing))):
        found = deque(_ANSWER_WORD.finditer(closing[number]), maxlen=1)
        if found:
            word = found[0]
            before = "\n".join([*closing[:number], closing[number][: word.start()]])
            values = (_uncovered(line, before) for line in [closing[number][word.end() :], *closing[number + 1 :]])
            return lines[number][0] + word.start(), next((value for value in values if value), "")
    return None


def _uncovered(value: str, before: str) -> str:
    r"""`value` without the marks at its ends that close what was opened in `before`; "" for a math mark alone.

    Each pair of marks is taken at most twice, so that the time is linear.
    """
    value = value.strip()
    if value in _MATH_LINES:
        return ""
    for _ in range(2):  # whichever of two pairs is the outer one
        for left, right in (*_AROUND, *((mark, mark) for mark in _MARKDOWN)):
            if _is_open(before, left, right) and _is_closed(value, left, right):
                value = value.removeprefix(right).strip()
                if _is_closed(value, left, right):
                    unstopped = _unstopped(value)  # `**Answer: B**.`
                    value = unstopped.removesuffix(right).strip() if unstopped.endswith(right) else value
    return value


def _is_open(text: str, left: str, right: str) -> bool:
    """Whether a `left` of `text` has no `right`; a `right` of what comes before `text` does not count.

    Of Markdown one mark is enough, whether or not their number is odd: `2**3`, bullets and x_1 have some, too.
    """
    if left in _MARKDOWN:
        return left in text.replace(2 * left, "")
    if left == right:
        return text.count(left) % 2 == 1
    depth = 0
    for mark in re.findall(f"{re.escape(left)}|{re.escape(right)}", text[-_BEFORE_CHARS:]):
        depth = depth + 1 if mark == left else max(depth - 1, 0)
    return depth > 0


def _is_closed(text: str, left: str, right: str) -> bool:
    """Whether `text` has a `right` too many."""
    return text.count(right) % 2 == 1 if left == right else text.count(right) > text.count(left)


def _peeled(text: str, peel: Callable[[str], str]) -> str:
    """What `peel` leaves of a text once it finds no more; the text itself if that takes more than _MAX_ROUNDS rounds.

    Each round reads all that is left, so that without a bound the time would be quadratic.
    """
    text = left = text.strip()
    for _ in range(_MAX_ROUNDS + 1):
        if (inner := peel(left)) == left:
            return left
        left = inner
    return text


def _boxes(text: str) -> list[tuple[int, int, int]]:
    r"""(start, start of the content, end of the content) of every balanced `\boxed{...}`."""
    open_braces: list[tuple[int, int] | None] = []  # where a box starts and its content does; None: a plain brace
    boxes = []
    for brace in _BRACE.finditer(text):
        token = brace.group()
        if token.startswith("\\boxed"):
            open_braces.append((brace.start(), brace.end()))
        elif token == "{":
            open_braces.append(None)
        elif token == "}" and open_braces:
            box = open_braces.pop()
            if box is not None:
                boxes.append((*box, brace.start()))
    return boxes


def _unboxed(text: str) -> str:
    """What the box holds if `text` is one box, or boxes with nothing but blanks between them; else `text`."""
    whole = _without_marks(text)
    if not whole.startswith(("\\boxed", "\\\\boxed")):
        return text
    boxes = {start: (inside, end) for start, inside, end in _boxes(whole)}
    start, end = 0, len(whole)
    while start in boxes and boxes[start][1] + 1 == end:
        start, end = boxes[start]
        while start < end and whole[start].isspace():
            start += 1
        while start < end and whole[end - 1].isspace():
            end -= 1
    return whole[start:end] if start else text


def _without_marks(text: str) -> str:
    """Without the math marks around the whole of `text`; none may be left inside."""
    for left, right in _MATH_MARKS:
        inside = text[len(left) : -len(right)]
        if len(text) > len(left + right) and text.startswith(left) and text.endswith(right):
            return inside.strip() if left not in inside and right not in inside else text
    return text


def _unmarked(text: str) -> str:
    """Without the first pair of Markdown's marks that is around the whole of `text`; none such may be left inside."""
    for mark in _MARKDOWN:
        inside = text[len(mark) : -len(mark)]
        if not (text.startswith(mark) and text.endswith(mark) and len(text) > 2 * len(mark)) or mark in inside:
            continue
        fence = mark[0] == "`" and "`" in (inside[0], inside[-1])
        if not fence and inside.strip(_MARKS_AND_BLANKS):
            return inside.strip()
    return text


def _unstopped(text: str) -> str:
    """Without a full stop at the end; of several stops, and of an abbreviation, nothing is taken."""
    if not text.endswith(_STOPS):
        return text
    before = text[:-1].rstrip()
    last_word = text[-24:].split()[-1]
    return text if not before or before.endswith((*_STOPS, "\u2026")) or _ABBREVIATION.fullmatch(last_word) else before


def _composed(text: str) -> str:
    """NFC. A text with more marks on one letter than any script has is left as it is: ordering them is quadratic."""
    if text.isascii():
        return text
    run = 0
    for char in text:
        run = run + 1 if unicodedata.combining(char) else 0
        if run > _MAX_MARKS:
            return text
    return unicodedata.normalize("NFC", text)
