"""What the results in a run folder are results of: the model, the data, and the settings that must not change.

`identity.json` has it, by stage. Results of two of them in one folder would pass for those of one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sapo_vl.record.run_log import write_json
from sapo_vl.strict import Unreadable, read_mapping

IDENTITY_FILE = "identity.json"
CONFIG_FILES = {"train": "config.yaml", "sft": "config.sft.yaml", "eval": "config.eval.yaml"}

# Stage -> the settings that its results belong to, with the reason. The rest may change on a resume: how long, how
# fast, with how much memory, how closely watched (steps, optim but its name, schedules, rollout, batch, eval, log,
# checkpoint, rewards, loss, pixel limits): that course is what a user steers, and metrics.jsonl shows it. So may
# the number of ranks and how they share the work (zero): weights and optimizer are read from shards of any cut.
_LEARNED = (
    "seed",  # the order of the rows and every response are drawn from it
    "model.path",  # whose weights were trained; by content
    "model.dtype",  # the optimizer's shards hold other tensors
    "model.freeze",  # the same: they hold those of the parts that learn
    "model.lora",  # the same, and what final/ is merged with
    "data.path",  # which rows; by content
    "data.quotas",  # of what a batch is made
)
BOUND: dict[str, tuple[str, ...]] = {
    "train": (
        *_LEARNED,
        "data.train_split",  # which rows
        "data.eval_split",  # accuracy before the first step is carried along and compared with that after the last
        "optim.name",  # its states cannot be taken up by another optimizer
    ),
    "sft": (*_LEARNED, "cold_start.split"),
    "eval": ("model.path", "data.path", "data.eval_split"),
}
# Stage -> what it leaves in the folder, beside checkpoints and lines of metrics.jsonl, and what of it says that it got
# somewhere. A folder without any of that is free: what started there left nothing to be mixed up with.
RESULTS: dict[str, tuple[str, ...]] = {
    "train": ("final", "summary.json", "rollouts", "sequences", "benchmarks"),
    "sft": ("cold_start", "cold_start.json", "cold_start_checkpoints"),
    "eval": ("eval.json", "benchmarks"),
}
FINISHED = {"train": ("final", "summary.json"), "sft": ("cold_start", "cold_start.json"), "eval": RESULTS["eval"]}
WHAT = {"model.path": "other weights or another config.json", "data.path": "other rows"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Of one stage in one folder."""

    settings: Mapping[str, Any]  # dotted key of BOUND -> value, as JSON
    content: Mapping[str, str] = field(default_factory=dict)  # a key that is a path -> digest of what lies there


def identity_of(stage: str, config: Mapping[str, Any], content: Mapping[str, str]) -> Identity:
    """`config`: the config as plain JSON; a key that it has not is left out.

    `content`: digests of what lies at the paths; {} = not looked at. The section "data" of a stage whose results do not
    depend on its rows is left out too.
    """
    bound = [key for key in BOUND[stage] if not content or "data.path" in content or not key.startswith("data.")]
    settings = {key: found[0] for key in bound if (found := _look_up(config, key))}
    return Identity(settings=settings, content=dict(content))


def read_identity(out: Path, stage: str) -> Identity | None:
    """What the stage's results in `out` are of; None if nothing says so.

    A folder from before there was such a file has the stage's config, which names paths but not their content. Raises
    ValueError naming a file that cannot be read.
    """
    path, config = out / IDENTITY_FILE, out / CONFIG_FILES[stage]
    try:
        if path.exists() and (found := read_mapping(path).get(stage)):
            return _identity_in(found, path)
        path = config
        return identity_of(stage, read_mapping(path), {}) if path.exists() else None
    except Unreadable as error:
        raise ValueError(f"{error}; give another --out, or delete this file alone") from error


def _identity_in(found: Any, path: Path) -> Identity:
    parts = [found.get("settings"), found.get("content")] if isinstance(found, dict) and len(found) == 2 else []
    if not parts or not all(isinstance(part, dict) for part in parts):
        raise Unreadable(f"{path} does not have the settings and the content that results are of")
    return Identity(**found)


def write_identity(out: Path, stage: str, identity: Identity) -> None:
    """Puts the identity of `stage` into the folder's file; those of other stages stay."""
    path = out / IDENTITY_FILE
    others = read_mapping(path) if path.exists() else {}
    write_json(path, others | {stage: asdict(identity)})


def differences(here: Identity, there: Identity) -> list[str]:
    """In words, what is not the same of the two, key by key. Two paths to equal content are the same."""
    found: list[str] = []
    for key in sorted(here.settings.keys() & there.settings.keys()):
        ours, theirs = here.settings[key], there.settings[key]
        digests = here.content.get(key), there.content.get(key)
        if None not in digests:
            if digests[0] != digests[1]:
                same_place = f"{key}={ours} now has {WHAT[key]}"
                found.append(same_place if ours == theirs else f"{key}={ours} here, {theirs} there")
        elif ours != theirs:
            found += _differing(key, ours, theirs)
    return found


def differing_settings(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The same for two configs as plain JSON, section by section; keys that only one of them has are left out."""
    return [text for key in ours if key in theirs for text in _differing(key, ours[key], theirs[key])]


def changed_settings(config: BaseModel, before: Mapping[str, Any], section: str = "") -> list[str]:
    """The same for a config and an earlier one as plain JSON, which may be of a version with fewer settings: what it
    does not have is left out, and so is where to go on from, which is no setting of the run."""
    found: list[str] = []
    plain = config.model_dump(mode="json")
    for name in type(config).model_fields:
        key, value = section + name, getattr(config, name)
        if name not in before or key == "resume":
            continue
        if isinstance(value, BaseModel) and isinstance(before[name], Mapping):
            found += changed_settings(value, before[name], f"{key}.")
        else:
            found += _differing(key, plain[name], before[name])
    return found


def _differing(key: str, ours: Any, theirs: Any) -> list[str]:
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping) and ours.keys() == theirs.keys():
        return [text for name in ours for text in _differing(f"{key}.{name}", ours[name], theirs[name])]
    if ours == theirs:
        return []
    return [f"{key}={_short(ours)} here, {_short(theirs)} there"]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _look_up(config: Any, key: str) -> tuple[Any] | tuple[()]:
    """The value under a dotted key, in a tuple; () if there is none."""
    for name in key.split("."):
        if not isinstance(config, Mapping) or name not in config:
            return ()
        config = config[name]
    return (config,)
