#!/usr/bin/env bash
# What the Slurm scripts share. They source it; `esgd jobs render` writes it into the script.

# shellcheck disable=SC2034,SC2154  # the script and the site's file use and set some of these

# To scontrol the number of an array's last task is the whole array; ARRAY_TASK is one task.
JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
JOB=${JOB:-$SLURM_JOB_ID}

# By this name `esgd run` knows a job that starts again, and ends one that gets no further twice in a row.
export ESGD_JOB=slurm-$JOB

# Since Slurm 22.05 srun does not inherit --cpus-per-task, but reads this.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

# `esgd run` stops in time for the end of the job. Older versions of Slurm do not tell it; a job without limit has none.
unset ESGD_END_TIME # of the job or shell that submitted this one
if [ -z "${SLURM_JOB_END_TIME:-}" ]; then
    END=$(squeue --noheader --job="$SLURM_JOB_ID" --format=%e) &&
        END=$(date --date="$END" +%s) && export ESGD_END_TIME=$END
fi 2>/dev/null

# How a command starts on every rank. --mpi: with the wrong one each task is a world of its own. --wait: a rank that fails
# ends the others, which would wait for it. --kill-on-bad-exit=0, for sites with another default: when all leave with 99, the first
# one must not end those on their way, or their status counts. --export: also where a site submits jobs with an empty environment.
# --distribution: ranks that follow each other, hence a group's, share a node.
LAUNCH=(srun --mpi="$MPI" --wait=60 --kill-on-bad-exit=0 --export=ALL --distribution=block "${SRUN_OPTIONS[@]}")
if [ "$MPI" = mpirun ]; then # where Slurm cannot start this MPI; Slurm keeps the job to its cores, but ranks are not bound
    LAUNCH=(mpirun -n "$((SLURM_JOB_NUM_NODES * SLURM_NTASKS_PER_NODE))" --bind-to none)
fi

LAUNCHER=
INTERRUPTED=
CANCELLED=

# --signal=B:USR1@SECONDS comes to this shell alone; the launcher passes it on to all ranks.
trap ask_to_stop USR1
# scancel and the time limit send SIGTERM to everybody: the ranks have it already.
trap cancelled TERM

ask_to_stop() {
    INTERRUPTED=yes
    echo "job $JOB: SIGUSR1, the run is asked to stop"
    [ -z "$LAUNCHER" ] || kill -USR1 "$LAUNCHER"
}

cancelled() {
    INTERRUPTED=yes
    CANCELLED=yes
}

# Run a command to its end, whatever signals come; leave its status in STATUS.
run() {
    # A shell handles signals only while it waits, not while a command in the foreground runs.
    "$@" &
    LAUNCHER=$!
    while :; do
        INTERRUPTED=
        wait "$LAUNCHER"
        STATUS=$?
        # A signal ends `wait` as well, with a status of its own.
        [ -n "$INTERRUPTED" ] || break
    done
    case $STATUS in 0 | 2 | 99) ;; *) wait_for_lost_node ;; esac
}

# Ranks that lose their connection to a lost node end before Slurm notices it. Wait until it does and requeues this job.
wait_for_lost_node() {
    if [ -n "$CANCELLED" ] || [ "${SLURM_JOB_NUM_NODES:-1}" -eq 1 ]; then
        return
    fi
    if ! timeout 60 srun --mpi=none --overlap --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 true; then
        echo "job $JOB: a node does not answer; waiting for Slurm to start this job again"
        sleep 900 # SlurmdTimeout is 300 at most sites
    fi
}

# Put this job back into the queue, under the same number.
requeue() {
    if [ -n "$CANCELLED" ]; then
        echo "job $JOB: cancelled, or out of time: the same script goes on from what is saved"
        exit 143 # as if SIGTERM had ended it; with 99 some sites (RequeueExit=99) would start it again
    fi
    echo "job $JOB: stopped early, to go on from what is saved; requeueing"
    if scontrol requeue "$JOB"; then
        # Slurm ends this script now. To leave with 99 before that would requeue it twice on such sites.
        sleep 120
        exit 0
    fi
    echo "job $JOB: cannot be requeued; submit the same script again to go on"
}
