"""Folders as runs and evaluations write them, made up in a moment: texts, pictures, metrics, tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from sapo_vl.data.images import encode_png
from sapo_vl.record.rollout_log import image_hash, write_step
from sapo_vl.record.tokens import Tokens, write_tokens

WORDS = ["<think>", "</think>", "<answer>", "</answer>", *"0123456789", "red", "blue", "green", "is", "the", "count"]
HOSTILE = "<script>window.hit=1</script><img src=x onerror='window.hit=1'></pre>\u2028</script><!--"
TASKS = ("count", "compare", "ground")


def make_run(
    folder: Path, steps: Sequence[int], *, prompts: int = 4, group: int = 4, seed: int = 0, tokens: bool = True,
    ranks: int = 2, images: bool = True, notices: Mapping[int, Sequence[str]] | None = None,
) -> Path:  # fmt: skip
    """A run that saved the rollouts of `steps`. Response 1 of the first group of a step is HOSTILE; the second group is
    dead; a problem comes again every third saved step; of each response the first token is masked."""
    rng = np.random.default_rng(seed)
    rollouts = folder / "rollouts"
    (rollouts / "images").mkdir(parents=True, exist_ok=True)
    _tokenizer().save(str(_made(folder / "final") / "tokenizer.json"))
    names = [_picture(rollouts / "images", rng) if images else "0" * 32 for _ in range(6)]
    for nth, step in enumerate(steps):
        for rank in range(ranks):
            mine = range(rank, prompts, ranks)
            lines = [line for p in mine for line in _group(rng, step, nth, p, group, names)]
            path = write_step(rollouts, step, rank, lines)
            if tokens:
                write_tokens(path, _tokens(rng, [line["response_ids"] for line in lines]))
    _metrics(folder, max(steps), rng, notices or {})
    config = {"seed": seed, "steps": max(steps), "loss": {"name": "sapo"}, "optim": {"lr": 1e-4}, "model": {"path": ""}}
    config["rollout"] = {"group_size": group, "prompts_per_step": prompts}
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "summary.json").write_text(json.dumps(_summary(seed, max(steps), notices or {})))
    return folder


def make_evaluation(folder: Path, scores: Mapping[str, Sequence[float]], *, source: str = "") -> Path:
    """A benchmark's folder with an item for each id, whose responses have these scores; the first text is HOSTILE."""
    folder.mkdir(parents=True)
    harness = {"benchmark": {"name": "shapes", "source": source, "split": "test"}, "prompts": "0", "k": 1}
    (folder / "harness.json").write_text(json.dumps({"hash": "0", "spec": "shapes", "harness": harness}))
    mean = float(np.mean([np.mean(s) for s in scores.values()]))
    summary = {"k": 1, "pass@1": {"mean": mean, "n": len(scores), "ci95": [0.1, 0.9]}, "items": {"asked": len(scores)}}
    (folder / "summary.json").write_text(json.dumps(summary))
    with (folder / "records.jsonl").open("w") as file:
        for row, (id, values) in enumerate(scores.items()):
            texts = [HOSTILE if row == 0 else f"<answer>{row}</answer>", *["<answer>7</answer>"] * (len(values) - 1)]
            record = {
                "benchmark": "shapes", "id": id, "prompt": f"hash of {id}", "row": row, "number": 0, "task": "count",
                "messages": [{"role": "user", "content": f"what of {id} ?"}],
                "reward": "number", "rule": "number", "other_rule": "", "gold": str(row), "meta": {}, "groups": {},
                "skipped": "", "responses": [
                    {"text": t, "tokens": 4, "finish": "stop", "answer": str(row), "score": s, "status": "scored",
                     "reason": "" if s == 1 else "wrong", "parts": {}, "other": None}
                    for t, s in zip(texts, values, strict=True)
                ],
            }  # fmt: skip
            file.write(json.dumps(record) + "\n")
    return folder


def _group(rng: np.random.Generator, step: int, nth: int, p: int, group: int, names: list[str]) -> list[dict[str, Any]]:
    task = TASKS[p % len(TASKS)]
    rewards = np.full(group, 0.5) if p == 1 else rng.integers(0, 2, group).astype(float)
    if p == 0:
        rewards[:2] = 0.0, 1.0
    scale = rewards.std() or 1.0
    lines = []
    for i in range(group):
        ids = [0, int(rng.integers(4, 14)), 1, 2, int(rng.integers(4, 14)), 3]
        text = "".join(WORDS[t] for t in ids)
        if task == "ground":
            x, y = (int(v) for v in rng.integers(0, 8, 2))
            text = f"<think>the</think><answer>{x} {y} {x + 5} {y + 6}</answer>"
        if p == 0 and i == 1:
            text = HOSTILE
        lines.append(
            {
                "step": step, "id": f"{task}-{p}-{nth % 3}", "task": task, "prompt": f"user: <image>what about {p} ?",
                "answer": "2 3 9 11" if task == "ground" else str(p), "images": [names[(p + nth) % len(names)]],
                "response": text, "response_ids": ids, "finish": "length" if p == 2 and i == 0 else "stop",
                "reward": float(rewards[i]), "parts": {"accuracy": float(rewards[i]), "format": 1.0},
                "score_status": "scored", "score_detail": "" if rewards[i] else "wrong",
                "advantage": float((rewards[i] - rewards.mean()) / scale), "weight_version": step - 1,
                "mean_logprob": -float(rng.random()),
            }
        )  # fmt: skip
    return lines


