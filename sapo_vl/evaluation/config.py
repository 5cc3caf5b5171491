"""The settings of evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from pydantic import Field, field_validator

from sapo_vl.data.problem_set import DataConfig
from sapo_vl.evaluation.presets import PRESETS
from sapo_vl.model.loading import ModelConfig
from sapo_vl.rollout import RolloutConfig
from sapo_vl.scoring.scorer import ScoringConfig
from sapo_vl.strict import Strict

Mode = Literal["greedy", "sampled"]
Rule = Literal["ours", "official"]


class BenchmarkConfig(Strict):
    """Where the items of one benchmark are read from. "" = what the benchmark says."""

    source: str = ""  # a local copy (see sapo_vl.data.source.open_source), or another id on the hub
    split: str = ""  # of the source
    config: str = ""  # configuration of a hub set
    k: int = Field(default=0, ge=0)  # responses an item; 0 = eval.k


class SamplingConfig(Strict):
    """Goes before the preset, value by value."""

    temperature: float | None = Field(default=None, ge=0)  # 0 = greedy
    top_p: float | None = Field(default=None, gt=0, le=1)  # 1 = off
    top_k: int | None = Field(default=None, ge=0)  # 0 = off
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)  # taken off tokens that were there; 0 = off
    max_new_tokens: int | None = Field(default=None, ge=1)  # of a response
    seed: int | None = Field(default=None, ge=0)  # of the responses


class EvalConfig(Strict):
    """What is measured, and how often: the held-out split of a data set, and benchmarks."""

    every: int = Field(default=0, ge=0)  # steps between evaluations during training; 0 = only before and after
    before: bool = True  # measure before the first step
    modes: tuple[Mode, ...] = Field(default=("sampled", "greedy"), min_length=1)  # the first is the headline
    max_per_task: int = Field(default=0, ge=0)  # 0 = all rows
    blank_split: str = "test_blank"  # the same problems with blank images; "" = no such control
    temperature: float = Field(default=1.0, gt=0)  # of the sampled mode
    batch: int = Field(default=128, ge=1)  # responses at a time on a rank
    benchmarks: dict[str, BenchmarkConfig] = Field(default_factory=dict)
    """Names of sapo_vl.benchmarks.BENCHMARKS, or "my_bench.py:NAME" for one of yours; a list of names, or a mapping
    from names to where their items are read from. `sapo-vl eval` then measures these in place of the split."""
    preset: str = "sapo"  # a key of evaluation.presets.PRESETS: sampling on benchmarks
    sampling: SamplingConfig = SamplingConfig()  # what differs from the preset
    k: int = Field(default=0, ge=0)  # responses an item of a benchmark; 0 = the preset's number, or the benchmark's
    limit: int = Field(default=0, ge=0)  # items per benchmark, spread evenly over it; 0 = all
    rule: Rule = "ours"
    """By which rule the figures of a benchmark are: that which its problems name, or that of the benchmark's own script
    where it is another one (sapo_vl.benchmarks.Benchmark.official). The other one's verdicts are kept beside."""
    pictures: int = Field(default=1000, ge=0)
    """Items of a benchmark, spread evenly, whose pictures are kept as small copies for `sapo-vl view`; 0 = none. A copy
    takes up to 40 kB, about 20 as a rule."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, lt=1)
    """Of vLLM in process where nothing trains beside it: `sapo-vl eval` and `sapo-vl data difficulty`. In place of
    rollout.vllm.gpu_memory_utilization, which leaves room for a trainer."""
    blank: bool = True  # control: benchmark items with images once more, with blank ones

    @field_validator("benchmarks", mode="before")
    @classmethod
    def _a_list_of_names_will_do(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {value: {}} if value else {}
        if isinstance(value, list | tuple):
            return {str(name): {} for name in value}
        return {name: own or {} for name, own in value.items()} if isinstance(value, Mapping) else value

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, name: str) -> str:
        if name not in PRESETS:
            raise ValueError(f"eval.preset={name!r}; there are {', '.join(PRESETS)}")
        return name


class EvaluationSections(Protocol):
    """The sections of a run's config that a measurement depends on, and no others."""

    @property
    def seed(self) -> int: ...
    @property
    def model(self) -> ModelConfig: ...
    @property
    def data(self) -> DataConfig: ...
    @property
    def rollout(self) -> RolloutConfig: ...
    @property
    def rewards(self) -> ScoringConfig: ...
    @property
    def eval(self) -> EvalConfig: ...
