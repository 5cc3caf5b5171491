"""Why a problem cannot become a prompt, or its solution be imitated: a class a reason."""

from __future__ import annotations


class PromptError(ValueError):
    """A problem cannot become a prompt. Names the problem; `kind` is the reason in fixed words, as it is counted."""

    kind = "images and text disagree"


class PromptTooLong(PromptError):
    """More tokens than model.max_prompt_tokens."""

    kind = "prompt too long"


class SpecialToken(PromptError):
    """A text spells out a special token, which the tokenizer would take for the token itself."""

    kind = "special token in the text"


class NoSolution(PromptError):
    """There is nothing to imitate."""

    kind = "no solution to imitate"


class SolutionTooLong(PromptError):
    """More tokens than a micro-batch may have. It is never cut: a model would learn not to end."""

    kind = "solution too long"


class TooManyImages(PromptError):
    """More than the rollout engine was started for."""

    kind = "too many images"


class CallsNotWritten(PromptError):
    """The chat template knows no tool_calls: the model would see an answer to a question that nobody asked."""

    kind = "tool calls not in the chat template"


class RefusedByLibrary(PromptError):
    """The chat template, the processor, the tokenizer or the model's position index raised."""

    kind = "refused by the processor"
