"""Which rollouts go into a file: all of them where they fit, else a part that the page states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sapo_vl.record.sampling import coarse_to_fine, spread
from sapo_vl.record.tokens import tokens_path
from sapo_vl.viewing.folders import ROLLOUTS, step_files
from sapo_vl.viewing.pictures import saved_image
from sapo_vl.viewing.rollouts import Group, read_groups

MAX_STEPS = 60  # of which a part of the groups is taken, where not all fit
MAX_TEXT = 20_000  # characters of a response, or of a prompt, that go into a file


def sample_rollouts(run: Path, group_size: int | None, budget: int) -> dict[str, Any]:
    """{"groups", "images": {hash: picture or None}, "sample": what of the whole this is, "troubles"}.

    budget: bytes of JSON that groups and images may take; at least one group is taken. Steps are spread evenly over the
    run, the first and the last among them, and groups evenly over a step.
    """
    files = step_files(run)
    lines = {step: sum(_count_lines(path) for path in paths) for step, paths in files.items()}
    stored = sum(path.stat().st_size for paths in files.values() for path in paths)
    everything = stored + _images_size(run) * 4 // 3 + _tokens_size(files) * 4 // 3
    share = min(1.0, budget / everything) if everything else 1.0
    steps = list(files) if share == 1.0 else spread(list(files), MAX_STEPS)
    of_a_step = share * len(files) / len(steps) if steps else 1.0
    groups: list[Group] = []
    images: dict[str, Any] = {}
    troubles: list[str] = []
    used = cut = 0
    # Should the estimate be too low, what is left out is spread over the run, too.
    for step in (steps[i] for i in coarse_to_fine(len(steps))):
        if used > budget:
            break
        found, of_step = read_groups(files[step], group_size)
        troubles += of_step
        for group in spread(found, max(1, round(of_a_step * len(found)))):
            cut += shorten(group)
            groups.append(group)
            used += len(json.dumps(group))
            for name in group["images"]:
                if name not in images:
                    images[name] = saved_image(run / ROLLOUTS, name)
                    used += len((images[name] or {}).get("src", ""))
            if used > budget:
                break
    groups.sort(key=lambda group: group["step"])
    held = sum(len(group["responses"]) for group in groups)
    sample = {
        "steps": sorted({group["step"] for group in groups}),
        "steps_saved": len(files),
        "groups": len(groups),
        "responses": held,
        "responses_saved": sum(lines.values()),
        "tokens": sum("tokens" in response for group in groups for response in group["responses"]),
        "whole": held == sum(lines.values()),
        "cut": cut,
        "budget_mb": round(budget / 1e6, 1),
    }
    return {"groups": groups, "images": images, "sample": sample, "troubles": troubles}


def shorten(group: Group) -> int:
    """Cuts texts that are too long for a file, in place; how many there were."""
    cut = 0
    for holder, name in [(group, "prompt"), *((response, "text") for response in group["responses"])]:
        text = holder.get(name)
        if isinstance(text, str) and len(text) > MAX_TEXT:
            holder[name] = f"{text[:MAX_TEXT]} [... {len(text) - MAX_TEXT} more characters, not in this file]"
            cut += 1
    return cut


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _images_size(run: Path) -> int:
    return sum(path.stat().st_size for path in (run / ROLLOUTS / "images").glob("*.png"))


def _tokens_size(files: dict[int, list[Path]]) -> int:
    paths = [tokens_path(path) for of_step in files.values() for path in of_step]
    return sum(path.stat().st_size for path in paths if path.exists())
