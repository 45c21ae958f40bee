#!/usr/bin/env bash
# Any cluster (slurm, lsf): nothing that only one site has.
# Sourced by the job scripts, before the environment; `esgd jobs render` writes it into the script.
# shellcheck disable=SC2034  # the job script uses these

# module load openmpi cuda nccl      # what the environment was built with

# How Slurm starts Open MPI; `srun --mpi=list` shows what this Slurm has. LSF without jsrun has mpirun.
MPI=${MPI:-${LSB_JOBID:+mpirun}}
MPI=${MPI:-pmix}

# For Slurm. Each rank keeps to its own cores. All ranks see all GPUs of the node, as NCCL needs for direct copies between them; each takes the one of its number.
SRUN_OPTIONS=(--cpu-bind=cores)

ESGD=(esgd) # what every rank starts

# NCCL makes its first connections over the first interface that is up. Name one that reaches the other nodes where it takes a wrong one: `ip -brief address`.
# export NCCL_SOCKET_IFNAME=ib0
