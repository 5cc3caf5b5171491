#!/usr/bin/env bash
# Fuzzes every parser of outside bytes for so many minutes (10), round after round with a fresh seed, and stops at the
# first input that breaks one. The seed of a round repeats it.
#
#   bash scripts/fuzz.sh 30                       half an hour
#   FUZZ=20 bash scripts/fuzz.sh 30 -k archive    more inputs a round; arguments after the minutes go to pytest
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
source scripts/env.sh
export FUZZ=${FUZZ:-5} HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES='' OMP_NUM_THREADS=1

minutes=10
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
    minutes=$1
    shift
fi
end=$((SECONDS + 60 * minutes))
rounds=0
while ((SECONDS < end)); do
    seed=$((RANDOM << 15 | RANDOM))
    printf '== seed %d, FUZZ=%d\n' "$seed" "$FUZZ"
    python -m pytest -q -x --seed "$seed" tests/test_fuzz_answers.py tests/test_fuzz_files.py \
        tests/rollout/test_fuzz_replies.py "$@"
    rounds=$((rounds + 1))
done
printf '%d rounds, nothing broke\n' "$rounds"
