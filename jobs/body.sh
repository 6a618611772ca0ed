#!/usr/bin/env bash
# What every job script runs: `bash jobs/body.sh STAGE [OPTIONS of that stage]`, from the project folder, inside a job.
#
#   STAGE_ARGS        more arguments, behind those typed (qsub hands none on)
#   SHARDS            PBS arrays: the number of their tasks (Slurm says it itself)
#   ANEW              1: stage 2 sets an earlier checkpoint aside at its start instead of going on with it
#   MAX_RESTARTS      how often a run may go back to the queue (default: 50)
#   SAVE_SECONDS      PBS: how long before its time limit a run saves (default: 120; Slurm: --signal in the header)
#   GRACE             seconds that the other processes are given after one has ended badly (default: 60)
#   QSUB_OPTIONS      PBS: what a training run that goes back to the queue is submitted with
#   OMP_NUM_THREADS   of a process, no more than the cores it has (default: all of them)
#   VENV, CONDA_ENV, MODULES   see jobs/environment.sh
#
# A run that nears its time limit gets USR1; python saves and ends with 138 (128 + USR1), and the run goes back to the
# queue, where it resumes. After TERM it saves too, and stays away: a job that was cancelled must, and one that was
# preempted is put back by the scheduler.
set -euo pipefail

SAVED=138

fail() {
    echo "error: $*" >&2
    exit 2
}

# ---------------------------------------------------------------- what the scheduler says

# Sets job, tasks, cores, restarts, shard (I/N or empty) and deadline (of SECONDS, or empty).
read_slurm() {
    job=$SLURM_JOB_ID restarts=${SLURM_RESTART_COUNT:-0}
    tasks=${SLURM_NTASKS:-$((${SLURM_JOB_NUM_NODES:-1} * ${SLURM_NTASKS_PER_NODE:-1}))}
    cores=${SLURM_CPUS_PER_TASK:-1}
    if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
        shard=$(((SLURM_ARRAY_TASK_ID - ${SLURM_ARRAY_TASK_MIN:-0}) / ${SLURM_ARRAY_TASK_STEP:-1}))/$SLURM_ARRAY_TASK_COUNT
    fi
}

read_pbs() {
    local hosts seconds index=${PBS_ARRAY_INDEX:-${PBS_ARRAYID:-}}
    job=$PBS_JOBID restarts=${RESTARTS:-0}
    tasks=$(wc -l <"${PBS_NODEFILE:-/dev/null}") hosts=$(sort -u "${PBS_NODEFILE:-/dev/null}" | wc -l)
    [ "$tasks" -gt 0 ] || tasks=1
    [ "$hosts" -le 1 ] || fail "$hosts hosts in the job, but the PBS scripts start processes on one; ask for select=1 with more mpiprocs, or use Slurm"
    cores=$((${NCPUS:-$(nproc)} / tasks))
    seconds=$(pbs_seconds)
    if [ -n "$seconds" ]; then
        deadline=$((seconds - ${SAVE_SECONDS:-120}))
        [ "$deadline" -gt 0 ] || fail "the job has $seconds s, of which the last ${SAVE_SECONDS:-120} are for saving (SAVE_SECONDS); ask for a longer walltime"
    else
        echo "note: the time limit of the job is not known here (no PBS_WALLTIME, no answer from qstat -f): it cannot save before it"
    fi
    if [ -n "$index" ]; then
        [ -n "${SHARDS:-}" ] || fail "task $index of an array, but SHARDS is not set: the number of its tasks, as in SHARDS=4 qsub -J 0-3 jobs/downscale.pbs"
        [ "$index" -lt "$SHARDS" ] || fail "task $index of an array of SHARDS=$SHARDS tasks; they count from 0: qsub -J 0-$((SHARDS - 1))"
        shard=$index/$SHARDS
    fi
}

# Walltime of this PBS job, seconds; nothing where nobody says.
pbs_seconds() {
    local limit
    if [ -n "${PBS_WALLTIME:-}" ]; then
        echo "$PBS_WALLTIME"
    elif limit=$(qstat -f "$PBS_JOBID" 2>/dev/null | sed -n 's/^[[:space:]]*Resource_List.walltime = //p') && [ -n "$limit" ]; then
        awk -F: '{ s = 0; for (k = 1; k <= NF; k++) s = 60 * s + $k; print s }' <<<"$limit"
    fi
}

# ---------------------------------------------------------------- processes and signals

caught='' children=() shard='' deadline=''

on_signal() {
    caught=$1
    echo "body: got $1 after $SECONDS s; telling python to save"
    tell_children
}

tell_children() {
    [ "${#children[@]}" -eq 0 ] || kill -USR1 "${children[@]}" 2>/dev/null || true
}

# One python a task, with the variables of torch.distributed. srun knows the hosts; on one host they are started here,
# since torchrun does not hand USR1 on and ends with 1 whatever its processes ended with.
start() {
    local rank
    if [ "$tasks" -eq 1 ]; then
        "$@" &
        children=($!)
    else
        export WORLD_SIZE=$tasks MASTER_PORT="${MASTER_PORT:-$((20000 + ${job//[^0-9]/} % 20000))}"
        if [ "$scheduler" = slurm ]; then
            MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
            export MASTER_ADDR
            # a task that has saved ends with 138 before the others have: srun must wait, and ends with the highest code
            # shellcheck disable=SC2016  # each task expands its own
            srun --kill-on-bad-exit=0 --wait="${GRACE:-60}" --cpus-per-task="$cores" bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$@"' task "$@" &
            children=($!)
        else
            export MASTER_ADDR=127.0.0.1
            for ((rank = 0; rank < tasks; rank++)); do
                RANK=$rank LOCAL_RANK=$rank "$@" &
                children+=($!)
            done
        fi
    fi
    [ -z "$caught" ] || tell_children
}

