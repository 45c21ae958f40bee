#!/bin/bash
# What the LSF scripts share. They source it; `esgd jobs render` writes it into the script.
# shellcheck disable=SC2034,SC2154  # the script and the site's file use and set some of these

JOB=$LSB_JOBID
[ "${LSB_JOBINDEX:-0}" -eq 0 ] || JOB=${LSB_JOBID}_$LSB_JOBINDEX # a task of an array

# By this name `esgd run` knows a job that starts again, and ends one that gets no further twice in a row.
export ESGD_JOB=lsf-$JOB

# `esgd run` stops in time for the end of the job, which LSF does not tell. This does not need the signal below.
ESGD_END_TIME=$(($(date +%s) + 60 * MINUTES))
export ESGD_END_TIME

# How a command starts on every rank.
case $MPI in
jsrun)
    # A resource set (-n in all, -r on a node) is one rank (-a) with its cores (-c) and its GPU (-g), and sees no other GPU.
    # -b rs: the rank keeps to these cores. -d packed: ranks that follow each other, hence a group's, share a node.
    LAUNCH=(jsrun -n "$RANKS" -r "$RANKS_PER_NODE" -a 1 -c "$CORES" -g "$GPUS_PER_RANK" -b rs -d packed)
    ;;
mpirun)
    # The file has a line for each rank. LSF's affinity[] keeps the ranks to their cores; mpirun's own binding would undo it.
    LAUNCH=(mpirun -n "$RANKS" --hostfile "$LSB_DJOB_HOSTFILE" --bind-to none)
    ;;
*)
    echo "MPI=$MPI: jsrun or mpirun" >&2
    exit 2
    ;;
esac

LAUNCHER=
INTERRUPTED=
CANCELLED=

# -wa 'USR1' comes before the end, SIGUSR2 at the end; the launcher passes USR1 on to all ranks.
trap ask_to_stop USR1 USR2
# bkill sends SIGINT, then SIGTERM, to everybody.
trap cancelled INT TERM

ask_to_stop() {
    INTERRUPTED=yes
    echo "job $JOB: near its end, the run is asked to stop"
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
    if [ "$STATUS" -eq 99 ] && [ -n "$CANCELLED" ]; then
        echo "job $JOB: cancelled: the same script goes on from what is saved"
        STATUS=143 # as if SIGTERM had ended it; 99 would start it again
    fi
}
