# shellcheck shell=bash
# Makes and enters the Python environment: `bash jobs/environment.sh` makes it; quickstart.sh, tests/run.sh and body.sh source this.
#
#   VENV        where it lives (default: .venv in the project)
#   PYTHON      which Python makes it (default: the first of python3.11, 3.12, 3.13, 3.10, python3)
#   MODULES     in jobs: environment modules to load first, such as "python/3.11 cuda/12.4"
#   CONDA_ENV   in jobs: a conda environment to use instead of VENV
#
# `use_environment FILE ...` installs the requirement files once; a changed file installs again. `enter_environment` takes
# one that is there, since the nodes of a cluster often have no network. `help_of SCRIPT` prints the comment at its head.

help_of() {
    sed -n '2,/^set/{/^#/!d;s/^# \{0,1\}//;p}' "$1"
}

find_python() {
    local name
    for name in ${PYTHON:-python3.11 python3.12 python3.13 python3.10 python3}; do
        if [[ "$("$name" --version 2>&1)" =~ ^Python\ 3\.([0-9]+) ]] && [ "${BASH_REMATCH[1]}" -ge 10 ]; then
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
    put_first "$venv"
}

put_first() { # a venv, before everything else on the PATH
    PATH=$(cd "$1/bin" && pwd):$PATH
    export PATH
}

enter_environment() {
    local venv="${VENV:-.venv}" name
    set +u # the functions of modules and conda read unset variables
    if [ -n "$MODULES" ]; then
        for name in "$MODULESHOME/init/bash" /etc/profile.d/modules.sh /etc/profile.d/lmod.sh; do
            # shellcheck disable=SC1090
            type module >/dev/null 2>&1 || [ ! -r "$name" ] || source "$name"
        done
        # shellcheck disable=SC2086  # several modules
        module load $MODULES || { echo "error: 'module load $MODULES' failed (MODULES); see 'module avail'" >&2; return 1; }
    fi
    if [ -n "$CONDA_ENV" ]; then
        name=$(conda info --base) || { echo "error: CONDA_ENV is $CONDA_ENV, but there is no conda here; name its module in MODULES" >&2; return 1; }
        # shellcheck disable=SC1091
        source "$name/etc/profile.d/conda.sh"
        conda activate "$CONDA_ENV" || {
            echo "error: conda environment $CONDA_ENV cannot be entered; 'conda env list' names those there are" >&2
            return 1
        }
    elif [ -x "$venv/bin/python" ]; then
        put_first "$venv"
    else
        echo "error: no Python environment in $venv; make it where there is a network: bash jobs/environment.sh (or name one: VENV=/path/to/venv, CONDA_ENV=name)" >&2
        return 1
    fi
    set -u
    python jobs/report.py packages torch xarray netCDF4 scores tensorboard
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    case "${1:-}" in
    "") ;;
    -h | --help)
        help_of jobs/environment.sh
        exit
        ;;
    *)
        echo "error: environment.sh takes no arguments, only variables (see --help); found: $*" >&2
        exit 2
        ;;
    esac
    use_environment requirements.txt
    echo "environment: ${VENV:-.venv} is ready"
fi
