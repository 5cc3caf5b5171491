"""The turns of a problem as the chat template takes them: its images in their places, and nothing else opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sapo_vl.model.prompt_errors import PromptError
from sapo_vl.types import Problem


def with_images(problem: Problem, min_pixels: int, max_pixels: int) -> list[dict[str, Any]]:
    """The chat turns with the problem's images put into their image parts; further keys (tool_calls) are passed on.

    Only images that came with the row are used: a path or an address inside a message is refused, since the
    helper library would open or fetch it.
    """
    images = list(problem.images)
    turns: list[dict[str, Any]] = []
    for turn in problem.messages:
        content = turn.get("content")
        if not isinstance(turn.get("role"), str) or not isinstance(content, str | Sequence):
            raise PromptError(f"problem {problem.id!r}: turn {str(turn)[:80]!r} needs a role and a content")
        # Without nulls: tables have them where a key is missing, and some templates write "None".
        further = {key: value for key, value in turn.items() if value is not None}
        if isinstance(content, str):
            # Beside calls no part where nothing is said: a template would end a text that is not there by a new line.
            silent = not content and further.get("tool_calls")
            turns.append({**further, "content": [] if silent else [{"type": "text", "text": content}]})
            continue
        filled: list[dict[str, Any]] = []
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind == "image" and not set(part) - {"type"}:
                if not images:
                    raise PromptError(f"problem {problem.id!r}: more image parts than images ({len(problem.images)})")
                filled.append(
                    {
                        "type": "image",
                        "image": images.pop(0),
                        "min_pixels": min_pixels,
                        "max_pixels": max_pixels,
                    }
                )
            elif kind == "text" and isinstance(part.get("text"), str):
                filled.append({"type": "text", "text": part["text"]})
            else:
                raise PromptError(
                    f"problem {problem.id!r}: message part {str(part)[:80]!r}; allowed are "
                    '{"type": "text", "text": ...} and {"type": "image"} (images go into the images column)'
                )
        turns.append({**further, "content": filled})
    if images:
        raise PromptError(f"problem {problem.id!r}: {len(images)} of {len(problem.images)} images are in no message")
    return turns
