#!/usr/bin/env bash
# Creates the environment if it is missing, and trains in it, on this machine or as a SLURM job:
#
#   usage: launch.sh [--ranks N] RECIPE [section.key=value ...]
#          sbatch --nodes=4 --gpus-per-node=8 launch.sh RECIPE [section.key=value ...]
#          launch.sh --setup      only creates the environment, for nodes without a network
#
# RECIPE is a file or the name of a bundled recipe. Paths are relative to the current folder. N defaults to one rank per
# GPU, and to two without GPUs. PYTHON is the interpreter that creates .venv, PARTIALFC_VENV another folder for it.
#
# A job that is preempted or near its time limit saves and requeues itself until the run is complete. In the shell of an
# allocation (salloc), and in a script that calls this one, it is requeued only with --requeue.
#SBATCH --job-name=partialfc
#SBATCH --ntasks-per-node=1
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
options=()
if [ ! -d "$root/partialfc" ]; then # sbatch runs a copy of this file
  options=(--requeue)
  # For an array, the id of this task: that of the job means all tasks.
  job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
  job=${job:-${SLURM_JOB_ID:?launch.sh must be in the repository}}
  script=$(scontrol show job "$job" | sed -n 's/^ *Command=\([^ ]*\).*/\1/p' | head -n 1)
  root=$(dirname "$script")
  [ -d "$root/partialfc" ] || root=${SLURM_SUBMIT_DIR:?}
fi
usage() {
  sed -n '/^#   usage:/,/--setup/s/^#   //p' "$root/launch.sh"
}
case ${1:-} in
  "") usage >&2 && exit 2 ;;
  -h | --help) usage && exit ;;
esac
(
  cd "$root"
  source environment.sh
  make_environment requirements.txt
)
[ "$1" = --setup ] && exit
environment=$(source "$root/environment.sh" && environment_folder)
case $environment in /*) ;; *) environment=$root/$environment ;; esac
# The package is not installed in another folder.
[ -z "${PARTIALFC_VENV:-}" ] || export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
# bash 3.2 takes an empty array for an unset variable.
exec "$environment/bin/python" -m partialfc train ${options[@]+"${options[@]}"} "$@"
