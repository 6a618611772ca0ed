#!/usr/bin/env bash
# Submits all stages to Slurm, each behind the one before: bash jobs/pipeline.slurm.sh [sbatch options of every job].
# What each stage is given stands in variables: see jobs/chain.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=jobs/chain.sh
source jobs/chain.sh

submit() { # script, tasks of its array, arguments of the stage
    local script=$1 options=(--parsable --kill-on-invalid-dep=yes)
    [ -z "$previous" ] || options+=(--dependency="afterok:$previous")
    [ "$script" != downscale ] || options+=(--array="0-$(($2 - 1))")
    shift 2
    sbatch "${options[@]}" ${common[@]+"${common[@]}"} ${own[@]+"${own[@]}"} "jobs/$script.slurm" "$@" | cut -d ';' -f 1
}

submit_chain "$@"
