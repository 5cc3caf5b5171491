"""Is the answer the right word?"""

from rewards.answers.extract import bare, last_answer
from rewards.base import EMPTY, NO_ANSWER, WRONG, RewardInput, RewardOutput, Unscorable


def word(x: RewardInput) -> RewardOutput:
    r"""1 if the answer equals the gold, ignoring case, the amount of white space and a `\text{}` around it, else 0.

    Raises:
        Unscorable: the gold is empty.
    """
    gold = bare(x.answer).casefold()
    if not gold:
        raise Unscorable("the reference answer is empty")
    answer = last_answer(x.text)
    if not answer:
        return RewardOutput(0.0, reason=NO_ANSWER if answer is None else EMPTY)
    return RewardOutput(1.0) if bare(answer).casefold() == gold else RewardOutput(0.0, reason=WRONG)