# Waits for all processes and sets code: that of the first that failed, else 138 where one saved, else 0. The others
# are killed GRACE seconds after the first has ended badly: they may wait for it for ever.
attend() {
    local pid status next running=("${children[@]}") until=''
    code=0
    while [ "${#running[@]}" -gt 0 ]; do
        sleep 0.3
        next=()
        for pid in "${running[@]}"; do
            if kill -0 "$pid" 2>/dev/null; then
                next+=("$pid")
                continue
            fi
            status=0
            wait "$pid" || status=$?
            [ "$code" -ne 0 ] && [ "$code" -ne "$SAVED" ] || [ "$status" -eq 0 ] || code=$status
            [ "$status" -eq 0 ] || [ -n "$until" ] || until=$((SECONDS + ${GRACE:-60}))
            [ "$status" -eq 0 ] || [ "$status" -eq "$SAVED" ] || echo "body: process $pid ended with $status" >&2
        done
        running=(${next[@]+"${next[@]}"})
        if [ -n "$until" ] && [ "$SECONDS" -ge "$until" ] && [ "${#running[@]}" -gt 0 ]; then
            kill -KILL "${running[@]}" 2>/dev/null || true
        fi
        if [ -n "$deadline" ] && [ "$SECONDS" -ge "$deadline" ]; then
            deadline=
            on_signal USR1
        fi
    done
}

# ---------------------------------------------------------------- back to the queue

requeue() {
    [ "$stage" != 1 ] || fail "the time is over, and stage 1 does not go on from where it was; submit it again with a longer time limit"
    [ "$restarts" -lt "${MAX_RESTARTS:-50}" ] || fail "the run was restarted $restarts times (MAX_RESTARTS); is its time limit longer than one step takes?"
    if [ "$scheduler" = slurm ]; then
        # one task of an array bears the number of the whole array, which would send all tasks back, those that have ended too
        [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
        echo "body: back to the queue (scontrol requeue $job)"
        trap '' TERM
        scontrol requeue "$job" || fail "scontrol requeue $job was refused; submit again with the same command, and it goes on"
    elif [ "$stage" = 2 ]; then
        resubmit
    else
        fail "the time is over; submit again with the same command and a longer walltime: whole files are kept"
    fi
}

# PBS lets operators alone rerun a job, so a new one takes its place, also before those that wait for this one.
resubmit() {
    local new behind
    # shellcheck disable=SC2086  # several options
    new=$(RESTARTS=$((restarts + 1)) ANEW='' qsub ${QSUB_OPTIONS:-} jobs/train.pbs) ||
        fail "qsub was refused on $(hostname); submit again with the same command, and it goes on"
    echo "body: $new goes on"
    for behind in $(qstat -f "$job" | tr -d '\n\t' | grep -o 'beforeok:[^ ,]*' | sed 's/^beforeok://' | tr ':' '\n' | sed 's/@.*//'); do
        qalter -W "depend=afterok:$new" "$behind" || fail "qalter was refused: $behind still waits for $job and will not run; submit it again behind $new"
        echo "body: $behind waits for $new"
    done
}

# ---------------------------------------------------------------- the run

main() {
    local more scripts threads
    trap 'on_signal USR1' USR1
    trap 'on_signal TERM' TERM
    read -r -a more <<<"${STAGE_ARGS:-}" || true
    set -- "$@" ${more[@]+"${more[@]}"}
    stage=${1:-}
    case "$stage" in
    [1-5]) shift ;;
    *) fail "expected the number of a stage, 1 to 5, and then its options; found: ${*:-nothing} (Slurm: sbatch jobs/downscale.slurm 3 --members 8; PBS: STAGE_ARGS='3 --members 8' SHARDS=4 qsub jobs/downscale.pbs)" ;;
    esac
    if [ -n "${SLURM_JOB_ID:-}" ]; then # first: some Slurm clusters set the variables of PBS too
        scheduler=slurm
        read_slurm
    elif [ -n "${PBS_JOBID:-}" ]; then
        scheduler=pbs
        read_pbs
    else
        fail "not inside a job: submit a script of jobs/ with sbatch or qsub; without a scheduler run the numbered scripts themselves"
    fi
    [ "$tasks" -eq 1 ] || [ "$stage" = 2 ] || fail "stage $stage is one process a job, found $tasks tasks; stages 3 and 4 share a list as an array"
    # shellcheck source=jobs/environment.sh
    source jobs/environment.sh
    enter_environment || exit 2
    threads=${OMP_NUM_THREADS:-$cores}
    export OMP_NUM_THREADS=$((threads < cores ? threads : cores)) PYTHONUNBUFFERED=1 MPLBACKEND=Agg
    [ "$stage" != 2 ] || { [ -n "${ANEW:-}" ] && [ "$restarts" -eq 0 ]; } || set -- "$@" --resume
    [ -z "$shard" ] || case "$stage" in
    [34]) set -- "$@" --shard "$shard" ;;
    *) fail "stage $stage does not share its work; submit it without an array" ;;
    esac
    scripts=("$stage"[a-z]*.py)
    echo "body: job $job, start $((restarts + 1)), on $(hostname): $tasks process(es) of $OMP_NUM_THREADS thread(s), $(command -v python)"
    echo "body: python ${scripts[0]} $*"
    start python "${scripts[0]}" "$@"
    attend
    if [ "$code" -eq "$SAVED" ] && [ "$caught" = TERM ]; then
        echo "body: ended by TERM; submit again with the same command, and it goes on"
        exit 143
    fi
    [ "$code" -ne "$SAVED" ] || requeue
    echo "body: ended with $code after $SECONDS s"
    exit "$code"
}

main "$@"
