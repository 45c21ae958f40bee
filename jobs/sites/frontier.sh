#!/usr/bin/env bash
# Frontier-like (slurm): 8 GPUs (MI250X dies) and 56 usable cores a node, Slingshot, Cray MPICH.
# Sourced by the job scripts, before the environment; `esgd jobs render` writes it into the script.
# Written from the site's documentation; it was not run there.
# shellcheck disable=SC2034  # the job script uses these

# Directives of this site: `esgd jobs render` writes them to the top of the script; by hand, copy them there.
#SBATCH --cpus-per-task=7
#SBATCH --gpus-per-node=8

# module load PrgEnv-gnu cray-mpich rocm craype-accel-amd-gfx90a     # what the environment was built with

MPI=${MPI:-cray_shasta}

# The GPU of a rank is the one beside its cores. It sees no other one.
SRUN_OPTIONS=(--cpu-bind=cores --gpus-per-task=1 --gpu-bind=closest)

ESGD=(esgd) # what every rank starts

# RCCL reads NCCL's variables. Without this its first connections may go over the management network.
export NCCL_SOCKET_IFNAME=hsn0

# MIOpen keeps compiled kernels in the home directory, where thousands of ranks would lock one file.
export MIOPEN_USER_DB_PATH=/tmp/miopen-$USER-${SLURM_JOB_ID:-0}
export MIOPEN_CUSTOM_CACHE_DIR=$MIOPEN_USER_DB_PATH
