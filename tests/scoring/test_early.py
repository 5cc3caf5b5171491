"""Rewards that were begun early are those that would have come later."""

from __future__ import annotations

import pytest
from scoring_helpers import group

from sapo_vl.scoring.scorer import Scorer, ScoringConfig
from sapo_vl.types import Finish, RolloutGroup

TEXTS = ["<answer>3</answer>", r"<answer>\frac{6}{2}</answer>", "<answer>4</answer>", ""]


@pytest.mark.slow
def test_scores_are_the_same_whichever_groups_were_begun() -> None:
    groups = [group(TEXTS, reward="math", answer="3"), group(TEXTS[::-1], reward="number", answer="3")]
    lost = group(TEXTS[:2], reward="math", answer="3", finish=Finish.FAILED)
    groups += [lost, group(TEXTS, reward="math", answer=r"\frac{1}{2}")]
    with Scorer(ScoringConfig(workers=1)) as scorer:
        later = scorer.score(groups, max_tokens=30)
        assert [r.reward for r in later[0].rollouts] == pytest.approx([0.9, 0.9, 0.0, 0.0])
        asked: list[int] = []
        run = scorer._early._run
        scorer._early._run = lambda jobs: (asked.append(len(jobs)), run(jobs))[1]
        for begun in (groups[:1], groups[::-1]):
            for one in begun:
                scorer.begin(one, max_tokens=30)
            again = scorer.score(groups, max_tokens=30)
            # What is scored in this process is not begun, what failed neither.
            assert sum(asked) == 4 * sum(g.prompt.problem.reward == "math" and g is not lost for g in begun)
            asked.clear()
            assert list(map(scores, again)) == list(map(scores, later))


def scores(scored: RolloutGroup) -> list[tuple[object, ...]]:
    return [(r.text, r.reward, dict(r.parts), r.score_status, r.score_detail) for r in scored.rollouts]
