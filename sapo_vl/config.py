"""The configuration of a run: typed sections, one YAML file, `key=value` overrides.

Each section's class stands beside what it configures; this file only puts them together, reads them, and
refuses settings that contradict each other before anything is loaded.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from data_recipes import RECIPES
from rewards import REWARDS
from sapo_vl.data.problem_set import DataConfig
from sapo_vl.evaluation.config import EvalConfig
from sapo_vl.learning.advantage import AdvantageConfig
from sapo_vl.learning.checkpoint import CheckpointConfig
from sapo_vl.learning.mismatch import MismatchConfig
from sapo_vl.learning.optim import OptimConfig, ZeroConfig
from sapo_vl.losses import LOSSES, LossConfig
from sapo_vl.model.batching import BatchConfig
from sapo_vl.model.loading import ModelConfig
from sapo_vl.model.routing import Replay
from sapo_vl.record.files import write_text
from sapo_vl.record.run_log import LogConfig
from sapo_vl.rollout import RolloutConfig
from sapo_vl.scoring.scorer import ScoringConfig
from sapo_vl.strict import Strict


class ConfigError(ValueError):
    """A config that cannot be used. The message names the file, the key, and the fix."""


class RecipeConfig(Strict):
    """A data recipe that `sapo-vl run` builds first when data.path is empty."""

    name: str = ""  # a key of data_recipes.RECIPES, or "path/to/yours.py:build"; "" = none
    args: dict[str, Any] = Field(default_factory=dict)  # its keyword arguments


class ColdStartConfig(Strict):
    """Supervised fine-tuning before RL."""

    split: str = "cold_start"  # rows with solutions
    steps: int = Field(default=1000, ge=1)  # at most
    batch_size: int = Field(default=32, ge=1)  # problems a step, over all ranks
    quotas: dict[str, float] = Field(default_factory=dict)  # as data.quotas; empty = those, of the split's own tasks
    reduction: Literal["token_mean", "sequence_mean"] = "token_mean"  # of the cross-entropy, as loss.reduction
    optim: OptimConfig = OptimConfig(lr=1e-5)
    zero: ZeroConfig = ZeroConfig()
    target_pass_rate: float = Field(default=0.0, ge=0, le=1)  # stop at this sampled accuracy; 0 = never
    measure_every: int = Field(default=25, ge=1)  # steps between measurements of the pass rate
    measure_per_task: int = Field(default=64, ge=1)  # rows of the training split a measurement uses per task

    @model_validator(mode="after")
    def _muon_needs_whole_gradients(self) -> ColdStartConfig:
        if self.optim.name == "muon" and self.zero.stage > 0:
            stage = f"cold_start.zero.stage={self.zero.stage}"
            raise ValueError(f"cold_start.optim.name=muon with {stage}: use stage 0 or adamw")
        return self


class RunConfig(Strict):
    """Everything about a run. `sapo-vl train --print-config` prints it with all defaults."""

    seed: int = Field(default=0, ge=0)  # of data order, sampling and new weights: fixes a run on a CPU to the bit
    steps: int = Field(default=1000, ge=1)  # rollout batches
    processes: int = Field(default=0, ge=0)  # ranks on this machine; 0 = one per GPU, or 2 on a CPU
    resume: str = "auto"  # "auto" = newest complete checkpoint of the run folder, "no", or a checkpoint folder
    model: ModelConfig = ModelConfig()
    recipe: RecipeConfig = RecipeConfig()
    data: DataConfig = DataConfig()
    cold_start: ColdStartConfig | None = None  # None = no cold start: `sapo-vl run` goes straight to training
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)  # some of it is by device
    rewards: ScoringConfig = ScoringConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    loss: LossConfig = LossConfig()
    # Which experts the updates of a MoE model go through: see docs/replay.md. loss.name=grpo replay=r2 is GRPO-R2.
    replay: Replay = "none"
    mismatch: MismatchConfig = MismatchConfig()
    batch: BatchConfig = BatchConfig()
    optim: OptimConfig = OptimConfig()
    zero: ZeroConfig = ZeroConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @field_validator("resume", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: Any) -> Any:
        """YAML 1.1 reads a bare `no` as false."""
        return "no" if value is False else value

    @property
    def old_passes(self) -> int:
        """How many mini-batches of a step, the last ones, go through the model before its first update, for pi_old or
        its routes. The first one's own update gives the same, as no weight has changed and nothing is drawn; with
        replay=r2 it is recorded all the same, and the padded layout is the reference without such tricks.
        """
        if self.rollout.old_logprobs != "trainer" and self.replay != "r2":
            return 0
        dropout = self.model.lora is not None and self.model.lora.dropout > 0
        first = self.replay == "r2" or dropout or not self.batch.shared_prefix
        return self.batch.mini_batches if first else self.batch.mini_batches - 1

    @model_validator(mode="after")
    def _no_contradictions(self) -> RunConfig:
        faults = [text for wrong, text in _contradictions(self) if wrong]
        if faults:
            raise ValueError("; ".join(faults))
        return self


def _weighs_whole_responses(c: RunConfig) -> bool:
    """Whether weights are products or means of ratios over a response, which a cut law pulls away from 1."""
    return c.mismatch.correction in ("geometric_mask", "sequence_mask") or c.loss.name == "vespo"


def _contradictions(c: RunConfig) -> list[tuple[bool, str]]:
    """(whether it holds, what to say) for every pair of settings that cannot both be meant."""
    per_step, minis = c.rollout.prompts_per_step, c.batch.mini_batches
    return [
        (
            bool(c.model.path and c.model.tiny),
            f"model.path={c.model.path!r} and model.tiny={c.model.tiny!r}: clear one of them",
        ),
        (
            c.model.min_pixels > c.model.max_pixels,
            f"model.min_pixels={c.model.min_pixels} is above model.max_pixels={c.model.max_pixels}",
        ),
        (
            per_step % minis != 0,
            f"rollout.prompts_per_step={per_step} cannot be dealt into batch.mini_batches={minis} of equal size",
        ),
        (
            c.rollout.group_size == 1,
            "rollout.group_size=1: an advantage compares a response with its group, so nothing would be learned; use "
            "2 or more",
        ),
        (
            bool(c.processes) and per_step % max(1, c.processes) != 0,
            f"rollout.prompts_per_step={per_step} cannot be shared equally by processes={c.processes}",
        ),
        (
            c.mismatch.correction != "none" and c.rollout.old_logprobs == "rollout",
            f"mismatch.correction={c.mismatch.correction} with rollout.old_logprobs=rollout: pi_old is the engine's, "
            "so rho is 1 and there is nothing to correct; set rollout.old_logprobs=trainer or correction=none",
        ),
        (
            c.mismatch.correction != "none" and c.loss.loss_params().weighs_by_rollout,
            f"mismatch.correction={c.mismatch.correction} with loss.name={c.loss.name}: that loss weighs by pi_theta / "
            "pi_rollout itself, and the engine's gap would count twice; set mismatch.correction=none or take another "
            "loss",
        ),
        (
            (c.rollout.top_p < 1 or c.rollout.top_k > 0) and _weighs_whole_responses(c),
            f"rollout.top_p={c.rollout.top_p:g} and top_k={c.rollout.top_k} with "
            + (f"loss.name={c.loss.name}" if c.loss.name == "vespo" else f"mismatch.correction={c.mismatch.correction}")
            + ": each token was sampled from the part of the law that was kept, so that pi_old / pi_rollout is below 1 "
            "at every token and a product over a response is near 0: nothing would be learned; sample with top_p=1 and "
            "top_k=0, or correct by token (token_tis, icepop, loss.name=minirl)",
        ),
        (
            c.replay != "none" and c.model.tiny == "dense",
            f"replay={c.replay} with model.tiny=dense: a dense model has no experts; use model.tiny=moe or replay=none",
        ),
        (
            c.optim.name == "muon" and c.zero.stage > 0,
            f"optim.name=muon with zero.stage={c.zero.stage}: DeepSpeed would clip Muon's orthogonalised update, "
            "not the gradient; use zero.stage=0 or optim.name=adamw",
        ),
        (
            c.cold_start is not None and c.model.lora is not None,
            "cold_start trains all weights and model.lora only adapters; run them as two configs",
        ),
        (
            c.rollout.server.adapters_only and c.model.lora is None,
            "rollout.server.adapters_only=true without model.lora: all weights learn, so all must be handed over; set "
            "adapters_only=false, or model.lora",
        ),
        (
            {"vision", "merger", "language", "lm_head"} <= set(c.model.freeze) and c.model.lora is None,
            f"model.freeze={list(c.model.freeze)} leaves nothing to learn; take a part out, or set model.lora",
        ),
        (
            c.data.eval_split == c.data.train_split,
            f"data.eval_split and data.train_split are both {c.data.train_split!r}: accuracy would be measured on what "
            "was trained on",
        ),
        (
            c.cold_start is not None and c.cold_start.split == c.data.eval_split,
            f"cold_start.split and data.eval_split are both {c.data.eval_split!r}: accuracy would be measured on what "
            "was trained on",
        ),
        (
            bool(c.recipe.args) and not c.recipe.name,
            "recipe.args is set without recipe.name",
        ),
        (
            bool(c.recipe.name and c.data.path),
            f"recipe.name={c.recipe.name!r} would be built, but data.path={c.data.path!r} is given; clear one",
        ),
        (
            "accuracy" not in c.rewards.combine,
            "rewards.combine has no term 'accuracy', so nothing asks whether an answer is right; give it a weight "
            "(0 logs it only)",
        ),
    ]


# Around a config that was saved: cut off, it would still be YAML, and settings that are lost would take their defaults.
WHOLE, END = "# every setting, as it was resolved\n", "...\n"


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads `path` (YAML; None = defaults) and applies `key=value` overrides, later ones winning.

    Values of overrides are YAML. Where one names another loss than the file, loss.params of the file, which are that
    loss's, are left out. Raises ConfigError naming file, key and nearest known key.
    """
    raw: Any = {}
    where = "defaults"
    if path is not None:
        where = str(path)
        try:
            text = Path(path).read_text(encoding="utf-8")
            raw = yaml.load(text, _UniqueKeys)
            if raw is None and text.strip():  # comments alone; a file of nothing has lost what it had
                raw = {}
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such config file; the shipped ones are in configs/") from None
        except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as e:
            raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(e).split())}") from None
        if text.startswith(WHOLE) and not text.endswith(END):
            raise ConfigError(f"{path} is cut off: it was written with every setting and '...' at its end")
        if not isinstance(raw, dict):
            what = "empty" if raw is None else f"a {type(raw).__name__}"
            raise ConfigError(f"{path}: a config is a mapping of sections, this is {what}")
    _check_keys(raw, RunConfig, where)
    _leave_params_of_another_loss(raw, overrides)
    for text in overrides:
        key, sep, value = text.partition("=")
        if not sep or not key:
            raise ConfigError(f"override {text!r}: write key=value, as in optim.lr=1e-6")
        try:
            parsed = yaml.safe_load(value) if value else ""
        except yaml.YAMLError as e:
            raise ConfigError(f"override {text!r}: the value is not YAML ({' '.join(str(e).split())})") from None
        _set(raw, key.split("."), _number(parsed), text)
    where = f"{where} with {' '.join(overrides)}" if overrides else where
    _check_keys(raw, RunConfig, where)
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as e:
        lines = [f"  {_fault(x['loc'], x['msg'], x['input'])}" for x in e.errors()]
        raise ConfigError(f"{where}: this config cannot be used\n" + "\n".join(lines)) from None


