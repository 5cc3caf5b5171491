"""Does the response keep to the format it was asked for?"""

from rewards.base import RewardInput, RewardOutput

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def format_tags(x: RewardInput, think_in_prompt: bool = False) -> RewardOutput:
    """1 if the response is `<think>...</think> <answer>...</answer>` and nothing else, else 0.

    Each tag occurs exactly once, in this order; both parts hold something other than white space; only white
    space stands around and between them. A `<think>` that the chat template writes is a part of the text, so a
    response that opens it again has it twice. With think_in_prompt the question itself has written it.
    """
    text = x.text.strip()
    if think_in_prompt and not text.startswith("<think>"):
        text = "<think>" + text
    if any(text.count(tag) != 1 for tag in _TAGS):
        return RewardOutput(0.0)
    before, _, rest = text.partition("<think>")
    think, closed, rest = rest.partition("</think>")
    between, opened, rest = rest.partition("<answer>")
    answer, ended, after = rest.partition("</answer>")
    in_order = closed and opened and ended
    alone = not (before or between.strip() or after)
    return RewardOutput(float(bool(in_order and alone and think.strip() and answer.strip())))
