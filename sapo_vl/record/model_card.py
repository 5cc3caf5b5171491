"""The card of a trained model: README.md of `final/`, in the form the model hub reads, from files of the run alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sapo_vl.record.files import write_text
from sapo_vl.strict import Unreadable, read_mapping

CARD = "README.md"
# Settings that say how a model was trained, in the order in which they are read.
_SETTINGS = (
    "seed", "steps", "model.dtype", "model.freeze", "model.lora", "loss.name", "loss.params", "replay",
    "mismatch.correction", "rollout.engine", "rollout.prompts_per_step", "rollout.group_size", "rollout.max_new_tokens",
    "rollout.temperature", "rollout.staleness", "batch.mini_batches", "optim.name", "optim.lr", "rewards.combine",
    "data.quotas",
)  # fmt: skip
_MODES = {"sampled": "sampled", "greedy": "greedy", "blank_image": "greedy, blank images"}


def write_model_card(folder: Path, config: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """Writes README.md into the model folder `folder`.

    config: the run's, as plain JSON. summary: what summary.json has. Terms and names come from the card of the base
    model (`license` in its README.md) and the manifest of the data set, where they can be read. Raises OSError.
    """
    base = str(_at(config, "model.path") or f"a tiny {_at(config, 'model.tiny')} model of random weights")
    write_text(folder / CARD, model_card(config, summary, base_card=_front_matter(Path(base)), data=_manifest(config)))


def model_card(
    config: Mapping[str, Any], summary: Mapping[str, Any], base_card: Mapping[str, Any], data: Mapping[str, Any]
) -> str:
    """`base_card`: the front matter of the base model's card; `data`: the data set's manifest. {} = not known."""
    base = _base_name(str(_at(config, "model.path") or ""))
    card = data.get("card") or {}
    name = f"{Path(base).name or 'model'}-{_at(config, 'loss.name')}"
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["reinforcement-learning", "sapo_vl", str(_at(config, "loss.name"))],
    }
    if base_card.get("base_model") or base:
        front["base_model"] = base
    if base_card.get("license"):
        front["license"] = base_card["license"]
    if results := list(_results(summary, str(card.get("name") or "held-out split"))):
        front["model-index"] = [{"name": name, "results": results}]
    terms = base_card.get("license")
    split = str(_at(config, "data.train_split") or "train")
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"# {name}",
        "",
        f"Trained with reinforcement learning (`loss.name={_at(config, 'loss.name')}`) by sapo_vl from "
        + (f"`{base}`." if base else f"a tiny {_at(config, 'model.tiny')} model of random weights."),
        f"Licence of the base model: {terms or 'its card does not say; ask there'}.",
        "",
        *_data_lines(card, data, split),
        "",
        "## Accuracy on the held-out split",
        "",
        *_accuracy_table(summary),
        "",
        "## Settings",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| `{key}` | `{_at(config, key)}` |" for key in _SETTINGS if _at(config, key) not in (None, "", [], {})),
        "",
        "## Versions",
        "",
        ", ".join(f"{key} {value}" for key, value in (summary.get("versions") or {}).items() if value) + ".",
    ]
    return "\n".join(lines) + "\n"


def _base_name(path: str) -> str:
    """As others know it: the id on the hub, or the name of a folder without the way to it."""
    return Path(path).name if Path(path).is_dir() else path


def _data_lines(card: Mapping[str, Any], data: Mapping[str, Any], split: str) -> list[str]:
    if not data:
        return ["Trained on a data set without a manifest."]
    source = f"{card['source']}, licence: {card.get('licence', 'unknown')}" if card.get("source") else "no source named"
    rows = sum((data.get("rows") or {}).get(split, {}).values())
    return [f"Trained on {card.get('name') or 'a data set'} ({source}; recipe `{data.get('recipe')}`, {rows} rows)."]


def _accuracy_table(summary: Mapping[str, Any]) -> list[str]:
    accuracy = summary.get("accuracy") or {}
    before, after = accuracy.get("cold_start") or {}, accuracy.get("final") or {}
    rows = [
        f"| {shown} | {_level(before.get(mode))} | {_level(after.get(mode))} |"
        for mode, shown in _MODES.items()
        if before.get(mode) or after.get(mode)
    ]
    if not rows:
        return ["Not measured."]
    return ["Mean over problems, 95% interval, number of problems.", "", "| | before | after |", "|---|---|---|", *rows]


def _level(found: Mapping[str, Any] | None) -> str:
    if not found or not found.get("ci95"):
        return "-"
    low, high = found["ci95"]
    return f"{found['mean']:.3f} [{low:.3f}, {high:.3f}], n={found['n']}"


def _results(summary: Mapping[str, Any], dataset: str) -> Iterator[dict[str, Any]]:
    """Entries of `model-index`: accuracy after training."""
    for mode in ("sampled", "greedy"):
        found = ((summary.get("accuracy") or {}).get("final") or {}).get(mode)
        if found:
            yield {
                "task": {"type": "image-text-to-text"},
                "dataset": {"name": dataset, "type": "held-out"},
                "metrics": [{"type": "accuracy", "name": f"accuracy, {mode}", "value": round(float(found["mean"]), 4)}],
            }


def _at(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _front_matter(base: Path) -> Mapping[str, Any]:
    """Of the card of the base model, {} if there is none that can be read: it is somebody else's text."""
    try:
        text = (base / CARD).read_text(encoding="utf-8")[:20_000]
        found = yaml.safe_load(text.split("---\n", 2)[1]) if text.startswith("---\n") else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, IndexError, RecursionError):
        return {}
    wanted = ("license", "base_model")
    return {k: v for k, v in found.items() if k in wanted and isinstance(v, str)} if isinstance(found, dict) else {}


def _manifest(config: Mapping[str, Any]) -> Mapping[str, Any]:
    path = Path(str(_at(config, "data.path") or "")) / "manifest.json"
    try:
        return read_mapping(path) if path.is_file() else {}
    except Unreadable:
        return {}
