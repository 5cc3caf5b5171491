#!/usr/bin/env bash
# Kills runs of tiny models at named points, at changes to files and at random moments, starts them again, and compares
# what they leave with runs that nothing happened to; prints a table. docs/recovery.md has what was run.
#
#   bash scripts/chaos.sh --minutes 30 --seeds 0,1,2                 everything
#   bash scripts/chaos.sh --minutes 10 --engines transformers        without vLLM
#   bash scripts/chaos.sh --servers --rounds 50 --seed 0             rollout servers instead, on hosts of their own (root)
#   bash scripts/chaos.sh --soak 5000                                a long run instead: its memory, files and threads
#
# OUT_DIR keeps what is written: results.jsonl, and of runs that differ, the folder and what they printed.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
bash scripts/setup.sh
source scripts/env.sh
export HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PYTHONPATH="$root:$root/tests/support"

out=${OUT_DIR:-$(mktemp -d -t sapo_vl_chaos.XXXXXX)}
printf 'in %s\n' "$out"
case ${1-} in
--servers) python tests/support/server_chaos.py "$out" "${@:2}" ;;
--soak) python tests/support/soak.py "$out" "${2:-5000}" 250 0 worker ;;
*) python tests/support/chaos.py "$out" "$@" ;;
esac
