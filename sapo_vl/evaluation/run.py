"""Measuring a model on benchmarks: `sapo-vl eval` with eval.benchmarks, and the same during training.

Each benchmark has a folder of its name: harness.json (what the result depends on), records.jsonl and blank.jsonl
(what was asked and answered, an item a line), summary.json (the figures).
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sapo_vl.benchmarks import Benchmark
from sapo_vl.data.problem_set import BLANK_SUFFIX
from sapo_vl.evaluation.ask import Asking, ask
from sapo_vl.evaluation.config import BenchmarkConfig, EvalConfig, EvaluationSections
from sapo_vl.evaluation.errors import EvaluationError
from sapo_vl.evaluation.harness import make_harness, used_rules, write_harness
from sapo_vl.evaluation.harness_file import hash_of, same_harness
from sapo_vl.evaluation.items import Item, Items, load_items, open_items_source
from sapo_vl.evaluation.pictures import FOLDER as PICTURES
from sapo_vl.evaluation.pictures import PictureFolder
from sapo_vl.evaluation.presets import PRESETS
from sapo_vl.evaluation.records import BLANK, RECORDS, SUMMARY, UNREADABLE, RecordFile, read_records
from sapo_vl.evaluation.registry import find_benchmark
from sapo_vl.evaluation.rules import Judges
from sapo_vl.evaluation.summary import summarise_folder, with_items
from sapo_vl.record.run_log import write_json
from sapo_vl.record.sampling import spread
from sapo_vl.rollout import RolloutConfig, SamplingParams
from sapo_vl.session import SamplingSession
from sapo_vl.types import Problem

log = logging.getLogger(__name__)


def evaluate_benchmarks(
    config: EvaluationSections, session: SamplingSession, out: Path, *, step: int | None = None
) -> dict[str, dict[str, Any]]:
    """Name of every configured benchmark -> its summary, the same on every rank.

    Items that `out` has already, under the same harness, are not asked again, but for those that had no answer.
    During training `step` says after which one: what `out` has then is from a run that was cut off, deleted first.

    Raises:
        EvaluationError, on all ranks: a benchmark does not exist, or `out` holds results of another harness.
        DataError: a source cannot be opened or has nothing to ask.
    """
    if step is not None and session.world.is_main and out.exists():
        shutil.rmtree(out)
    session.world.barrier()
    results: dict[str, dict[str, Any]] = {}
    for spec, given in config.eval.benchmarks.items():
        benchmark = find_benchmark(spec)
        items = load_items(benchmark, given, config.eval.limit, session.world)
        with Judges(config.rewards, benchmark, config.eval.rule, session.world) as judges:
            judges.ours.check(items.rules, dataset=items.source.where)
            run = _Run(config, spec, given, items, session, judges, out / benchmark.name, step)
            results[benchmark.name] = run.measure()
    return results


def check_benchmarks(config: EvaluationSections) -> None:
    """What can be known before a model is loaded. Raises EvaluationError or DataError."""
    names = set()
    for spec, given in config.eval.benchmarks.items():
        benchmark = find_benchmark(spec)
        if benchmark.name in names:
            raise EvaluationError(f"eval.benchmarks: {spec!r} is the second benchmark named {benchmark.name!r}")
        names.add(benchmark.name)
        open_items_source(benchmark, given)
        sampling(config.eval, benchmark, given, config.rollout)


def sampling(
    config: EvalConfig, benchmark: Benchmark, given: BenchmarkConfig, rollout: RolloutConfig
) -> SamplingParams:
    """How the items of `benchmark` are answered. Raises EvaluationError for several greedy responses."""
    preset = dataclasses.asdict(PRESETS[config.preset])
    asked_k = given.k or config.k or preset.pop("k")
    preset.pop("k", None)
    settings = preset | {key: value for key, value in config.sampling.model_dump().items() if value is not None}
    settings["max_new_tokens"] = settings["max_new_tokens"] or rollout.max_new_tokens
    if settings["temperature"] == 0 and asked_k > 1:
        raise EvaluationError(
            f"{benchmark.name}: {asked_k} responses an item at temperature 0 would be one response {asked_k} times; "
            "set eval.k=1 or a temperature"
        )
    return SamplingParams(n=asked_k or (benchmark.k if settings["temperature"] else 1), **settings)


def engine_rollout(config: EvaluationSections) -> RolloutConfig:
    """The rollout settings for opening an engine that must also hold the longest responses to benchmarks."""
    lengths = [
        sampling(config.eval, find_benchmark(spec), given, config.rollout).max_new_tokens
        for spec, given in config.eval.benchmarks.items()
    ]
    return config.rollout.model_copy(update={"max_new_tokens": max([config.rollout.max_new_tokens, *lengths])})


def metric_values(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of a step as metrics.jsonl has them."""
    values: dict[str, Any] = {}
    for name, summary in results.items():
        head, responses = summary["pass@1"], summary["responses"]
        values[f"eval/{name}/pass@1"], values[f"eval/{name}/pass@1/ci95"] = head["mean"], head["ci95"]
        if summary["k"] > 1:
            values[f"eval/{name}/pass@{summary['k']}"] = summary["pass@k"][str(summary["k"])]["mean"]
            values[f"eval/{name}/maj@{summary['k']}"] = summary["maj@k"]
        values |= {f"eval/{name}/{key}": float(v) for key, v in summary["metrics"].items()}
        if other := summary["other rule"]:
            values[f"eval/{name}/pass@1/{other['rule']}"] = other["pass@1"]["mean"]
        if summary["blank"]:
            values[f"eval/{name}/blank"] = summary["blank"]["mean"]
        if summary["judge"] and summary["judge"]["agree"] is not None:
            values[f"eval/{name}/judge_agreement"] = summary["judge"]["agree"]
        for key in ("truncated", "no answer"):
            values[f"eval/{name}/{key.replace(' ', '_')}_share"] = responses[key] / max(1, responses["n"])
    return values


