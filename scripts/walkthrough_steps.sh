#!/usr/bin/env bash
# What scripts/walkthrough.sh does, in an environment that is there already.
#   bash scripts/walkthrough_steps.sh DIR [key=value ...]
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "$1"
out=$(cd -- "$1" && pwd)
shift
export HF_HUB_OFFLINE=1

echo '== data: a recipe of ours, a file of yours, and their mixture'
[[ -d $out/puzzles ]] || sapo-vl recipe visual_puzzles --out "$out/puzzles" tasks=count n_cold_start=1000 n_train=200 n_test=40
python - "$out" <<'PYTHON'
"""Your file: pictures of discs beside rows in the form of EasyR1."""
import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw

out = Path(sys.argv[1]) / "discs"
out.mkdir(exist_ok=True)
with (out / "rows.jsonl").open("w") as rows:
    for i in range(36):
        picture = Image.new("RGB", (32, 32), (30 + 5 * i, 40, 60))
        draw = ImageDraw.Draw(picture)
        for n in range(i % 4):
            draw.ellipse((2 + 7 * n, 4 + i % 20, 7 + 7 * n, 9 + i % 20), fill="red")
        picture.save(out / f"{i}.png")
        row = {"images": [f"{i}.png"], "problem": "<image>how many red ?", "answer": str(i % 4)}
        rows.write(json.dumps(row) + "\n")
PYTHON
[[ -d $out/yours ]] || sapo-vl recipe columns --out "$out/yours" source="$out/discs/rows.jsonl" form=easyr1 \
    reward=number licence=CC0 test_rows=6
[[ -d $out/mixture ]] || sapo-vl recipe mixture --out "$out/mixture" sets="puzzles=$out/puzzles,discs=$out/yours"
sapo-vl recipe check "$out/mixture"

echo '== local copies of benchmarks, in the columns of the real ones'
names=(aime25 chartqa countbench mathvista mmmu realworldqa)
PYTHONPATH=$root/tests/support python - "$out" "${names[@]}" <<'PYTHON'
import sys
from pathlib import Path

from benchmark_sets import write_set

for name in sys.argv[2:]:
    write_set(name, Path(sys.argv[1]) / "benchmarks", only_good=True)
PYTHON

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
"""Rows for it: the test pictures of the puzzles, as files."""
import json
import sys
from pathlib import Path

from sapo_vl.data.problem_set import ProblemSet

out = Path(sys.argv[1])
(out / "shapes").mkdir(exist_ok=True)
test = ProblemSet(out / "puzzles", "test")
with (out / "shapes" / "rows.jsonl").open("w") as rows:
    for i in range(len(test)):
        problem = test.get(i)
        problem.images[0].save(out / "shapes" / f"{i}.png")
        cells = {"question": problem.messages[0]["content"][1]["text"], "picture": f"{i}.png", "answer": problem.answer}
        rows.write(json.dumps(cells | {"level": problem.meta["scene"]["level"]}) + "\n")
PYTHON

# A mapping from names to where the items are; without a source, the set on the hub.
benchmarks="$out/my_bench.py:SHAPES: {}"
for name in "${names[@]}"; do
    benchmarks+=", $name: {source: $out/benchmarks/$name.parquet, k: 2}"
done
config=(--config "$root/configs/tiny_dense.yaml" processes=1 model.tiny= recipe.name= model.max_prompt_tokens=512)

echo '== a tiny model and its cold start'
[[ -d $out/model ]] || sapo-vl init-tiny --kind dense --data "$out/puzzles" --out "$out/model"
sapo-vl sft "${config[@]}" --out "$out/sft" model.path="$out/model" data.path="$out/puzzles" \
    cold_start.steps=80 cold_start.batch_size=16 cold_start.target_pass_rate=0 "$@"

echo '== training on the mixture, three parts puzzles and one part yours, which also measures the benchmark'
sapo-vl train "${config[@]}" --out "$out/run" model.path="$out/sft/cold_start" data.path="$out/mixture" \
    'data.quotas={puzzles: 0.75, discs: 0.25}' steps=3 rollout.prompts_per_step=16 checkpoint.every=0 eval.limit=4 \
    eval.max_per_task=20 eval.modes='[greedy]' "eval.benchmarks={$out/my_bench.py:SHAPES: {}}" "$@"

for model in sft/cold_start run/final; do
    echo "== evaluation of $model"
    sapo-vl eval "${config[@]}" --out "$out/eval_$(basename "$model")" model.path="$out/$model" \
        "eval.benchmarks={$benchmarks}" "$@"
done

echo '== the saved responses, judged again'
sapo-vl rescore "$out/eval_final" --benchmark "$out/my_bench.py:SHAPES"

echo '== is the trained model better?'
sapo-vl compare "$out/eval_cold_start" "$out/eval_final"
