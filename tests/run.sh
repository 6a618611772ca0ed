#!/usr/bin/env bash
# Makes the environment, checks the text of the code with ruff, and runs the tests: `bash tests/run.sh`. Arguments go to
# pytest: `bash tests/run.sh tests/test_models.py -k mass`.
#
#   PROCESSES      that share the tests, file by file (default: 2)
#   VENV, PYTHON   the environment, see jobs/environment.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=jobs/environment.sh
source jobs/environment.sh
[[ ! "${1:-}" =~ ^(-h|--help)$ ]] || { help_of tests/run.sh; exit; }
use_environment requirements.txt tests/requirements.txt
cores=1  # threads a process: some tests start several processes of their own
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$cores}" MKL_NUM_THREADS="${MKL_NUM_THREADS:-$cores}" OPENBLAS_NUM_THREADS="${OPENBLAS_NUM_THREADS:-$cores}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" MPLBACKEND=Agg
ruff format --check .
ruff check .
exec python -m pytest -n "${PROCESSES:-2}" --dist loadfile "$@"
