#!/usr/bin/env bash
# Trains from a recipe, on this machine or as a SLURM job:
#
#   ./launch.sh [--ranks N] RECIPE [section.key=value ...]
#   sbatch --nodes=4 --gpus-per-node=8 launch.sh RECIPE [section.key=value ...]
#   ./launch.sh --setup                       only makes the environment, for nodes without a network
#
# One process per GPU; without GPUs two on the CPU, or N. PYTHON names the interpreter to make .venv with.
#SBATCH --job-name=partialfc
#SBATCH --ntasks-per-node=1
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ -d "$root/partialfc" ] || root=${SLURM_SUBMIT_DIR:?launch.sh stands in the repository} # sbatch runs a copy
cd "$root"
source environment.sh

# One launcher on every node of the job; they meet on the first one.
run_job() {
  local first port
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  getent hosts "$first" >/dev/null || # a name that does not resolve: SLURM knows the address
    first=$(scontrol --oneliner show node "$first" | grep -oP ' NodeAddr=\K\S+')
  # once, before every node says it
  .venv/bin/python -m partialfc.launch --check --nodes="$SLURM_NNODES" "$@" || exit
  port=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
  export TORCH_CPP_LOG_LEVEL=${TORCH_CPP_LOG_LEVEL:-ERROR} # else each end of a job warns that others are gone
  exec srun --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
    .venv/bin/python -m partialfc.launch --nodes="$SLURM_NNODES" --endpoint="$first:$port" \
    --id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" "$@"
}

make_environment requirements.txt
[ "${1:-}" = --setup ] && exit
if [ -n "${SLURM_JOB_ID:-}" ] && [ -z "${SLURM_STEP_ID:-}" ]; then
  run_job "$@"
fi
exec .venv/bin/python -m partialfc.launch "$@"
