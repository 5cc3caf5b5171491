#!/usr/bin/env bash
# Measures a model on benchmarks, or on the held-out split of data.path. Results go to OUT_DIR (default
# runs/evaluation); started again with the same settings, it goes on where it stopped.
#   bash scripts/evaluate.sh --config FILE --benchmark aime25[,NAME...] model.path=... [key=value ...]
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup.sh"
# shellcheck disable=SC1091
source "$root/scripts/env.sh"
exec sapo-vl eval --out "${OUT_DIR:-$root/runs/evaluation}" "$@"
