"""Is the answer mathematically equal to the gold?"""

from rewards.answers.extract import last_answer
from rewards.base import EMPTY, NO_ANSWER, TOO_LONG, RewardInput, RewardOutput, Unscorable

MAX_CHARS = 400


def math_equal(x: RewardInput) -> RewardOutput:
    """1 if the answer and the gold are the same number, expression, equation, set, ... for math-verify, else 0.

    The final answer alone is handed over, as a formula with or without `$...$`; the gold likewise. rewards.latex
    says what passes as mathematics (anything else scores 0), rewards.answers.symbolic where this is stricter than
    math-verify.

    Runs SymPy, which may take any time on what passes: only ever call it in a process that can be killed. It
    sets no alarm of its own.

    Raises:
        Unscorable: the gold is no such formula, or does not equal itself.
    """
    from rewards.answers import symbolic  # takes more than a second: see rewards.PRELOAD

    if problem := symbolic.problem_of_gold(x.answer) if len(x.answer) <= MAX_CHARS else TOO_LONG:
        raise Unscorable(f"the reference answer {x.answer[:60]!r} cannot be compared: {problem}")
    answer = last_answer(x.text)
    if not answer:
        return RewardOutput(0.0, reason=NO_ANSWER if answer is None else EMPTY)
    if len(answer) > MAX_CHARS:
        return RewardOutput(0.0, reason=TOO_LONG)
    difference = symbolic.verdict(x.answer, answer)
    return RewardOutput(0.0, reason=difference) if difference else RewardOutput(1.0)
