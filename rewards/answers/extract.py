r"""Find the final answer in a response. One reading, shared by every reward that compares answers:

the last complete `<answer>...</answer>`; else the last balanced `\boxed{...}`; else a last line `Answer: ...`;
else there is none. Only the part after the thinking is looked at. `written_answer` is the whole of it.

Whatever the shape of a response, at most one string in it is its answer, and which one never depends on the
reference answer: listing candidates gains nothing.

What an answer says is then read without what is around all of it: marks of Markdown, the full stop that closes it, a
box (`settled`, the end of `last_answer`), and LaTeX that only sets it (`bare`). Golds are read by the same functions.

All functions are single passes over the text with plain string search or expressions without repetition, so
their time grows linearly with its length whatever a model writes.
"""

import re
import unicodedata

_ANSWER_TAG = re.compile(r"</?answer>")
# What moves the depth of braces; a line break `\\` and an escaped brace do not. `\\boxed{` is a `\boxed{`
# escaped once too often, as in JSON.
_BRACE = re.compile(r"\\boxed ?\{|\\\\(?!boxed ?\{)|\\[{}]|[{}]")
# "Answer:" with the marks of Markdown that stand around the word alone: `**Answer:** B`, `*Answer*: B`.
_ANSWER_LINE = re.compile(r"(\*{1,3}|_{1,3}|)Answer(?:\1:|:\1)(.*)")
# Full-width ASCII (common after Chinese text) and the Unicode minus have one plain equivalent each.
# Look-alikes from other alphabets are left alone: a Cyrillic letter is not the Latin option letter.
_PLAIN = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " ", 0x2212: "-"}

_MATH_MARKS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox) ?\{([^{}\\$]*)\}")

_MARKDOWN = ("**", "__", "*", "_", "``", "`")  # longer ones first; a fence of three backticks is a block, not a mark
_MARKS_AND_BLANKS = "*_` \t\n"
_STOPS = (".", "\u3002", "\uff0e")  # the latter two after Chinese and Japanese text
# The stop of "U.S.", "e.g." and "p.m." is a part of the word.
_ABBREVIATION = re.compile(r"[(\[\"']?(?:[^\W\d_]{1,3}\.){2,}")
_MAX_MARKS = 30  # combining marks on one letter: more than any script has (UAX #15, stream-safe text)


def plain(text: str) -> str:
    """NFC, full-width characters and the Unicode minus as ASCII, white space as single blanks, ends trimmed."""
    return " ".join(_composed(text).translate(_PLAIN).split())


def bare(text: str) -> str:
    """`plain` and `undressed`: the form in which short answers and golds are compared."""
    return undressed(plain(text))


def undressed(text: str) -> str:
    """Without anything around all of it that does not change what it says: `settled` and `unset`, in any order."""
    text = text.strip()
    while (inner := settled(unset(text))) != text:
        text = inner
    return text


def settled(text: str) -> str:
    r"""Without Markdown around all of it, without the one full stop that closes it, and out of its box.

    `**B**`, `*B*.`, `__B__`, "`B`", `\boxed{B}.` and "B." say B. What is left alone: marks that are not around all
    (`**A** or **B**`), the stop of an abbreviation ("U.S."), more than one stop ("...", "5.."), signs alone.
    """
    text = text.strip()
    while (inner := _unboxed(_unmarked(_unstopped(text)))) != text:
        text = inner
    return text


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
    * The content of the last `\boxed{...}` whose braces balance; of nested ones the innermost.
    * What follows "Answer:" on the last line that is not blank, if that line starts with it. Marks of Markdown may
      stand around the word, with or without its colon, or around the line.
    """
    final = reply(text)
    tagged = _last_tagged(final)
    if tagged is not None:
        return _unboxed(tagged)
    box = max(_boxes(final), default=None)  # the last to open
    if box is not None:
        return final[box[1] : box[2]].strip()
    line = final.rstrip().rpartition("\n")[2].strip()
    found = _ANSWER_LINE.fullmatch(line) or _ANSWER_LINE.fullmatch(settled(line))
    return found[2].strip() if found else None


def _last_tagged(text: str) -> str | None:
    opened, content = None, None
    for tag in _ANSWER_TAG.finditer(text):
        if tag.group() == "<answer>":
            opened = tag.end()
        elif opened is not None:
            opened, content = None, text[opened : tag.start()].strip()
    return content


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
    """What the box holds if `text` is one box, or boxes one directly inside the other; else `text`."""
    whole = _without_marks(text)
    if not whole.startswith(("\\boxed", "\\\\boxed")):
        return text
    boxes = {start: (inside, end) for start, inside, end in _boxes(whole)}
    start, end, content = 0, len(whole), None
    while start in boxes and boxes[start][1] + 1 == end:
        start, end = boxes[start]
        content = whole[start:end]
    return text if content is None else content.strip()


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
