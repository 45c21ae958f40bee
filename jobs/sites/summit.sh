#!/usr/bin/env bash
# Summit- or Lassen-like (lsf): 6 or 4 GPUs (V100) and 42 or 40 usable cores a node, InfiniBand, jsrun, Spectrum MPI.
# Sourced by the job scripts, before the environment; `esgd jobs render` writes it into the script.
# Written from the site's documentation; it was not run there.
# shellcheck disable=SC2034  # the job script uses these

# Directives of this site: `esgd jobs render` writes them to the top of the script; by hand, copy them there.
# smt1: one hardware thread a core. Only where ranks share a GPU (topology.share_gpus) is it "gpumps smt1".
#BSUB -alloc_flags smt1

# module load spectrum-mpi cuda nccl                                 # what the environment was built with

MPI=${MPI:-jsrun}

ESGD=(esgd) # what every rank starts

# NCCL makes its first connections over the first interface that is up, which may not reach the other nodes.
export NCCL_SOCKET_IFNAME=ib0
