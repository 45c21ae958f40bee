#!/usr/bin/env bash
# One ESGD run under LSF with jsrun, one rank a GPU:  bsub < esgd.sh
# Not tried on an LSF machine yet; written from its documentation.
# ---------------------------------------------------------------------------
#BSUB -J esgd
#BSUB -P PROJECT
#BSUB -W 2:00
#BSUB -nnodes 2
#BSUB -o esgd.%J.log
set -u

RECIPE=fashion                       # a name from `esgd recipes`, or a TOML file; needs `esgd data prepare fashion`
OUTPUT=runs/$RECIPE                  # on a file system that all nodes see
ENVIRONMENT=build/cluster/env.sh     # made by: cmake --workflow --preset cluster
RANKS=12                             # nodes x GPUs of a node
RANKS_PER_NODE=6
# ---------------------------------------------------------------------------

# shellcheck source=/dev/null
source "$ENVIRONMENT"

# A resource set is one rank with one GPU and seven cores; -b rs binds the rank to its cores.
jsrun -n "$RANKS" -r "$RANKS_PER_NODE" -a 1 -c 7 -g 1 -b rs esgd run "$RECIPE" --output "$OUTPUT"
status=$?

# 99: stopped early at a complete checkpoint; the same bsub goes on from it.
exit "$status"
