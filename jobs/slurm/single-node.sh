#!/usr/bin/env bash
# One run on one node, one rank a GPU:  sbatch jobs/slurm/single-node.sh
# Edit what is between the lines, or let `esgd jobs render RECIPE --scheduler slurm` fill it in.
# shellcheck disable=SC2034  # MPI is for what is sourced
# ---------------------------------------------------------------------------
#SBATCH --job-name=esgd
#SBATCH --time=04:00:00
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4          # ranks: one a GPU
#SBATCH --cpus-per-task=4            # cores of a rank: threads of torch, and some for Horovod and checkpoints
#SBATCH --gpus-per-node=4            # without GPUs: remove this line
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append           # a job that starts again goes on in the same log
#SBATCH --requeue                    # start again after a node was lost
#SBATCH --signal=B:USR1@300          # seconds before the end; B: this shell alone, which passes it on

RECIPE=fashion                       # a name from `esgd recipes`, or a TOML file
OUTPUT=runs/$RECIPE                  # on a file system that all nodes see, and that stays
RUN=("$RECIPE" --output "$OUTPUT")   # arguments of `esgd run`; more: --set generations=20
THREADS=1                            # CPU threads of a rank, as topology.threads_per_rank of the recipe
ENVIRONMENT=build/cluster/env.sh     # made by: cmake --workflow --preset cluster; empty: all is loaded already
JOBS="jobs"                          # folder with slurm/ and sites/; `esgd jobs path` prints it
SITE=generic                         # a file of $JOBS/sites, without .sh
MPI=                                 # how Slurm starts this MPI: pmix (Open MPI), pmi2 or cray_shasta (MPICH), mpirun; empty: the site's
# ---------------------------------------------------------------------------

# The site may load modules that the environment was built with, so it comes first.
# shellcheck source=/dev/null
source "$JOBS/sites/$SITE.sh" || exit 2
# shellcheck source=/dev/null
[ -z "$ENVIRONMENT" ] || source "$ENVIRONMENT" || exit 2
set -u # not before: modules and environments read variables that are not set
# shellcheck source=/dev/null
source "$JOBS/slurm/functions.sh" || exit 2

export OMP_NUM_THREADS=$THREADS

run "${LAUNCH[@]}" "${ESGD[@]}" run "${RUN[@]}"

# 99: stopped early with all that is done saved. This job goes back into the queue and goes on from there.
[ "$STATUS" -ne 99 ] || requeue
exit "$STATUS"
