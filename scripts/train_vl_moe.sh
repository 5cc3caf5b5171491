#!/usr/bin/env bash
# Cold start, SAPO and evaluation of a Qwen3-VL-MoE. Without arguments: the embedded tiny default on a CPU.
#   bash scripts/train_vl_moe.sh [--config FILE] [key=value ...]        run folder: OUT_DIR (default runs/tiny_moe)
set -euo pipefail
DEFAULT_CONFIG=tiny_moe source "$(dirname "${BASH_SOURCE[0]}")/run_config.sh"
