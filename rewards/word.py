"""Is the answer the right word?"""

from rewards.base import RewardInput, RewardOutput, Unscorable
from rewards.extract import last_answer, plain


def word(x: RewardInput) -> RewardOutput:
    """1 if the last `<answer>` equals the gold, ignoring case and the amount of white space, else 0.

    Raises:
        Unscorable: the gold is empty.
    """
    gold = plain(x.answer).casefold()
    if not gold:
        raise Unscorable("the reference answer is empty")
    answer = last_answer(x.text)
    return RewardOutput(float(answer is not None and plain(answer).casefold() == gold))
