# The environment for our Python processes; other scripts `source` it after scripts/setup.sh ran.
# Threads per process (OMP_NUM_THREADS) are left to the launcher, which knows how many ranks share the machine.

_sapo_vl_root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC1091
source "${SAPO_VL_VENV:-$_sapo_vl_root/.venv}/bin/activate"
unset _sapo_vl_root

# The tokenizers library starts threads of its own, which then warn or hang in forked reward workers.
export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}

# glibc by default gives every large freed block back to the kernel and asks for it again in the next step, page
# by page: on a CPU a training step allocates the same large tensors each time. Thresholds no block reaches make
# it keep them. Read once, when a process starts; plain byte counts, no exponents; other allocators ignore them.
export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-8000000000}
export MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_:-8000000000}
export MALLOC_TOP_PAD_=${MALLOC_TOP_PAD_:-200000000}
