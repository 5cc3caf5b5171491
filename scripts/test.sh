#!/usr/bin/env bash
# Everything that must hold before a commit: lint, format, types, and all tests, the slow ones too.
# Sets the environment up first if need be. No GPU and no network (after the setup) are used.
#
#   bash scripts/test.sh                        all of it
#   bash scripts/test.sh -k losses -m 'not slow'    arguments go to pytest
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
bash scripts/setup.sh
source scripts/env.sh

# A 235B model built without weights still passes through the allocator: with freed blocks kept, one process would
# reserve more address space than the kernel lets it fork with.
unset MALLOC_TRIM_THRESHOLD_ MALLOC_MMAP_THRESHOLD_ MALLOC_TOP_PAD_

# The model hub is never asked: what tests need, they make. Results must not depend on a GPU being there.
export HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES=
# More threads than cores slow tiny tensors down, and tests start rank processes of their own.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

failed=()
check() {
    local name=$1
    shift
    printf '== %s\n' "$name"
    "$@" || failed+=("$name")
}

check 'ruff check' ruff check --quiet --output-format concise .
check 'ruff format' ruff format --check --quiet --output-format concise .
check 'pyright' pyright --pythonpath "$(command -v python)"
# Three files at a time, slow ones first: much of the time a test waits for processes of its own. `-n 0` among the
# arguments undoes it.
check 'pytest' python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=40 --durations-min=1 "$@"

# Silence on success keeps pytest's closing line the last one.
if ((${#failed[@]})); then
    printf 'FAILED: %s\n' "${failed[@]}" >&2
    exit 1
fi