@dataclasses.dataclass(frozen=True, slots=True)
class _Run:
    """One benchmark, measured."""

    config: EvaluationSections
    spec: str  # the name under which the config has the benchmark
    given: BenchmarkConfig
    items: Items
    session: SamplingSession
    judges: Judges
    folder: Path
    step: int | None

    def measure(self) -> dict[str, Any]:
        params = sampling(self.config.eval, self.items.benchmark, self.given, self.config.rollout)
        harness = self._harness(params)
        self._on_main(lambda: self._prepare(harness))
        self._ask(RECORDS, self.items.items, params, blank=False)
        with_images = [item for item in self.items.items if item.has_images] if self.config.eval.blank else []
        self._ask(BLANK, with_images, dataclasses.replace(params, n=1), blank=True)
        return self._on_main(lambda: self._summarise(harness, blank=bool(with_images)))

    def _harness(self, params: SamplingParams) -> dict[str, Any]:
        config, judges, items = self.config, self.judges, self.items.items
        problems = [Problem(id=i.id, task=i.task, messages=(), reward=i.reward) for i in items]
        rules = used_rules([(judges.ours.rule(problem), problem.reward) for problem in problems], judges.scoring)
        return make_harness(
            self.items, self.given, params, rules, judges.harness_rule, judges.scoring, config.model,
            config.rollout.engine, self.step,
        )  # fmt: skip

    def _prepare(self, harness: Mapping[str, Any]) -> None:
        same_harness(self.folder, harness)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_harness(self.folder, harness, self.spec)

    def _ask(self, name: str, items: Sequence[Item], params: SamplingParams, *, blank: bool) -> None:
        file = RecordFile(self.folder / name)
        suffix = BLANK_SUFFIX if blank else ""
        done = self._on_main(file.done)
        pending = [item for item in items if item.id + suffix not in done]
        if len(pending) < len(items):
            log.info("%s: %d items are in %s already", self.items.benchmark.name, len(items) - len(pending), file.path)
        if again := sum(item.id + suffix in file.lacking for item in pending):
            log.warning(
                "%s: %d items of %s had no answer or no row; they are asked again",
                self.items.benchmark.name,
                again,
                file.path,
            )
        asking = Asking(
            session=self.session,
            judges=self.judges,
            items=self.items,
            params=params,
            batch=self.config.eval.batch,
            blank=blank,
            pictures=None if blank else self._pictures(),
        )
        ask(asking, pending, file.append)

    def _pictures(self) -> PictureFolder:
        """In training all measurements share one."""
        own = self.folder / PICTURES
        shared = self.folder.parent.parent / PICTURES / self.folder.name
        with_images = [item.id for item in self.items.items if item.has_images]
        return PictureFolder(own if self.step is None else shared, spread(with_images, self.config.eval.pictures))

    def _summarise(self, harness: Mapping[str, Any], *, blank: bool) -> dict[str, Any]:
        figures = summarise_folder(self.folder, harness["k"], self.items.benchmark.metrics, blank=blank)
        head = {"benchmark": self.items.benchmark.name, "harness": hash_of(harness), "rule": self.judges.headline}
        summary: dict[str, Any] = {**head, **with_items(figures, self.items)}
        write_json(self.folder / SUMMARY, summary)
        might_lack = self.step is None and (
            summary["responses"].get("failed") or UNREADABLE in summary["items"]["skipped"]
        )
        lacking = might_lack and sum(record.is_lacking for record in read_records(self.folder / RECORDS))
        if lacking:
            log.warning(
                "%s: %d items had no answer or no row; the same command asks them again",
                self.items.benchmark.name, lacking,
            )  # fmt: skip
        return summary

    def _on_main(self, work: Any) -> Any:
        """What `work` gives on the main rank, on all of them; so with an EvaluationError."""
        result, fault = None, ""
        if self.session.world.is_main:
            try:
                result = work()
            except EvaluationError as error:
                fault = str(error)
        result, fault = self.session.world.gather((result, fault))[0]
        if fault:
            raise EvaluationError(fault)
        return result
