#!/bin/bash
# A run longer than a job may last, as several jobs one after another, where jobs must not start themselves again:
#   job=$(bsub < jobs/lsf/chain.sh | sed 's/Job <\([0-9]*\)>.*/\1/')
#   for link in 2 3 4 5; do
#       job=$(bsub -w "ended($job)" < jobs/lsf/chain.sh | sed 's/Job <\([0-9]*\)>.*/\1/')
#   done
# Edit what is between the lines, or let `esgd jobs render RECIPE --scheduler lsf --template chain` fill it in.
# No LSF machine was at hand: written from LSF's documentation and run against stand-ins for bsub and jsrun only.
# shellcheck disable=SC2034  # some of these are for what is sourced
# ---------------------------------------------------------------------------
#BSUB -J esgd
#BSUB -P PROJECT
# The limit in hours and minutes; MINUTES below says the same.
#BSUB -W 4:00
# With jsrun whole nodes. Elsewhere instead ranks (-n), those of a host and their cores (-R), and GPUs of a host (-gpu).
#BSUB -nnodes 2
##BSUB -n 12
##BSUB -R "span[ptile=6] affinity[core(7)]"
##BSUB -gpu "num=6:j_exclusive=yes"
# LSF appends to this file when the job starts again.
#BSUB -o esgd.%J.log
# Start again after a host was lost.
#BSUB -r
# SIGUSR1, minutes before the limit.
#BSUB -wt '5' -wa 'USR1'

RECIPE=fashion                       # a name from `esgd recipes`, or a TOML file
RANKS_PER_GROUP=1                    # GPUs that train one individual together; best a divisor of RANKS_PER_NODE, so that groups share a node
OUTPUT=runs/$RECIPE                  # on a file system that all nodes see, and that stays
# arguments of `esgd run`; more: --set generations=20
RUN=("$RECIPE" --output "$OUTPUT" --set topology.ranks_per_group="$RANKS_PER_GROUP")
MINUTES=240                          # as -W
RANKS=12                             # nodes x ranks of a node
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

# 99: stopped early with all that is done saved; the next job of the chain goes on from there. After the run's end the jobs that
# are left find nothing to do.
exit "$STATUS"