def _tokens(rng: np.random.Generator, ids: Sequence[Sequence[int]]) -> Tokens:
    offsets = np.concatenate([[0], np.cumsum([len(i) for i in ids])])
    total = int(offsets[-1])
    log_ratio = rng.normal(0, 0.05, total)
    old = -rng.random(total)
    mask = np.ones(total)
    mask[offsets[:-1]] = 0
    log_ratio[offsets[:-1]] = 3.0  # masked: it must not set the scale
    return Tokens(
        offsets=offsets, update=np.ones(len(ids)), token_ids=np.concatenate([np.asarray(i) for i in ids]),
        ratio=np.exp(log_ratio), gate=1 - log_ratio**2 / 4, logp_old=old, logp_new=old + log_ratio,
        entropy=rng.random(total), gap=np.full(total, np.nan), mask=mask,
    )  # fmt: skip


def _metrics(folder: Path, last: int, rng: np.random.Generator, notices: Mapping[int, Sequence[str]]) -> None:
    with (folder / "metrics.jsonl").open("w") as file:
        for step, accuracy in ((0, 0.4), (last, 0.6)):
            evaluated = {"eval/sampled/all": accuracy, "eval/sampled/all/ci95": [accuracy - 0.05, accuracy + 0.05]}
            file.write(json.dumps({"step": step, "phase": "eval", "time": 0.0, **evaluated}) + "\n")
        for step in range(1, last + 1):
            rise = step / last
            row: dict[str, Any] = {
                "reward/mean": 0.3 + 0.4 * rise + rng.normal(0, 0.03), "reward/task/count": 0.5,
                "reward/part/format": 1.0, "accuracy/mean": 0.3 + 0.3 * rise,
                "entropy/mean": 1.0 - 0.5 * rise, "length/mean": 6.0,
                "groups/dead_share": 0.25, "length/truncated_share": 0.01, "unscorable/share": 0.0,
                "gate/mean": 0.9995 - 0.002 * rise, "gate/pos/mean": 0.999, "gate/neg/mean": 0.998,
                "grad_norm": 0.5 + rng.random(),
                "log_ratio/pos/hist": [0] * 6 + [3, 9, 200, 12, 2] + [0] * 6,
                "log_ratio/neg/hist": [0] * 5 + [5, 20, 150, 100, 30, 4] + [0] * 6, "mismatch/gap_mean": None,
                "sequence/pos/var/hist": [0] * 5 + [2, 4, 6, 1] + [0] * 5,  # 6 of 13 between 0.01 and 0.02
                "seconds/step": 1.0,
            }  # fmt: skip
            if step in notices:
                row["notices"] = list(notices[step])
            file.write(json.dumps({"step": step, "phase": "train", "time": float(step), **row}) + "\n")


def _summary(seed: int, steps: int, notices: Mapping[int, Sequence[str]]) -> dict[str, Any]:
    def level(mean: float) -> dict[str, Any]:
        figures = {"mean": mean, "n": 100, "ci95": [mean - 0.1, mean + 0.1]}
        return {**figures, "by_task": dict.fromkeys(TASKS, figures)}

    modes = ("sampled", "greedy", "blank_image")
    return {
        "seed": seed, "loss": "sapo", "ranks": 2, "steps": steps, "bad_rows": 0,
        "accuracy": {"cold_start": {m: level(0.4) for m in modes}, "final": {m: level(0.6) for m in modes}},
        "wall_s": {"rollout": 10.0, "train": 20.0, "rl": 40.0, "total": 50.0}, "peak_memory": {"rss_max_gib": 1.0},
        "versions": {"torch": "2.14.1"}, "notices": {
            name: {"first": min(at), "last": max(at), "rows": len(at)}
            for name in sorted({name for names in notices.values() for name in names})
            for at in [[step for step, names in notices.items() if name in names]]
        },
    }  # fmt: skip


def _picture(folder: Path, rng: np.random.Generator) -> str:
    image = Image.fromarray(np.kron(rng.integers(0, 256, (4, 4, 3), np.uint8), np.ones((16, 16, 1), np.uint8)))
    name = image_hash(image)
    (folder / f"{name}.png").write_bytes(encode_png(image))
    return name


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)} | {"?": len(WORDS)}, unk_token="?")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
