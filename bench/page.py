"""`sapo-vl view` on a long run: what its file takes and holds, and how fast its server answers. The run is made up.

    python bench/page.py                              # 1,000 steps of 1,024 responses of 40 tokens: 1.5 GB
    python bench/page.py --steps 100 --folder RUN     # keep the run in RUN, or measure the one that is there

Seconds are CPU time of this process, which builds the file and runs the server; answers come over HTTP.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models

from sapo_vl.data.images import encode_png
from sapo_vl.record.rollout_log import image_hash, step_path
from sapo_vl.record.tokens import Tokens, bytes_of_rank, choose, write_tokens
from sapo_vl.viewing.collecting import write_page
from sapo_vl.viewing.serving import HOST, Server, Site

T = TypeVar("T")
GROUP, IMAGES, DIFFERENT = 8, 64, 10  # responses of a group; pictures; steps that are made up, which then come again
WORDS = ["the", "red", "blue", "box", "is", "left", "of", "a", "large", "circle", "<think>", "</think>", *"0123456789"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--responses", type=int, default=1024, help=f"a step; a multiple of {GROUP}")
    parser.add_argument("--length", type=int, default=40, help="tokens of a response")
    parser.add_argument("--limit", type=float, default=24.0, help="megabytes of data in the file")
    parser.add_argument("--folder", type=Path, help="where the run is, or is to be")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = args.folder or Path(temporary) / "run"
        if not run.exists():
            make_run(run, args.steps, args.responses, args.length)
        files = [path for path in run.rglob("*") if path.is_file()]
        print(f"{run}: {len(files)} files, {sum(p.stat().st_size for p in files) / 1e6:.0f} MB")
        of_file(run, Path(temporary) / "page.html", args.limit)
        of_server(run)


def of_file(run: Path, out: Path, limit: float) -> None:
    made, seconds = timed(lambda: write_page([run], out, None, limit))
    print(
        f"file: {made['bytes'] / 1e6:.1f} MB in {seconds:.1f} s, {made['responses']} of {made['responses_saved']} "
        f"responses in {made['groups']} groups"
    )


def of_server(run: Path) -> None:
    site, seconds = timed(lambda: Site([run], None, follow=False))
    print(f"server: starts in {seconds:.2f} s")
    with Server(site, 0) as server:
        Thread(target=server.serve_forever, daemon=True).start()

        def ask(what: str, path: str) -> bytes:
            answer, taken = timed(lambda: get(server.server_address[1], path))
            print(f"server: {what} {len(answer) / 1e6:.2f} MB in {taken:.2f} s")
            return answer

        ask("the page", "/")
        steps = json.loads(get(server.server_address[1], "/api/overview"))["runs"][0]["saved_steps"]
        middle = steps[len(steps) // 2]
        ask("list of a step", f"/api/index?run=0&step={middle}")
        ask("a step, all of its groups,", f"/api/step?run=0&step={middle}")
        ask("text in a step", f"/api/search?run=0&step={middle}&text=nowhere")
        rows, seconds = timed(lambda: sum(len(part["rows"]) for part in whole_list(server.server_address[1])))
        print(f"server: list of all steps, {rows} groups, in {seconds:.1f} s, bit by bit while it can be used")
        server.shutdown()


def whole_list(port: int) -> Iterator[dict[str, Any]]:
    after, done = -1, False
    while not done:
        part = json.loads(get(port, f"/api/index?run=0&after={after}"))
        after, done = part["after"], part["done"]
        yield part


def get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection(HOST, port)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    if answer.status != 200:
        raise SystemExit(f"{path}: {answer.status} {body[:200]!r}")
    return body


def timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.process_time()
    result = work()
    return result, time.process_time() - started


def make_run(run: Path, steps: int, responses: int, length: int) -> None:
    """A run of one rank that saved every step."""
    rng = np.random.default_rng(0)
    rollouts = run / "rollouts"
    (rollouts / "images").mkdir(parents=True)
    (run / "final").mkdir()
    Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="the")).save(
        str(run / "final" / "tokenizer.json")
    )
    names = []
    for _ in range(IMAGES):
        image = Image.fromarray(np.kron(rng.integers(0, 256, (8, 8, 3), np.uint8), np.ones((28, 28, 1), np.uint8)))
        names.append(image_hash(image))
        (rollouts / "images" / f"{names[-1]}.png").write_bytes(encode_png(image))
    made = [made_step(rng, names, responses, length, i) for i in range(min(DIFFERENT, steps))]
    with (run / "metrics.jsonl").open("w") as metrics:
        for step in range(1, steps + 1):
            text, tokens = made[step % len(made)]
            step_path(rollouts, step, 0).write_text(text.replace("@STEP@", str(step)))
            write_tokens(step_path(rollouts, step, 0), tokens)
            values = {f"metric/{i}": random.Random(step * 97 + i).random() for i in range(150)}
            values["reward/mean"] = 0.3 + 0.4 * step / steps
            metrics.write(json.dumps({"step": step, "phase": "train", "time": float(step), **values}) + "\n")
    config = {"seed": 0, "steps": steps, "rollout": {"group_size": GROUP, "prompts_per_step": responses // GROUP}}
    (run / "config.yaml").write_text(json.dumps(config))


def made_step(rng: np.random.Generator, names: list[str], responses: int, length: int, nth: int) -> tuple[str, Tokens]:
    """(lines with @STEP@ for the number of the step, numbers of their tokens as a run bounds them)."""
    ids = rng.integers(0, len(WORDS), (responses, length))
    lines = []
    for i in range(responses):
        reward = float(rng.integers(0, 2))
        line = {
            "step": 0, "id": f"problem-{nth}-{i // GROUP}", "task": ("count", "compare")[i // GROUP % 2], "answer": "3",
            "prompt": "user: <image>How many red boxes are left of the large circle? Answer with a number.",
            "images": [names[(nth * 7 + i // GROUP) % len(names)]], "response": " ".join(WORDS[t] for t in ids[i]),
            "response_ids": ids[i].tolist(), "finish": "stop", "reward": reward, "parts": {"accuracy": reward},
            "score_status": "scored", "score_detail": "", "advantage": 2 * reward - 1, "weight_version": nth,
            "mean_logprob": -0.5,
        }  # fmt: skip
        lines.append(json.dumps(line).replace('"step": 0', '"step": @STEP@', 1) + "\n")
    limit = bytes_of_rank(8_000_000, 0, 1, 0, 0)
    groups = responses // GROUP
    kept = [one for group in choose([[length] * GROUP] * groups, [True] * groups, limit) for one in group]
    offsets = np.concatenate([[0], np.cumsum(np.array(kept) * length)])
    total = int(offsets[-1])
    log_ratio, old = rng.normal(0, 0.05, total), -rng.random(total)
    tokens = Tokens(
        offsets=offsets, update=np.where(kept, 1, -1), token_ids=ids[np.array(kept)].ravel(), ratio=np.exp(log_ratio),
        gate=1 - log_ratio**2 / 4, logp_old=old, logp_new=old + log_ratio, entropy=rng.random(total),
        gap=np.full(total, np.nan), mask=np.ones(total),
    )  # fmt: skip
    return "".join(lines), tokens


if __name__ == "__main__":
    main()
