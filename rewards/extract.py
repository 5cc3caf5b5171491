"""Find the final answer in a response. One strict reading, shared by every reward that compares answers.

All functions are single passes over the text with plain string search, so their time grows linearly with its
length whatever a model writes.
"""

import re

_ANSWER_TAG = re.compile(r"</?answer>")
# Full-width ASCII (common after Chinese text) and the Unicode minus have one plain equivalent each.
# Look-alikes from other alphabets are left alone: a Cyrillic letter is not the Latin option letter.
_PLAIN = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " ", 0x2212: "-"}


def plain(text: str) -> str:
    """Full-width characters and the Unicode minus as ASCII, white space as single blanks, ends trimmed."""
    return " ".join(text.translate(_PLAIN).split())


def reply(text: str) -> str:
    """The part after the thinking: all that follows the last `</think>`.

    A response without think tags is all reply; one whose thinking is never closed has an empty reply.
    """
    _, closing, after = text.rpartition("</think>")
    if "<think>" in after:
        return ""
    return after if closing else text


def last_answer(text: str) -> str | None:
    """Content of the last `<answer>...</answer>` of the reply, trimmed; it may be empty.

    None if there is no such tag, or if the tags do not come in pairs (unclosed, nested, stray).
    """
    answers = reply(text)
    tags = list(_ANSWER_TAG.finditer(answers))
    if not tags or len(tags) % 2:
        return None
    for i, tag in enumerate(tags):
        if tag.group() != ("</answer>" if i % 2 else "<answer>"):
            return None
    return answers[tags[-2].end() : tags[-1].start()].strip()


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` of the reply, braces matched; None if absent or unclosed."""
    _, found, rest = reply(text).rpartition("\\boxed{")
    if not found:
        return None
    depth = 1
    for brace in re.finditer(r"\\.|[{}]", rest, re.DOTALL):  # \\. steps over an escaped brace
        if brace.group() == "{":
            depth += 1
        elif brace.group() == "}":
            depth -= 1
            if depth == 0:
                return rest[: brace.start()].strip()
    return None


def last_answer_or_boxed(text: str) -> str | None:
    r"""`last_answer`, unwrapped if it is one `\boxed{...}`; without any answer tag, `last_boxed`."""
    if not _ANSWER_TAG.search(reply(text)):
        return last_boxed(text)
    answer = last_answer(text)
    if answer is not None and answer.startswith("\\boxed{") and answer.count("\\boxed{") == 1:
        boxed = last_boxed(answer)
        return boxed if boxed is not None and answer == f"\\boxed{{{boxed}}}" else None
    return answer
