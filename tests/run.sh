#!/usr/bin/env bash
# Environment and tests: `bash tests/run.sh`, or with pytest's arguments, `bash tests/run.sh tests/test_models.py -k mass`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=jobs/environment.sh
source jobs/environment.sh
use_environment requirements.txt tests/requirements.txt
cores=1  # threads a process: some tests start several processes
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$cores}" MKL_NUM_THREADS="${MKL_NUM_THREADS:-$cores}" OPENBLAS_NUM_THREADS="${OPENBLAS_NUM_THREADS:-$cores}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" MPLBACKEND=Agg
ruff check .
exec python -m pytest "$@"
