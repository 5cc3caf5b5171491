#!/usr/bin/env bash
# The first hour on a GPU, in under 8 minutes: bash bench/gpu.sh [--out DIR]
# Every part runs alone, and one that fails does not hide the others; DIR/report.json has all of them.
# `bash bench/gpu.sh --device cpu` tries the script itself with tiny sizes.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "${PYTHON:-python}" bench/gpu.py "$@"
