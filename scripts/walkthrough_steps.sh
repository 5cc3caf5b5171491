#!/usr/bin/env bash
# What scripts/walkthrough.sh does, in an environment that is there already.
#   bash scripts/walkthrough_steps.sh DIR [key=value ...]
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "$1"
out=$(cd -- "$1" && pwd)
shift
export HF_HUB_OFFLINE=1

echo '== a data set'
[[ -d $out/data ]] || sapo-vl recipe visual_puzzles --out "$out/data" tasks=count n_cold_start=1000 n_train=200 n_test=40

echo '== local copies of benchmarks, in the columns of the real ones'
for i in 1 2 3 4 5 6; do
    printf '{"problem_idx": %d, "problem": "how many red ?", "answer": %d}\n' "$i" "$((i % 4))"
done > "$out/aime25.jsonl"

echo '== a benchmark of your own'
cat > "$out/my_bench.py" <<'PYTHON'
# my_bench.py
from pathlib import Path

from sapo_vl.benchmarks import Benchmark
from sapo_vl.types import Problem


def problems(row):
    """The problems of one row. Raise ValueError if the row is broken, LeftOut if it is not to be asked."""
    yield Problem(
        id=f"shapes-{row.index}",
        task="shapes",
        messages=({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row.cells["question"]}]},),
        images=(row.image(row.cells["picture"]),),
        answer=str(row.cells["answer"]),
        reward="number",  # the rule: a name of rewards.REWARDS
        meta={"groups": {"level": row.cells["level"]}},  # accuracy is also given by these
    )


SHAPES = Benchmark(
    name="shapes",
    source=str(Path(__file__).parent / "shapes" / "rows.jsonl"),  # or a folder, or the id of a set on the hub
    split="test",
    licence="CC0",
    columns=("question", "picture", "answer", "level"),
    problems=problems,
    k=4,  # responses an item
)
PYTHON
python - "$out" <<'PYTHON'
"""Rows for it: the test pictures of the data set, as files."""
import json
import sys
from pathlib import Path

from sapo_vl.data import ProblemSet

out = Path(sys.argv[1])
(out / "shapes").mkdir(exist_ok=True)
test = ProblemSet(out / "data", "test")
with (out / "shapes" / "rows.jsonl").open("w") as rows:
    for i in range(len(test)):
        problem = test.get(i)
        problem.images[0].save(out / "shapes" / f"{i}.png")
        cells = {"question": problem.messages[0]["content"][1]["text"], "picture": f"{i}.png", "answer": problem.answer}
        rows.write(json.dumps(cells | {"level": problem.meta["scene"]["level"]}) + "\n")
PYTHON

benchmarks="eval.benchmarks={aime25: {source: $out/aime25.jsonl, k: 2}, $out/my_bench.py:SHAPES: {}}"

echo '== tiny model, cold start, training that also measures the benchmarks'
sapo-vl run --config "$root/configs/tiny_dense.yaml" --out "$out/run" processes=1 recipe.name= data.path="$out/data" \
    cold_start.steps=80 cold_start.batch_size=16 cold_start.target_pass_rate=0 steps=3 rollout.prompts_per_step=16 \
    checkpoint.every=0 eval.limit=4 eval.max_per_task=20 eval.modes='[greedy]' "$benchmarks" "$@"

for model in cold_start final; do
    echo "== evaluation of $model"
    sapo-vl eval --config "$root/configs/tiny_dense.yaml" --out "$out/eval_$model" processes=1 recipe.name= \
        model.tiny= model.path="$out/run/$model" "$benchmarks" "$@"
done

echo '== the saved responses, judged again'
sapo-vl rescore "$out/eval_final" --benchmark "$out/my_bench.py:SHAPES"

echo '== is the trained model better?'
sapo-vl compare "$out/eval_cold_start" "$out/eval_final"
