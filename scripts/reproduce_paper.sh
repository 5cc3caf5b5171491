#!/usr/bin/env bash
# The paper's experiments: SAPO, GSPO, GRPO and GRPO-R2, temperatures, mixed data, and a stress test, as runs side by side,
# figures and a report. Without --config: tiny models on a CPU, hours on two cores. Called again, it goes on.
#   bash scripts/reproduce_paper.sh [--config FILE] [--figures 4,stress] [--budget-minutes 60] [key=value ...]
# Results: OUT_DIR (default runs/paper). docs/experiments.md has the options.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup.sh"
# shellcheck disable=SC1091
source "$root/scripts/env.sh"

config=$root/configs/experiments/tiny.yaml
if [[ ${1-} == --config ]]; then
    config=${2:?--config needs a file}
    shift 2
fi
exec sapo-vl reproduce --config "$config" --out "${OUT_DIR:-$root/runs/paper}" "$@"
