#!/bin/bash
# Try a recipe by hand: an allocation, a check of it in seconds, then the run, in this terminal:  bash jobs/lsf/interactive.sh
# Edit what is between the lines, or let `esgd jobs render RECIPE --scheduler lsf --template interactive` fill it in.
# No LSF machine was at hand: written from LSF's documentation and run against stand-ins for bsub and jsrun only.
# shellcheck disable=SC2034  # some of these are for what is sourced
# ---------------------------------------------------------------------------
ALLOCATION=(
    -J esgd
    -P PROJECT
    -W 0:30                          # the limit in hours and minutes; MINUTES below says the same
    # With jsrun whole nodes. Elsewhere instead ranks (-n), those of a host and their cores (-R), and GPUs of a host (-gpu).
    -nnodes 1
    # -n 6
    # -R "span[ptile=6] affinity[core(7)]"
    # -gpu "num=6:j_exclusive=yes"
)

RECIPE=fashion                       # a name from `esgd recipes`, or a TOML file
RANKS_PER_GROUP=1                    # GPUs that train one individual together; best a divisor of RANKS_PER_NODE, so that groups share a node
OUTPUT=runs/$RECIPE                  # on a file system that all nodes see, and that stays
# arguments of `esgd run`; more: --set generations=20
RUN=("$RECIPE" --output "$OUTPUT" --set topology.ranks_per_group="$RANKS_PER_GROUP")
MINUTES=30                           # as -W
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

# Outside of a job: get one, with a terminal, and start again in it.
[ -n "${LSB_JOBID:-}" ] || exec bsub -Is "${ALLOCATION[@]}" bash "$0"

# The site may load modules that the environment was built with, so it comes first.
# shellcheck source=/dev/null
source "$JOBS/sites/$SITE.sh" || exit 2
# shellcheck source=/dev/null
[ -z "$ENVIRONMENT" ] || source "$ENVIRONMENT" || exit 2
set -u # not before: modules and environments read variables that are not set
# shellcheck source=/dev/null
source "$JOBS/lsf/functions.sh" || exit 2

export OMP_NUM_THREADS=$THREADS
unset ESGD_JOB # nothing starts this job again but a person, who may do so as often as they like

# MPI, groups, GPUs, network, output folder and data, under the launcher that the run will have.
"${LAUNCH[@]}" "${ESGD[@]}" check "${RUN[@]}" || exit

# In the foreground, so that Ctrl-C reaches it.
"${LAUNCH[@]}" "${ESGD[@]}" run "${RUN[@]}"
