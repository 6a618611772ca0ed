#!/usr/bin/env bash
# Submits all stages to PBS, each behind the one before: bash jobs/pipeline.pbs.sh [qsub options of every job].
# What each stage is given stands in variables: see jobs/chain.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=jobs/chain.sh
source jobs/chain.sh

submit() { # script, tasks of its array, arguments of the stage
    local script=$1 options=(${common[@]+"${common[@]}"} ${own[@]+"${own[@]}"})
    export QSUB_OPTIONS="${options[*]:-}"
    [ -z "$previous" ] || options+=(-W "depend=afterok:$previous")
    if [ "$script" = downscale ]; then
        [ "$2" -gt 1 ] || { echo "error: SHARDS=$2: an array of PBS has two tasks or more" >&2; return 1; }
        options+=(-J "0-$(($2 - 1))")
        export SHARDS=$2
    fi
    shift 2
    STAGE_ARGS="$*" qsub ${options[@]+"${options[@]}"} "jobs/$script.pbs"
}

submit_chain "$@"
