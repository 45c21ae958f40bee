#!/usr/bin/env bash
# One ESGD run under Slurm, one rank a GPU:  sbatch esgd.sh
# Edit what is between the lines; `esgd run RECIPE --dry-run` shows what would run.
# ---------------------------------------------------------------------------
#SBATCH --job-name=esgd
#SBATCH --time=04:00:00
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4          # one rank a GPU
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=4            # without GPUs: remove this line
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append           # a job that is started again goes on in the same log
set -u

RECIPE=fashion                       # a name from `esgd recipes`, or a TOML file; needs `esgd data prepare fashion`
OUTPUT=runs/$RECIPE                  # on a file system that all nodes see
ENVIRONMENT=build/cluster/env.sh     # made by: cmake --workflow --preset cluster
MPI=pmix                             # how Slurm starts this MPI: pmix (Open MPI), pmi2 or cray_shasta (MPICH)
# ---------------------------------------------------------------------------

# shellcheck source=/dev/null
source "$ENVIRONMENT"

# srun takes this from the environment only: since Slurm 22.05 it does not inherit --cpus-per-task.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

# With the wrong --mpi every task would be a world of its own. A rank that fails must end the others.
srun --mpi="$MPI" --kill-on-bad-exit=1 esgd run "$RECIPE" --output "$OUTPUT"
status=$?

# 99: stopped early at a complete checkpoint, for instance by `scancel --signal=USR1 JOB`.
if [ "$status" -eq 99 ]; then
    echo "Stopped at a checkpoint: the same sbatch goes on from it."
fi
exit "$status"
