#!/usr/bin/env bash
# Cold start, SAPO and evaluation of a dense Qwen3-VL. Without arguments: the embedded tiny default on a CPU.
#   bash scripts/train_vl_dense.sh [--config FILE] [key=value ...]        run folder: OUT_DIR (default runs/tiny_dense)
set -euo pipefail
DEFAULT_CONFIG=tiny_dense source "$(dirname "${BASH_SOURCE[0]}")/run_config.sh"
