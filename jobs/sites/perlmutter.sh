#!/usr/bin/env bash
# Perlmutter-like (slurm): 4 GPUs (A100) and 64 cores (128 threads) a node, Slingshot, Cray MPICH.
# Sourced by the job scripts, before the environment; `esgd jobs render` writes it into the script.
# Written from the site's documentation; it was not run there.
# shellcheck disable=SC2034  # the job script uses these

# Directives of this site: `esgd jobs render` writes them to the top of the script; by hand, copy them there.
#SBATCH --constraint=gpu
#SBATCH --qos=regular
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4

# module load PrgEnv-gnu cray-mpich cudatoolkit nccl                 # what the environment was built with

MPI=${MPI:-cray_shasta}

# none: a rank sees all GPUs of the node, as NCCL needs for direct copies between them, and takes the one of its number.
SRUN_OPTIONS=(--cpu-bind=cores --gpus-per-task=1 --gpu-bind=none)

ESGD=(esgd) # what every rank starts

# Without this NCCL's first connections may go over the management network.
export NCCL_SOCKET_IFNAME=hsn
