r"""Find the final answer in a response. One reading, shared by every reward that compares answers:

the last complete `<answer>...</answer>`; else the last balanced `\boxed{...}`; else a last line `Answer: ...`;
else there is none. Only the part after the thinking is looked at. `last_answer` is the whole of it.

Whatever the shape of a response, at most one string in it is its answer, and which one never depends on the
reference answer: listing candidates gains nothing.

All functions are single passes over the text with plain string search or expressions without repetition, so
their time grows linearly with its length whatever a model writes.
"""

import re

_ANSWER_TAG = re.compile(r"</?answer>")
# What moves the depth of braces; a line break `\\` and an escaped brace do not. `\\boxed{` is a `\boxed{`
# escaped once too often, as in JSON.
_BRACE = re.compile(r"\\boxed ?\{|\\\\(?!boxed ?\{)|\\[{}]|[{}]")
_ANSWER_LINE = "Answer:"
# Full-width ASCII (common after Chinese text) and the Unicode minus have one plain equivalent each.
# Look-alikes from other alphabets are left alone: a Cyrillic letter is not the Latin option letter.
_PLAIN = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " ", 0x2212: "-"}

_MATH_MARKS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox) ?\{([^{}\\$]*)\}")


def plain(text: str) -> str:
    """Full-width characters and the Unicode minus as ASCII, white space as single blanks, ends trimmed."""
    return " ".join(text.translate(_PLAIN).split())


def bare(text: str) -> str:
    """`plain`, and without LaTeX that only sets it."""
    return unset(plain(text))


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
    r"""The final answer of a response, trimmed; it may be empty. None if there is none.

    In the reply, the first of these that there is:

    * The content of the last complete `<answer>...</answer>`: an opening and a closing tag with no such tag
      between them. Tags that do not pair up are ignored, of nested pairs the innermost counts. Tags are
      lower case and without blanks. Content that is one `\boxed{...}`, with or without math marks around
      it, is what the box holds.
    * The content of the last `\boxed{...}` whose braces balance; of nested ones the innermost.
    * What follows "Answer:" on the last line that is not blank, if that line starts with it.
    """
    final = reply(text)
    tagged = _last_tagged(final)
    if tagged is not None:
        return _unboxed(tagged)
    box = max(_boxes(final), default=None)  # the last to open
    if box is not None:
        return final[box[1] : box[2]].strip()
    line = final.rstrip().rpartition("\n")[2].strip()
    return line.removeprefix(_ANSWER_LINE).strip() if line.startswith(_ANSWER_LINE) else None


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
