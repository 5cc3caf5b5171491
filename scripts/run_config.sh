# The common body of the train scripts; sourced with DEFAULT_CONFIG set to the name of a file in configs/.
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup.sh"
# shellcheck disable=SC1091
source "$root/scripts/env.sh"

config=$root/configs/$DEFAULT_CONFIG.yaml
if [[ ${1-} == --config ]]; then
    config=${2:?--config needs a file}
    shift 2
fi
exec sapo-vl run --config "$config" --out "${OUT_DIR:-$root/runs/$(basename "$config" .yaml)}" "$@"
