# Sourced by scripts/demo, scripts/test and .ci/run: an environment of the project's own, made on first use.
# VIRTUAL_ENV (an activated environment) wins over VENV (default: .venv); PYTHON names the interpreter to make it with.

PROJECT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

supported() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' 2>/dev/null
}

choose_python() { # prints an interpreter that nerfstudio's dependencies have wheels for
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        supported "$PYTHON" && echo "$PYTHON" && return
        echo "error: PYTHON=$PYTHON is not a Python from 3.10 to 3.13" >&2
        return 1
    fi
    for candidate in python3.12 python3.11 python3.10 python3.13 python3; do
        if command -v "$candidate" >/dev/null && supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python from 3.10 to 3.13 found: install one, or name one with PYTHON=/path/to/python" >&2
    return 1
}

use_environment() { # sets BIN to the bin folder of the environment
    local folder=${VIRTUAL_ENV:-${VENV:-$PROJECT/.venv}} python
    if [ ! -x "$folder/bin/python" ]; then
        python=$(choose_python)
        echo "making $folder with $("$python" --version)"
        if command -v uv >/dev/null; then
            uv venv --quiet --python "$python" "$folder"
        elif ! "$python" -m venv "$folder"; then
            echo "error: $python cannot make environments: install its venv package (e.g. apt install python3-venv)" >&2
            return 1
        fi
    fi
    BIN=$folder/bin
    if ! supported "$BIN/python"; then
        echo "error: $folder has $("$BIN/python" --version); Python 3.10 to 3.13 is needed" >&2
        return 1
    fi
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

install_project() { # install_project STAMP REQUIREMENT...: unless done before with the same sources
    local stamp=$VIRTUAL_ENV/.maskfield-$1 state inputs=(pyproject.toml README.md maskfield_ns)
    shift
    if [ "$1" = --editable ]; then
        inputs=(pyproject.toml)
    fi
    state="$* $(source_state "${inputs[@]}")"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$state" ]; then
        return
    fi
    echo "installing into $VIRTUAL_ENV: the first time this fetches torch and nerfstudio, several GB"
    if ! command -v cc >/dev/null; then
        echo "note: no C compiler found; one of nerfstudio's dependencies is built from source (e.g. apt install gcc)"
    fi
    if command -v uv >/dev/null; then
        # uv would keep an earlier build of this folder as long as pyproject.toml is the same.
        uv pip install --python "$BIN/python" --reinstall-package maskfield-ns "$@"
    else
        "$BIN/python" -m pip install "$@"
    fi
    # The stamp of the other kind of installation no longer tells the truth.
    rm -f "$VIRTUAL_ENV"/.maskfield-*
    printf '%s' "$state" >"$stamp"
}
