"""`sapo-vl data fetch-images`: rows whose pictures are URLs become rows whose pictures are files beside them."""

from __future__ import annotations

import base64
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_recipes.fetching import NotFetched, Rules, fetch
from sapo_vl.data.source import open_source

FOLDER = "images"
ROWS = "rows.jsonl"
FAILED = "failed.jsonl"
_URL = re.compile(r"https?://", re.I)


@dataclass(slots=True)
class Fetched:
    """What became of the pictures of a source."""

    rows: int = 0
    fetched: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # by reason

    def text(self) -> str:
        lines = [f"{self.rows} rows, {self.fetched} pictures fetched, {sum(self.failed.values())} not"]
        lines += [f"  {count:6} {reason}" for reason, count in self.failed.most_common()]
        return "\n".join(lines)


def fetch_images(source: str, split: str, column: str, out: Path, rules: Rules) -> Fetched:
    """Writes `out` with rows.jsonl, images/ and failed.jsonl (what was not fetched and why), all rows in their order.

    URLs in `column` become paths relative to `out`. What cannot be fetched stays in its row as it is, so a recipe
    names and counts it again. Every URL is asked for once, however many rows have it, and never again after a failure;
    a second call on the failed rows is up to the user.

    Args:
        source, split: as for sapo_vl.data.source.open_source.

    Raises:
        DataError: there is no such source, split or column. FileExistsError: `out` is there.
    """
    rows = open_source(source, split, columns=[column])
    if out.exists():
        raise FileExistsError(f"{out} exists already; choose another folder or delete this one")
    work = out.parent / f".{out.name}.{os.getpid()}.tmp"
    (work / FOLDER).mkdir(parents=True)
    report, known = Fetched(), dict[str, str | NotFetched]()
    with (work / ROWS).open("w", encoding="utf-8") as good, (work / FAILED).open("w", encoding="utf-8") as bad:

        def local(cell: Any, index: int) -> Any:
            if isinstance(cell, list):
                return [local(one, index) for one in cell]
            if isinstance(cell, Mapping) and not cell.get("bytes") and isinstance(cell.get("path"), str):
                cell = cell["path"]
            if not isinstance(cell, str) or not _URL.match(cell):
                return cell
            found = known.get(cell)
            if found is None:
                found = known[cell] = _try(cell, work / FOLDER, rules)
            if isinstance(found, NotFetched):
                report.failed[found.reason] += 1
                line = {"row": index, "url": cell, "reason": found.reason, "detail": str(found)}
                bad.write(json.dumps(line, ensure_ascii=False) + "\n")
                return cell
            report.fetched += 1
            return f"{FOLDER}/{found}"

        for index, row in rows.rows():
            report.rows += 1
            if isinstance(row, ValueError):
                report.failed["malformed row"] += 1
                bad.write(json.dumps({"row": index, "reason": "malformed row", "detail": str(row)}) + "\n")
                continue
            good.write(
                json.dumps({**row, column: local(row[column], index)}, default=_plain, ensure_ascii=False) + "\n"
            )
    work.rename(out)
    return report


def _try(url: str, folder: Path, rules: Rules) -> str | NotFetched:
    try:
        return fetch(url, folder, rules)
    except NotFetched as error:
        return error


def _plain(value: Any) -> Any:
    """What JSON has no form for: bytes of pictures that are in the rows already become data URIs."""
    if isinstance(value, bytes):
        return "data:image/png;base64," + base64.b64encode(value).decode()
    return str(value)
