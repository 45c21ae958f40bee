#!/usr/bin/env bash
# LUMI-like (slurm): 8 GPUs (MI250X dies) and 56 usable cores a node, four Slingshot interfaces, Cray MPICH.
# Sourced by the job scripts, before the environment; `esgd jobs render` writes it into the script.
# Written from the site's documentation; it was not run there.
# shellcheck disable=SC2034  # the job script uses these

# Directives of this site: `esgd jobs render` writes them to the top of the script; by hand, copy them there.
#SBATCH --partition=standard-g
#SBATCH --cpus-per-task=7
#SBATCH --gpus-per-node=8

# module load LUMI partition/G rocm cray-mpich                       # what the environment was built with

MPI=${MPI:-cray_shasta}

# GPU n lies beside other cores than the n-th seven: these are its own, for ranks 0 to 7 of a whole node.
SRUN_OPTIONS=("--cpu-bind=mask_cpu:7e000000000000,7e00000000000000,7e0000,7e000000,7e,7e00,7e00000000,7e0000000000")

# Slurm shows all GPUs to all ranks here; each rank keeps the one of its number, which the cores above belong to.
# shellcheck disable=SC2016  # SLURM_LOCALID is known on the rank only
ESGD=(bash -c 'export ROCR_VISIBLE_DEVICES=$SLURM_LOCALID; exec "$@"' rank esgd)

# RCCL reads NCCL's variables. Without this its first connections may go over the management network.
export NCCL_SOCKET_IFNAME=hsn0,hsn1,hsn2,hsn3

# MIOpen keeps compiled kernels in the home directory, where thousands of ranks would lock one file.
export MIOPEN_USER_DB_PATH=/tmp/miopen-$USER-${SLURM_JOB_ID:-0}
export MIOPEN_CUSTOM_CACHE_DIR=$MIOPEN_USER_DB_PATH