def _leave_params_of_another_loss(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """`loss.name=grpo` on a config of SAPO would be refused for its temperatures; and a saved config, which has every
    default in it, would give another loss the reduction of its own."""
    names = [text.partition("=")[2] for text in overrides if text.startswith("loss.name=")]
    loss = raw.get("loss")
    if names and isinstance(loss, dict) and loss.get("name", LossConfig().name) != names[-1]:
        loss.pop("params", None)
        there = LOSSES.get(str(loss.get("name", LossConfig().name)))
        if there is not None and loss.get("reduction") == there[1].own_reduction:
            del loss["reduction"]
            loss.pop("token_sum_constant", None)


def _fault(loc: tuple[int | str, ...], message: str, given: Any) -> str:
    """One line about one fault: the key, what is wrong, and the value, unless the message itself names it."""
    named = message.removeprefix("Value error, ")
    if named != message:
        return named if not loc or f"{loc[0]}." in named else f"{'.'.join(map(str, loc))}: {named}"
    return f"{'.'.join(map(str, loc))}: {message} (got {str(given)[:120]})"


class _UniqueKeys(yaml.SafeLoader):
    """YAML lets a key come twice and the last one win, which would drop half of a section without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key} comes twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def save_config(config: RunConfig, path: Path) -> None:
    """Writes the resolved config, every default included, so that it can be read back with `load_config`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, WHOLE + yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False) + END)


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-6 as text for want of a dot; people mean the number."""
    if isinstance(value, str):
        try:
            return float(value) if "e" in value.lower() else value
        except ValueError:
            return value
    return value


def _set(raw: dict[str, Any], keys: list[str], value: Any, text: str) -> None:
    for key in keys[:-1]:
        below = raw.get(key)
        if below is None:
            below = raw[key] = {}
        if not isinstance(below, dict):
            raise ConfigError(f"override {text!r}: {key} holds {below!r} and has no keys")
        raw = below
    raw[keys[-1]] = value


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section class of a field, if it is one (perhaps optional). The keys of a dict are names, not settings."""
    if get_origin(annotation) is dict:
        return None
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel) and get_origin(candidate) is None:
            return candidate
    return None


