"""Every rollout as a line of JSON, and every image it saw once, for reading, searching and scoring again."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sapo_vl.data.images import encode_png
from sapo_vl.record.tokens import Tokens, tokens_path, write_tokens
from sapo_vl.strict import parse_json
from sapo_vl.types import Rollout, RolloutGroup

IMAGE_MARK = "<image>"  # where an image stands in the prompt text
BOX_META = ("coords", "gold_coords", "size", "inclusive", "lattice")  # keys of Problem.meta: what its boxes are in


class RolloutLog:
    """Writes step_000012.rank0.jsonl files to a folder; images go to images/<hash>.png beside them, and what is known
    of single tokens to step_000012.rank0.tokens.safetensors.

    What a model wrote is only ever passed to json.dumps, ASCII-escaped: no byte of it can break a line.
    """

    def __init__(self, folder: Path, save_images: bool = True) -> None:
        self.folder = Path(folder)
        self._save_images = save_images

    def write(self, step: int, groups: Sequence[RolloutGroup], rank: int, tokens: Tokens | None = None) -> Path:
        """One line per rollout. The file appears when complete, and replaces one of the same step and rank.

        A line holds: step, id, task, answer, prompt (text, IMAGE_MARK for an image), images (hashes),
        response, response_ids, finish, reward, parts, score_status, score_detail, advantage,
        weight_version, mean_logprob (null without tokens); and box, where the problem says what its boxes are in
        (BOX_META). Numbers that are not finite are written as null.
        tokens: of the responses of `groups` in order.
        """
        # A file of tokens that is there belongs to the lines that are there: whatever fails, others have none.
        tokens_path(step_path(self.folder, step, rank)).unlink(missing_ok=True)
        path = write_step(self.folder, step, rank, self._lines(step, groups))
        if tokens is not None:
            write_tokens(path, tokens)
        return path

    def _lines(self, step: int, groups: Sequence[RolloutGroup]) -> Iterator[dict[str, Any]]:
        for group in groups:
            problem = group.prompt.problem
            shared = {
                "step": step,
                "id": problem.id,
                "task": problem.task,
                "answer": problem.answer,
                "prompt": prompt_text(problem.messages),
                "images": [self._image(image) for image in problem.images],
            }
            if problem.reward in ("box", "") and (box := {k: problem.meta[k] for k in BOX_META if k in problem.meta}):
                shared["box"] = box
            for rollout in group.rollouts:
                yield shared | _rollout_fields(rollout)

    def _image(self, image: Image.Image) -> str:
        name = image_hash(image)
        path = self.folder / "images" / f"{name}.png"
        if self._save_images and not path.exists():
            path.parent.mkdir(exist_ok=True)
            # Another rank may be writing the same image: each writes its own file, the last rename wins.
            beside = path.with_name(f".{name}.{os.getpid()}.tmp")
            try:
                beside.write_bytes(encode_png(image.convert("RGB")))
                beside.replace(path)
            finally:
                beside.unlink(missing_ok=True)
        return name


def step_path(folder: Path, step: int, rank: int) -> Path:
    return folder / f"step_{step:06d}.rank{rank}.jsonl"


def write_step(folder: Path, step: int, rank: int, lines: Iterable[Mapping[str, Any]]) -> Path:
    """Writes step_000012.rank0.jsonl. It appears when complete, and replaces one of the same step and rank.

    Raises ValueError for a number that is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = step_path(folder, step, rank)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("w", encoding="ascii") as file:
            file.writelines(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)  # a part of it would keep a full disk full
    return path


def drop_ranks(folder: Path, step: int, ranks: int) -> None:
    """Deletes the files of steps after `step` that ranks from number `ranks` on wrote.

    For a run that goes on from `step` on fewer ranks: it writes these steps anew, and would leave those files beside.
    """
    for path in folder.glob("step_*.rank*.jsonl"):
        of_step, rank = _step_and_rank(path)
        if of_step > step and rank >= ranks:
            tokens_path(path).unlink(missing_ok=True)
            path.unlink()


def image_hash(image: Image.Image) -> str:
    """32 hex digits of BLAKE2b over size and RGB bytes: equal for equal pictures, whichever the file."""
    digest = hashlib.blake2b(f"{image.width}x{image.height}:".encode(), digest_size=16)
    digest.update(image.convert("RGB").tobytes())
    return digest.hexdigest()


def prompt_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The chat turns as text to read, "role: content", with IMAGE_MARK where an image is, and tool_calls as JSON."""
    turns = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = "".join(part["text"] if part["type"] == "text" else IMAGE_MARK for part in content)
        calls = message.get("tool_calls")
        turns.append(f"{message['role']}: {content}" + (f" {json.dumps(calls, ensure_ascii=False)}" if calls else ""))
    return "\n".join(turns)


def read_rollouts(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of one file, or of all files of a folder of `write_step` by step and rank.

    Raises FileNotFoundError if there is nothing at `path`, ValueError naming file and line for a broken line.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"nothing at {path}; give a step_*.jsonl file or a run's folder of them (rollouts)")
    for file in sorted(path.glob("step_*.jsonl"), key=_step_and_rank) if path.is_dir() else [path]:
        with file.open(encoding="ascii") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    yield parse_json(line)
                except ValueError as error:
                    raise ValueError(f"{file}:{number} is not JSON ({error})") from error


def _step_and_rank(path: Path) -> tuple[int, int]:
    step, rank = path.name.removeprefix("step_").removesuffix(".jsonl").split(".rank")
    return int(step), int(rank)


def _rollout_fields(rollout: Rollout) -> dict[str, Any]:
    mean = float(np.mean(rollout.logprobs, dtype=np.float64)) if len(rollout.logprobs) else None
    return {
        "response": rollout.text,
        "response_ids": [int(i) for i in rollout.response_ids],
        "finish": rollout.finish,
        "reward": _number(rollout.reward),
        "parts": {name: _number(value) for name, value in rollout.parts.items()},
        "score_status": rollout.score_status,
        "score_detail": rollout.score_detail,
        "advantage": _number(rollout.advantage),
        "weight_version": rollout.weight_version,
        "mean_logprob": _number(mean),
    }


def _number(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
