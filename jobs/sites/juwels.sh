#!/usr/bin/env bash
# JUWELS-like (slurm): 4 GPUs (A100) and 48 cores a node, four InfiniBand adapters, ParaStation MPI or Open MPI.
# Sourced by the job scripts, before the environment; `esgd jobs render` writes it into the script.
# Written from the site's documentation; it was not run there.
# shellcheck disable=SC2034  # the job script uses these

# Directives of this site: `esgd jobs render` writes them to the top of the script; by hand, copy them there.
#SBATCH --partition=booster
#SBATCH --cpus-per-task=12
#SBATCH --gpus-per-node=4

# module load Stages GCC CUDA NCCL OpenMPI                           # what the environment was built with

MPI=${MPI:-pspmix} # `srun --mpi=list` shows what this Slurm has

# All ranks see all GPUs of the node, as NCCL needs for direct copies between them; each takes the one of its number.
SRUN_OPTIONS=(--cpu-bind=cores)

ESGD=(esgd) # what every rank starts

# Nodes reach each other over InfiniBand; the names of the Ethernet interfaces lead elsewhere.
export NCCL_SOCKET_IFNAME=ib0