def _check_keys(raw: dict[str, Any], section: type[BaseModel], where: str) -> None:
    """Raises ConfigError for the first key that there is not, with the keys that may be meant."""
    for prefix, key, value, inside in _unknown_keys(raw, section):
        near = _nearest(key, value, prefix, inside, raw)
        hint = f"; nearest: {' or '.join(near)}" if near else f"; known here: {', '.join(inside.model_fields)}"
        raise ConfigError(f"{where}: unknown key {prefix}{key}{hint}")


def _unknown_keys(
    raw: dict[str, Any], section: type[BaseModel], prefix: str = ""
) -> Iterator[tuple[str, str, Any, type[BaseModel]]]:
    for key, value in raw.items():
        if key not in section.model_fields:
            yield prefix, str(key), value, section
            continue
        below = _section(section.model_fields[key].annotation)
        if below is not None and isinstance(value, dict):
            yield from _unknown_keys(value, below, f"{prefix}{key}.")


def _nearest(key: str, value: Any, prefix: str, section: type[BaseModel], raw: dict[str, Any]) -> list[str]:
    """The full keys that may be meant by `key` at `prefix`, which holds `value`; [] if there is nothing like it.

    The right words in the wrong place come before similar words: "lr" is far from "optim.lr" by letters.
    """
    words = [key]
    while isinstance(value, dict) and value:
        name, value = next(iter(value.items()))
        words.append(str(name))
    known = [*_all_keys(RunConfig), *_settings_of_functions(raw)]

    def elsewhere(*wanted: str) -> list[str]:
        found = [k for k in known if f".{k}".endswith("." + ".".join(wanted))]
        # Of this section first, then the shallowest; several only where none goes before the others.
        ranks = {k: (not k.startswith(prefix), k.count(".")) for k in found}
        return [k for k in found if ranks[k] == min(ranks.values())][:3]

    def alike(cutoff: float) -> list[str]:
        return [prefix + k for k in difflib.get_close_matches(key, section.model_fields, n=1, cutoff=cutoff)]

    tails = (elsewhere(*words[start:]) for start in range(1, len(words)))
    return next(filter(None, (elsewhere(*words), elsewhere(key), alike(0.75), *tails, alike(0.5))), [])


def _settings_of_functions(raw: dict[str, Any]) -> Iterator[str]:
    """Full keys of the settings that a loss, a reward or a recipe has itself, under a section whose keys are free:
    those of the configured loss and recipe, and of every reward that is built in."""
    loss, recipe = (part.get("name") if isinstance(part := raw.get(k), dict) else None for k in ("loss", "recipe"))
    yield from (f"loss.params.{name}" for name in LOSSES.get(loss or LossConfig().name, (None, Strict))[1].model_fields)
    for reward, function in REWARDS.items():
        yield from (f"rewards.params.{reward}.{name}" for name in list(inspect.signature(function).parameters)[1:])
    if recipe in RECIPES:
        arguments = inspect.signature(RECIPES[recipe]).parameters.values()
        yield from (f"recipe.args.{p.name}" for p in arguments if p.kind is inspect.Parameter.KEYWORD_ONLY)


def _all_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, f in section.model_fields.items():
        keys.append(prefix + name)
        below = _section(f.annotation)
        if below is not None:
            keys += _all_keys(below, f"{prefix}{name}.")
    return keys
