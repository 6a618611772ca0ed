# Makes and enters the Python environment; sourced by quickstart.sh, tests/run.sh and the job scripts.
#
#   VENV      where it lives (default: .venv in the project)
#   PYTHON    which Python makes it (default: the newest of python3.13 .. python3.10, python3)
#
# `use_environment FILE ...` installs the requirement files once; a changed file installs again.

find_python() {
    local name
    for name in ${PYTHON:-python3.11 python3.12 python3.13 python3.10 python3}; do
        if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "error: no Python 3.10 or newer found (looked for ${PYTHON:-python3.10 to python3.13}); install one, or name it: PYTHON=/path/to/python" >&2
    return 1
}

use_environment() {
    local venv="${VENV:-.venv}" python stamp file
    if [ ! -x "$venv/bin/python" ]; then
        python=$(find_python) || return 1
        echo "environment: making $venv with $python"
        "$python" -m venv "$venv" || { echo "error: $python -m venv failed; on Debian and Ubuntu install python3-venv" >&2; return 1; }
    fi
    for file in "$@"; do
        stamp="$venv/.installed-$(basename "$(dirname "$file")")-$(basename "$file")"
        if ! cmp -s "$file" "$stamp"; then
            echo "environment: installing $file into $venv (PyTorch is large; minutes)"
            "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$file" || {
                echo "error: pip could not install $file; see its message above" >&2
                return 1
            }
            cp "$file" "$stamp"
        fi
    done
    export PATH="$PWD/$venv/bin:$PATH"
    case "$venv" in /*) export PATH="$venv/bin:$PATH" ;; esac
}
