#!/usr/bin/env bash
# Asks the public databases of faults about the packages of this environment, with pip-audit. Needs the network, so it
# is no part of the tests. Arguments go to pip-audit.
#
#   bash scripts/audit.sh
#   bash scripts/audit.sh --ignore-vuln PYSEC-2025-1    one that was looked at
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
source scripts/env.sh

# In an environment of its own: what looks at the packages is none of them.
tool=.venv-audit
if [[ ! -x $tool/bin/pip-audit ]]; then
    python -m venv "$tool"
    "$tool/bin/pip" install --quiet 'pip-audit>=2.9'
fi
site=$(python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
exec "$tool/bin/pip-audit" --path "$site" --progress-spinner off --desc "$@"
