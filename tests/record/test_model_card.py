"""The card of a trained model: what the hub reads of it, and what a reader does."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sapo_vl.config import load_config
from sapo_vl.record.model_card import write_model_card

LEVEL = {"mean": 0.61234, "n": 600, "ci95": [0.57, 0.65]}
SUMMARY = {
    "accuracy": {
        "cold_start": {"sampled": {"mean": 0.4, "n": 600, "ci95": [0.36, 0.44]}},
        "final": {"sampled": LEVEL, "blank_image": {"mean": 0.19, "n": 600, "ci95": [0.16, 0.22]}},
    },
    "versions": {"python": "3.11", "torch": "2.14", "commit": "abc1234"},
    "wall_s": 17.0,
}


def written(tmp_path: Path, summary: dict[str, Any] = SUMMARY, card: str | None = None) -> tuple[dict[str, Any], str]:
    """Front matter and text of the card of a run on a base model with this card."""
    base, data, final = tmp_path / "owner" / "Base-4B", tmp_path / "data", tmp_path / "final"
    for folder in (base, data, final):
        folder.mkdir(parents=True, exist_ok=True)
    if card is not None:
        (base / "README.md").write_text(card)
    manifest = {"recipe": "geometry3k", "rows": {"train": {"a": 2000, "b": 101}, "test": {"a": 601}}}
    manifest["card"] = {"name": "Geometry3K", "source": "hiyouga/geometry3k", "licence": "MIT"}
    (data / "manifest.json").write_text(json.dumps(manifest))
    config = load_config(None, [f"model.path={base}", f"data.path={data}", "loss.name=grpo", "replay=r2"])
    write_model_card(final, config.model_dump(mode="json"), summary)
    _, front, text = (final / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_what_the_hub_reads(tmp_path: Path):
    front, text = written(tmp_path, card="---\nlicense: apache-2.0\nextra: [1]\n---\n# Base")
    assert front["base_model"] == "Base-4B" and front["license"] == "apache-2.0"
    assert front["pipeline_tag"] == "image-text-to-text" and "grpo" in front["tags"]
    [index] = front["model-index"]
    assert [(r["dataset"]["name"], r["metrics"][0]["value"]) for r in index["results"]] == [("Geometry3K", 0.6123)]
    assert str(tmp_path) not in text + str(front), "a card goes to others: no path of this machine"


def test_what_a_reader_sees(tmp_path: Path):
    _, text = written(tmp_path)
    assert "| sampled | 0.400 [0.360, 0.440], n=600 | 0.612 [0.570, 0.650], n=600 |" in text
    assert "| greedy, blank images | - | 0.190 [0.160, 0.220], n=600 |" in text
    assert "Trained on Geometry3K (hiyouga/geometry3k, licence: MIT; recipe `geometry3k`, 2101 rows)." in text
    assert "| `replay` | `r2` |" in text and "commit abc1234" in text and "its card does not say" in text
    assert "17.0" not in text, "a resumed run has another time and the same card"


@pytest.mark.parametrize(
    "card", ["---\n: [\n---\n", "---\nlicense: {a: b}\n---\n", "no front matter", "---\n- 1\n---\n"]
)
def test_a_base_card_that_cannot_be_used_is_left_out(card: str, tmp_path: Path):
    front, text = written(tmp_path, card=card)
    assert "license" not in front and "its card does not say" in text


def test_nothing_measured(tmp_path: Path):
    front, text = written(tmp_path, {"accuracy": {"cold_start": {}, "final": {}}})
    assert "model-index" not in front and "Not measured." in text
