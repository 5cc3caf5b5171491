"""Chat templates that open the thinking of a response, as that of Qwen3-VL-Thinking does.

Such a template ends the prompt with "<think>\\n". What is sampled then starts inside the thinking and has only the
`</think>`. Everywhere a response is read, its text is the opened text and what was sampled, so that thinking which is
never closed has no answer, and a form with both tags can be kept.
"""

from __future__ import annotations

from typing import Any

OPEN, CLOSE = "<think>", "</think>"
_PROBE = "What stands behind this?"


def opened_text(processor: Any) -> str:
    """What the chat template opens for the response: `<think>` and the white space after it, or "".

    Args:
        processor: of a model, or its tokenizer; what has `apply_chat_template`.

    Only what the template writes after the last turn counts: a system text may speak of the tags. Thinking that it
    closes at once (`<think>\\n\\n</think>`, how templates switch thinking off) is not open.
    """
    turn = {"role": "user", "content": [{"type": "text", "text": _PROBE}]}
    text = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    _, opened, after = text.rpartition(_PROBE)[2].rpartition(OPEN)
    return opened + after if opened and CLOSE not in after else ""


def continued(solution: str, opened: str) -> str:
    """The tokens' text of a worked solution behind a prompt that ends with `opened`.

    Thinking that is open already is not opened again: a `<think>` at the start of the solution is left out, with the
    white space that `opened` has too. A solution without thinking, which has no `</think>`, closes it first. With
    opened = "" it is the solution as it stands.
    """
    if not opened:
        return solution
    begun = solution.lstrip()
    if begun.startswith(OPEN):
        inside = begun.removeprefix(OPEN)
        return inside.lstrip() if opened != OPEN else inside
    return solution if CLOSE in solution else f"\n{CLOSE}\n\n{solution}"
