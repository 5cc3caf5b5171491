#!/usr/bin/env bash
# Supervised fine-tuning on a recipe's solutions, before RL. The model lands in OUT_DIR/cold_start.
#   bash scripts/cold_start.sh --config FILE model.path=... data.path=... [key=value ...]
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup.sh"
# shellcheck disable=SC1091
source "$root/scripts/env.sh"
sapo-vl sft --out "${OUT_DIR:-$root/runs/cold_start}" "$@"
