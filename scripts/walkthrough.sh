#!/usr/bin/env bash
# One pass over everything, small and offline: data, tiny model, cold start, training, evaluation of both models on
# benchmarks from local sets, rescoring, comparison. docs/evaluation.md walks through it.
#   bash scripts/walkthrough.sh [key=value ...]        results: OUT_DIR (default runs/walkthrough)
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup.sh"
# shellcheck disable=SC1091
source "$root/scripts/env.sh"
bash "$root/scripts/walkthrough_steps.sh" "${OUT_DIR:-$root/runs/walkthrough}" "$@"
