"""Evaluation folders: items with their picture, gold, responses and verdicts; which of them changed sides."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sapo_vl.record.sampling import spread
from sapo_vl.strict import Unreadable, parse_json, read_mapping
from sapo_vl.viewing.folders import HARNESS, RECORDS, EvaluationFolder
from sapo_vl.viewing.numbers import plain
from sapo_vl.viewing.pictures import picture

SHOWN = ("id", "task", "prompt", "row", "number", "rule", "other_rule", "gold", "groups", "skipped", "messages")
OF_A_RESPONSE = ("text", "tokens", "finish", "answer", "score", "status", "reason", "parts", "other")
# As sapo_vl.evaluation.pictures writes them.
COPIES, MAX_COPIES, _HASH = "pictures", 8, re.compile(r"[0-9a-f]{32}")
BOX_META = ("coords", "gold_coords", "size", "inclusive", "lattice")  # of the problem: what its boxes are in


def read_evaluation(folder: EvaluationFolder) -> dict[str, Any]:
    """{"name", "benchmark", "harness", "summary", "items"}; an item has "score": the mean over its responses, None
    where none was scored. Raises Unreadable for a file that no evaluation wrote."""
    harness = read_mapping(folder.path / HARNESS)
    told = harness.get("harness")
    if not isinstance(told, dict) or not isinstance(told.get("benchmark"), dict):
        raise Unreadable(f"{folder.path / HARNESS} is no harness of an evaluation; get the folder again")
    summary_path = folder.path / "summary.json"
    return {
        "name": folder.name,
        "benchmark": str(told["benchmark"].get("name", "?")),
        "harness": plain(told),
        "summary": plain(read_mapping(summary_path)) if summary_path.is_file() else {},
        "items": list(_items(folder.path / RECORDS)),
    }


def pick_items(evaluations: Sequence[Mapping[str, Any]], limit: int) -> list[str]:
    """Ids of at most `limit` items of evaluations of one benchmark: those that changed sides first, then evenly."""
    ids = list(dict.fromkeys(item["id"] for evaluation in evaluations for item in evaluation["items"]))
    scores = [{item["id"]: item["score"] for item in evaluation["items"]} for evaluation in evaluations]
    changed = [id for id in ids if len({of[id] for of in scores if id in of}) > 1]
    kept = spread(changed, limit)
    alike = [id for id in ids if id not in {*changed}]
    return kept + spread(alike, max(0, limit - len(kept)))


class Pictures:
    """The pictures of an evaluation's items: from the data set folder that the harness names, where that is still
    there, else the small copies that the evaluation kept."""

    def __init__(self, evaluation: Mapping[str, Any], folder: Path) -> None:
        from sapo_vl.data.folder import DataError, open_rows  # brings `datasets`, which no page without items needs

        self.trouble = ""
        self._rows: Any = None
        # Its own, or what all measurements of a training share.
        self._copies = [folder / COPIES, folder.parent.parent / COPIES / folder.name]
        benchmark = evaluation["harness"]["benchmark"]
        source, split = str(benchmark.get("source") or ""), str(benchmark.get("split") or "")
        if (Path(source) / "dataset_dict.json").is_file():
            try:
                rows = open_rows(source, split)
                self._rows = rows.with_format("arrow") if "images" in rows.column_names else None
            except DataError as error:
                self.trouble = str(error)
        elif not any(copies.is_dir() for copies in self._copies) and _shows_pictures(evaluation["items"]):
            self.trouble = (
                f"{evaluation['name']} kept no copies of its pictures (eval.pictures), and its items are from "
                f"{source!r}, which is no data set folder here"
            )

    def of(self, item: Mapping[str, Any]) -> list[dict[str, Any] | None]:
        """The pictures of an item in order; [] where there are none. Of it "row" and "prompt", its hash, are read."""
        row = item.get("row")
        if self._rows is not None and type(row) is int and 0 <= row < len(self._rows):
            cells = self._rows[row].column("images").to_pylist()[0] or []
            return [picture(cell["bytes"]) if isinstance(cell, dict) and cell.get("bytes") else None for cell in cells]
        name = str(item.get("prompt"))[:32]
        if not _HASH.fullmatch(name):
            return []
        for copies in self._copies:
            found = itertools.takewhile(Path.is_file, (copies / f"{name}.{i}.jpg" for i in range(MAX_COPIES)))
            if pictures := [picture(path.read_bytes()) for path in found]:
                return pictures
        return []


def _shows_pictures(items: Sequence[Mapping[str, Any]]) -> bool:
    parts = (part for item in items for turn in item["messages"] or [] for part in _parts(turn))
    return any(isinstance(part, dict) and part.get("type") == "image" for part in parts)


def _parts(turn: Any) -> list[Any]:
    content = turn.get("content") if isinstance(turn, dict) else None
    return content if isinstance(content, list) else []


def _items(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        for number, text in enumerate(lines, start=1):
            try:
                record = parse_json(text)
                if not isinstance(record, dict) or not isinstance(record.get("responses"), list):
                    raise ValueError("it is no record")
                responses = [{name: plain(r.get(name)) for name in OF_A_RESPONSE} for r in record["responses"]]
            except (ValueError, AttributeError) as error:
                if not text.endswith(b"\n"):
                    return  # still being written
                raise Unreadable(f"{path}:{number} cannot be read ({error}); delete the line") from error
            scores = [r["score"] for r in responses if isinstance(r["score"], int | float)]
            meta = record.get("meta") or {}
            yield {
                **{name: plain(record.get(name)) for name in SHOWN},
                "box": plain({name: meta[name] for name in BOX_META if name in meta}),
                "score": sum(scores) / len(scores) if scores else None,
                "responses": responses,
            }
