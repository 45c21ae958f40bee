#!/bin/bash
# The same recipe with several seeds, a job for each:  bsub < jobs/lsf/array.sh
# Edit what is between the lines, or let `esgd jobs render RECIPE --scheduler lsf` fill it in.
# No LSF machine was at hand: written from LSF's documentation and run against stand-ins for bsub and jsrun only.
# shellcheck disable=SC2034  # some of these are for what is sourced
# ---------------------------------------------------------------------------
# In brackets the seeds; [1-8]%4: four jobs at a time.
#BSUB -J "esgd[1-8]"
#BSUB -P PROJECT
# The limit in hours and minutes; MINUTES below says the same.
#BSUB -W 4:00
# With jsrun whole nodes. Elsewhere instead ranks (-n), those of a host and their cores (-R), and GPUs of a host (-gpu).
#BSUB -nnodes 1
##BSUB -n 6
##BSUB -R "span[ptile=6] affinity[core(7)]"
##BSUB -gpu "num=6:j_exclusive=yes"
# LSF appends to this file when the job starts again.
#BSUB -o esgd.%J.%I.log
# Start again after a host was lost.
#BSUB -r
# Start again after exit status 99, stopped early with all that is done saved, and go on from there.
#BSUB -Q "99"
# SIGUSR1, minutes before the limit.
#BSUB -wt '5' -wa 'USR1'

RECIPE=fashion                       # a name from `esgd recipes`, or a TOML file
SEED=$LSB_JOBINDEX
RANKS_PER_GROUP=1                    # GPUs that train one individual together; best a divisor of RANKS_PER_NODE, so that groups share a node
OUTPUT=runs/$RECIPE/seed-$SEED       # on a file system that all nodes see, and that stays
# arguments of `esgd run`; more: --set generations=20
RUN=("$RECIPE" --output "$OUTPUT" --set topology.ranks_per_group="$RANKS_PER_GROUP" --set seed="$SEED")
MINUTES=240                          # as -W
RANKS=6                              # nodes x ranks of a node
RANKS_PER_NODE=6                     # one a GPU
CORES=7                              # cores of a rank: threads of torch, and some for Horovod and checkpoints
GPUS_PER_RANK=1                      # without GPUs: 0
THREADS=1                            # CPU threads of a rank, as topology.threads_per_rank of the recipe
ENVIRONMENT=build/cluster/env.sh     # made by: cmake --workflow --preset cluster; empty: all is loaded already
JOBS="jobs"                          # folder with lsf/ and sites/; `esgd jobs path` prints it
SITE=summit                          # a file of $JOBS/sites, without .sh
MPI=                                 # what starts the ranks: jsrun or mpirun; empty: the site's
# ---------------------------------------------------------------------------

# The site may load modules that the environment was built with, so it comes first.
# shellcheck source=/dev/null
source "$JOBS/sites/$SITE.sh" || exit 2
# shellcheck source=/dev/null
[ -z "$ENVIRONMENT" ] || source "$ENVIRONMENT" || exit 2
set -u # not before: modules and environments read variables that are not set
# shellcheck source=/dev/null
source "$JOBS/lsf/functions.sh" || exit 2

export OMP_NUM_THREADS=$THREADS

run "${LAUNCH[@]}" "${ESGD[@]}" run "${RUN[@]}"
exit "$STATUS"
