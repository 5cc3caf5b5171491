"""Is the answer the right word?"""

from rewards.answers.extract import bare, last_answer
from rewards.answers.typeset import typeset
from rewards.base import EMPTY, NO_ANSWER, WRONG, RewardInput, RewardOutput, Unscorable


def word(x: RewardInput) -> RewardOutput:
    r"""1 if the answer equals the gold, ignoring case, the amount of white space and how it is set, else 0.

    Markdown, `$...$` and `\text{}` around it and a full stop behind it do not matter, nor does LaTeX in it that sets
    what the other has in plain signs: `45^\circ` is 45° (rewards.answers.typeset).

    Raises:
        Unscorable: the gold is empty.
    """
    gold = bare(x.answer).casefold()
    if not gold:
        raise Unscorable("the reference answer is empty")
    answer = last_answer(x.text)
    if not answer:
        return RewardOutput(0.0, reason=NO_ANSWER if answer is None else EMPTY)
    same = bare(answer).casefold() == gold or typeset(answer).casefold() == typeset(x.answer).casefold()
    return RewardOutput(1.0) if same else RewardOutput(0.0, reason=WRONG)
