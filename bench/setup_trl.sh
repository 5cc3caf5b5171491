#!/usr/bin/env bash
# Makes the environment of TRL's side of bench/vs_trl.py, apart from the trainer's own.
#
#   bash bench/setup_trl.sh [FOLDER]              FOLDER is .venv-trl by default; several GB, a few minutes
#   bash bench/setup_trl.sh --share [FOLDER]      takes all but TRL itself from the Python that is active: seconds, no GB
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
share=
if [[ ${1-} == --share ]]; then
    share=1
    shift
fi
folder=${1:-$root/.venv-trl}
python=${PYTHON:-python3}

"$python" -m venv --clear "$folder"
pip=("$folder/bin/python" -I -m pip install --quiet --no-input --no-compile --disable-pip-version-check)
if [[ -n $share ]]; then
    "$python" -c 'import site; print("\n".join(site.getsitepackages()))' \
        >"$("$folder/bin/python" -c 'import site; print(site.getsitepackages()[0])')/shared.pth"
    "${pip[@]}" --no-deps "$(grep '^trl==' "$root/bench/requirements-trl.txt")"
else
    "${pip[@]}" -r "$root/bench/requirements-trl.txt"
fi
"$folder/bin/python" -c 'import torch, trl; print(f"TRL {trl.__version__} on torch {torch.__version__}")'
echo "ready: $folder"
