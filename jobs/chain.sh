# shellcheck shell=bash
# The stages in order, for pipeline.slurm.sh and pipeline.pbs.sh, which define submit: script, tasks of its array (or 1), arguments.
#
#   STAGES            which, in which order (default: 1 2 5 3 4)
#   ARGS1 .. ARGS5    options of each stage, such as ARGS2="--target coarsen --region all --lr-step 1"
#   SUBMIT1 .. 5      options of the scheduler for one stage, such as SUBMIT2="--time=48:00:00"
#   SHARDS            tasks that stages 3 and 4 are shared by (default: 4)
#
# Each job waits until the one before it has ended well; one that cannot start any more is removed.

# shellcheck disable=SC2034  # options, previous and id belong to submit
submit_chain() {
    local stage name args word kept ids=()
    common=("$@") previous='' SHARDS=${SHARDS:-4}
    mkdir -p jobs/logs
    for stage in ${STAGES:-1 2 5 3 4}; do
        name=ARGS$stage
        read -r -a args <<<"${!name:-}" || true
        name=SUBMIT$stage
        read -r -a own <<<"${!name:-}" || true
        case "$stage" in
        1) next stage 1 1 ${args[@]+"${args[@]}"} ;;
        2) next train 1 ${args[@]+"${args[@]}"} ;;
        5) next stage 1 5 ${args[@]+"${args[@]}"} ;;
        3 | 4)
            next downscale "$SHARDS" "$stage" ${args[@]+"${args[@]}"}
            kept=()
            for word in ${args[@]+"${args[@]}"}; do
                [ "$word" = --overwrite ] || kept+=("$word")
            done
            own=()
            next stage 1 "$stage" ${kept[@]+"${kept[@]}"}
            ;;
        *) echo "error: STAGES names stage $stage; expected 1 to 5" >&2; return 2 ;;
        esac
    done
}

# Submits one job behind the one before it, and says so.
next() {
    local id
    if ! id=$(submit "$@"); then
        echo "error: $1 was refused (see above); submitted so far: ${ids[*]:-nothing}" >&2
        return 1
    fi
    shift 2
    echo "$id  ${stage}  ${*:-} ${previous:+ (after $previous)}"
    ids+=("$id") previous=$id
}
