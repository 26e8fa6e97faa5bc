# Sourced by scripts/demo, scripts/test, scripts/check_versions and .ci/run: an environment of the project's own, made on
# first use, with the versions of requirements/.
# VIRTUAL_ENV (an activated environment) wins over VENV (default: .venv); PYTHON names the interpreter to make it with.
# CPU_TORCH=1 takes torch without CUDA: less than half of the disk and of the download.

PROJECT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CPU_INDEX=https://download.pytorch.org/whl/cpu
# What an installation takes at its peak: the environment (8 GB; 4 without CUDA), and the downloads, which pip has twice.
PIP_DISK_GB=16
UV_DISK_GB=10
CPU_DISK_GB=7

supported() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' 2>/dev/null
}

choose_python() { # prints an interpreter that nerfstudio's dependencies have wheels for; nothing if there is none
    local candidate
    for candidate in ${PYTHON:-python3.12 python3.11 python3.10 python3.13 python3}; do
        if command -v "$candidate" >/dev/null && supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
}

lacking() { # lacking WHAT REMEDY [PACKAGE]: notes something that the installation would miss
    MISSING+=("error: $1: $2")
    PACKAGES+=(${3:-})
}

check_machine() { # check_machine FOLDER PYTHON: before anything is installed; prints a line for each thing that is missing
    local folder=$1 python=$2 free needed=$PIP_DISK_GB parent=$1 include
    MISSING=() PACKAGES=()
    if [ -n "$(find "$folder" -maxdepth 1 -name '.maskfield-*' 2>/dev/null)" ]; then
        return # installed before
    fi
    if [ -z "$python" ] && [ -n "${PYTHON:-}" ]; then
        lacking "PYTHON=$PYTHON is not a Python from 3.10 to 3.13" "name another one"
    elif [ -z "$python" ]; then
        lacking "no Python from 3.10 to 3.13" "install one, or name one with PYTHON=/path/to/python" "python3 python3-venv"
    elif [ ! -x "$folder/bin/python" ] && ! command -v uv >/dev/null &&
        ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        lacking "$python cannot make environments" "install its venv package, or uv" "$(debian_name "$python")-venv"
    fi
    # On Python 3.13 fpsample has no wheel; on a machine with an NVIDIA GPU gsplat compiles its kernels on first use.
    if [ -n "$python" ] && { newest "$python" || { [ -z "${CPU_TORCH:-}" ] && command -v nvidia-smi >/dev/null; }; }; then
        include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
        [ -f "$include/Python.h" ] ||
            lacking "no Python.h in $include" "install $python's headers" "$(debian_name "$python")-dev"
        command -v "${CXX:-c++}" >/dev/null || lacking "no C++ compiler" "install one, or name one with CXX" g++
    fi
    if command -v uv >/dev/null; then needed=$UV_DISK_GB; fi
    if [ -n "${CPU_TORCH:-}" ]; then needed=$CPU_DISK_GB; fi
    while [ ! -d "$parent" ]; do parent=$(dirname "$parent"); done
    free=$(df -Pk "$parent" | awk 'NR == 2 { print int($4 / 1000000 * 1.024) }')
    if [ ! -d "$folder"/lib/python3*/site-packages/torch ] && [ "$free" -lt "$needed" ]; then
        lacking "$free GB are free in $parent, $needed are needed" \
            "make room, or name a folder elsewhere with VENV=/path${CPU_TORCH:-, or take torch without CUDA with CPU_TORCH=1}"
    fi
    if [ ${#MISSING[@]} -gt 0 ]; then
        printf '%s\n' "${MISSING[@]}" >&2
        [ ${#PACKAGES[@]} -eq 0 ] || echo "on Debian and Ubuntu: sudo apt install ${PACKAGES[*]}" >&2
        return 1
    fi
}

newest() { # whether it is a Python that some dependencies have no wheels for
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] < (3, 13))'
}

debian_name() { # python3 for the system's own, else python3.X
    if [ "$(command -v "$1")" = /usr/bin/python3 ]; then echo python3; else "$1" -c 'import sys; print("python3.%d" % sys.version_info[1])'; fi
}

use_environment() { # sets BIN to the bin folder of the environment
    local folder=${VIRTUAL_ENV:-${VENV:-$PROJECT/.venv}} python
    if [ -x "$folder/bin/python" ]; then
        python=$folder/bin/python
        if ! supported "$python"; then
            echo "error: $folder has $("$python" --version); Python 3.10 to 3.13 is needed" >&2
            return 1
        fi
    else
        python=$(choose_python)
    fi
    check_machine "$folder" "$python"
    if [ ! -x "$folder/bin/python" ]; then
        echo "making $folder with $("$python" --version)"
        if command -v uv >/dev/null; then
            uv venv --quiet --python "$python" "$folder"
        else
            "$python" -m venv "$folder"
        fi
    fi
    BIN=$folder/bin
    export VIRTUAL_ENV=$folder PATH="$BIN:$PATH"
}

source_state() { # source_state PATH...: changes when the contents of these files and folders do
    local path
    cd "$PROJECT" && find "$@" -type f ! -path '*/__pycache__/*' -print0 |
        LC_ALL=C sort -z | while IFS= read -r -d '' path; do
            printf '%s\n' "$path"
            cat "$path"
        done | cksum
}

pip_install() { # pip_install ARGUMENT...: with uv where there is one
    if command -v uv >/dev/null; then
        uv pip install --python "$BIN/python" "$@"
    else
        "$BIN/python" -m pip install --no-compile "$@" # as uv: what is never imported is never compiled
    fi
}

install_project() { # install_project LOCK SOURCE...: the versions of requirements/LOCK, then the project; once
    local lock=$PROJECT/requirements/$1 stamp=$VIRTUAL_ENV/.maskfield-$1 state inputs=(pyproject.toml README.md maskfield_ns)
    shift
    if [ "$1" = --editable ]; then
        inputs=(pyproject.toml)
    fi
    state="$* ${CPU_TORCH:-} $(source_state "$lock" "${inputs[@]}")"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$state" ]; then
        return
    fi
    echo "installing into $VIRTUAL_ENV: the first time this fetches torch and nerfstudio, several GB"
    # The list is complete, and --no-deps keeps out what it leaves out (requirements/overrides.txt).
    if [ -n "${CPU_TORCH:-}" ]; then
        pip_install --no-deps -r <(grep -vE '^(nvidia-|cuda-|triton)' "$lock") \
            $(if command -v uv >/dev/null; then echo --torch-backend cpu; else echo --extra-index-url "$CPU_INDEX"; fi)
    else
        pip_install --no-deps -r "$lock"
    fi
    rm -rf "$PROJECT/build" # setuptools would install what an earlier build has left there
    # uv would keep an earlier build of this folder as long as pyproject.toml is the same.
    pip_install --no-deps $(command -v uv >/dev/null && echo --reinstall-package maskfield-ns) "$@"
    # The stamp of the other kind of installation no longer tells the truth.
    rm -f "$VIRTUAL_ENV"/.maskfield-*
    printf '%s' "$state" >"$stamp"
}
