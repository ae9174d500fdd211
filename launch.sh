#!/usr/bin/env bash
# Trains from a recipe, on this machine or as a SLURM job:
#
#   ./launch.sh [--ranks N] RECIPE [section.key=value ...]
#   sbatch --nodes=4 --gpus-per-node=8 launch.sh RECIPE [section.key=value ...]
#   ./launch.sh --setup                       only makes the environment, for nodes without a network
#
# One process per GPU; without GPUs two on the CPU, or N. PYTHON names the interpreter to make .venv with.
# A job that comes near its time limit, or is preempted, saves, and queues itself again; so it goes on until it is done.
#SBATCH --job-name=partialfc
#SBATCH --ntasks-per-node=1
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ -d "$root/partialfc" ] || root=${SLURM_SUBMIT_DIR:?launch.sh stands in the repository} # sbatch runs a copy
cd "$root"
source environment.sh

make_environment requirements.txt
[ "${1:-}" = --setup ] && exit
if [ -n "${SLURM_JOB_ID:-}" ] && [ -z "${SLURM_STEP_ID:-}" ]; then
  exec .venv/bin/python -m partialfc.job "$@"
fi
exec .venv/bin/python -m partialfc.launch "$@"
