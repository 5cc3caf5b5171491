"""Benchmarks, records and an engine with a script, for the tests of evaluation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from helpers_models import MODEL, make_model, processor

from sapo_vl.distributed import World
from sapo_vl.evaluation.records import Record, Response
from sapo_vl.model.chat import Chat
from sapo_vl.model.loading import prepare_model
from sapo_vl.rollout import SamplingParams
from sapo_vl.rollout.base import OnGroup
from sapo_vl.session import Session
from sapo_vl.types import Finish, Prompt, Rollout, RolloutGroup

# A benchmark as a user writes one: counting squares in a drawn picture; rows come from a file beside it.
OWN_BENCHMARK = '''
from pathlib import Path

from sapo_vl.benchmarks import Benchmark, LeftOut
from sapo_vl.benchmarks.prompts import BOXED, ask
from sapo_vl.types import Problem


def problems(row):
    if row.cells["answer"] is None:
        raise LeftOut("no answer given")
    yield Problem(
        id=f"squares-{row.cells['name']}",
        task="squares",
        messages=ask("<image>" + row.cells["question"], BOXED),
        images=(row.image(row.cells["image"]),),
        answer=str(row.cells["answer"]),
        reward="number",
        meta={"groups": {"colour": row.cells["colour"]}},
    )


def solved(items):
    """Items that every response solved."""
    return {"all right": sum(all(s == 1 for s in item.scores) for item in items) / len(items)}


SQUARES = Benchmark(
    name="squares",
    source=str(Path(__file__).parent / "rows.jsonl"),
    split="test",
    licence="CC0",
    columns=("name", "question", "image", "answer", "colour"),
    problems=problems,
    k=2,
    metrics=solved,
)
'''


@functools.cache
def chat() -> Chat:
    model = prepare_model(make_model("dense", 0), MODEL)
    return Chat(processor(), model, MODEL)


class ScriptedEngine:
    """A rollout engine whose j-th response to a problem is script(id of the problem, j); None: it failed, and why."""

    weight_version = 0

    def __init__(self, script: Callable[[str, int], str | None], why: str = "the engine was out of luck") -> None:
        self.script, self.why = script, why
        self.asked: list[str] = []

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams, on_group: OnGroup | None = None
    ) -> list[RolloutGroup]:
        self.asked += [p.problem.id for p in prompts]
        return [
            RolloutGroup(prompt=p, rollouts=tuple(self._rollout(p.problem.id, j) for j in range(params.n)))
            for p in prompts
        ]

    def _rollout(self, name: str, j: int) -> Rollout:
        text = self.script(name, j)
        size = 0 if text is None else max(1, len(text))
        rollout = Rollout(
            response_ids=np.arange(size), logprobs=np.zeros(size, np.float32), finish=Finish.STOP, weight_version=0
        )
        if text is None:
            return dataclasses.replace(rollout, finish=Finish.FAILED, score_detail=self.why)
        return dataclasses.replace(rollout, text=text, finish=Finish.LENGTH if text.endswith("...") else Finish.STOP)

    def sync(self, version: int) -> None: ...

    def surer_sync(self) -> str | None:
        return None

    def rest(self) -> None: ...

    def close(self) -> None: ...


def session(engine: Any) -> Session:
    nothing: Any = None  # no weights are loaded or trained here
    return Session(world=World.alone(), folder=nothing, chat=chat(), engine=nothing, rollouts=engine)


def response(score: float | None, answer: str | None = "x", **more: Any) -> Response:
    settings: dict[str, Any] = {"text": "", "tokens": 1, "finish": "stop", "reason": "", "parts": {}}
    settings |= {"status": "scored" if score is not None else "timeout"} | more
    return Response(score=score, answer=answer, **settings)


def record(name: str, *responses: Response, **more: Any) -> Record:
    settings: dict[str, Any] = {
        "benchmark": "b", "prompt": "p", "messages": [], "row": 0, "number": 0, "task": "t", "reward": "number",
        "rule": "number", "gold": "1", "meta": {}, "groups": {},
    }  # fmt: skip
    return Record(id=name, responses=responses, **(settings | more))


def write_own_benchmark(folder: Path, rows: str) -> str:
    """my_bench.py with its rows; the name to give on the command line."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "my_bench.py").write_text(OWN_BENCHMARK)
    (folder / "rows.jsonl").write_text(rows)
    return f"{folder / 'my_bench.py'}:SQUARES"
