#!/usr/bin/env bash
# Try a recipe by hand: an allocation, a check of it in seconds, then the run, in this terminal:  bash jobs/slurm/interactive.sh
# Edit what is between the lines, or let `esgd jobs render RECIPE --scheduler slurm --template interactive` fill it in.
# shellcheck disable=SC2034  # MPI is for what is sourced
# ---------------------------------------------------------------------------
ALLOCATION=(
    --job-name=esgd
    --time=00:30:00
    --nodes=1
    --ntasks-per-node=4              # ranks: one a GPU
    --cpus-per-task=4                # cores of a rank: threads of torch, and some for Horovod and checkpoints
    --gpus-per-node=4                # without GPUs: remove this line
)

RECIPE=fashion                       # a name from `esgd recipes`, or a TOML file
RANKS_PER_GROUP=1                    # GPUs that train one individual together
OUTPUT=runs/$RECIPE                  # on a file system that all nodes see, and that stays
# arguments of `esgd run`; more: --set generations=20
RUN=("$RECIPE" --output "$OUTPUT" --set topology.ranks_per_group="$RANKS_PER_GROUP")
THREADS=1                            # CPU threads of a rank, as topology.threads_per_rank of the recipe
ENVIRONMENT=build/cluster/env.sh     # made by: cmake --workflow --preset cluster; empty: all is loaded already
JOBS="jobs"                          # folder with slurm/ and sites/; `esgd jobs path` prints it
SITE=generic                         # a file of $JOBS/sites, without .sh
MPI=                                 # how Slurm starts this MPI: pmix (Open MPI), pmi2 or cray_shasta (MPICH), mpirun; empty: the site's
# ---------------------------------------------------------------------------

# Outside of an allocation: get one, and start again in it.
[ -n "${SLURM_JOB_ID:-}" ] || exec salloc "${ALLOCATION[@]}" bash "$0"

# The site may load modules that the environment was built with, so it comes first.
# shellcheck source=/dev/null
source "$JOBS/sites/$SITE.sh" || exit 2
# shellcheck source=/dev/null
[ -z "$ENVIRONMENT" ] || source "$ENVIRONMENT" || exit 2
set -u # not before: modules and environments read variables that are not set
# shellcheck source=/dev/null
source "$JOBS/slurm/functions.sh" || exit 2

export OMP_NUM_THREADS=$THREADS
unset ESGD_JOB # nothing starts this job again but a person, who may do so as often as they like

# MPI, groups, GPUs, network, output folder and data, under the launcher that the run will have.
"${LAUNCH[@]}" "${ESGD[@]}" check "${RUN[@]}" || exit

# In the foreground, so that Ctrl-C reaches it; twice within a second ends it. SIGUSR1 to srun stops it at a checkpoint.
"${LAUNCH[@]}" "${ESGD[@]}" run "${RUN[@]}"
