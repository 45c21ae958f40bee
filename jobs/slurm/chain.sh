#!/usr/bin/env bash
# A run longer than a job may last, as several jobs one after another, for sites where jobs wait long or must not requeue:
#   for link in 1 2 3 4 5; do sbatch jobs/slurm/chain.sh; done
# Edit what is between the lines, or let `esgd jobs render RECIPE --scheduler slurm --template chain` fill it in.
# shellcheck disable=SC2034  # MPI is for what is sourced
# ---------------------------------------------------------------------------
#SBATCH --job-name=esgd
#SBATCH --time=04:00:00
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4          # ranks: one a GPU
#SBATCH --cpus-per-task=4            # cores of a rank: threads of torch, and some for Horovod and checkpoints
#SBATCH --gpus-per-node=4            # without GPUs: remove this line
#SBATCH --dependency=singleton       # one job of this name and user at a time: give each run a --job-name of its own
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append           # a job that starts again goes on in the same log
#SBATCH --requeue                    # start again after a node was lost
#SBATCH --signal=B:USR1@300          # seconds before the end; B: this shell alone, which passes it on

RECIPE=fashion                       # a name from `esgd recipes`, or a TOML file
RANKS_PER_GROUP=1                    # GPUs that train one individual together; best a divisor of --ntasks-per-node, so that groups share a node
OUTPUT=runs/$RECIPE                  # on a file system that all nodes see, and that stays
# arguments of `esgd run`; more: --set generations=20
RUN=("$RECIPE" --output "$OUTPUT" --set topology.ranks_per_group="$RANKS_PER_GROUP")
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

# 99: stopped early with all that is done saved. The next link goes on from there; the last one starts again itself. After
# the run's end the links that are left find nothing to do.
if [ "$STATUS" -eq 99 ]; then
    if [ -n "$(squeue --noheader --me --name="$SLURM_JOB_NAME" --states=PENDING --format=%A)" ]; then
        echo "job $SLURM_JOB_ID: stopped early; the next job of the chain goes on"
    else
        requeue
    fi
fi
exit "$STATUS"
