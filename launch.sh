#!/usr/bin/env bash
# Makes the environment where it is missing, and trains in it; on this machine or as a SLURM job:
#
#   usage: launch.sh [--ranks N] RECIPE [section.key=value ...]
#          sbatch --nodes=4 --gpus-per-node=8 launch.sh RECIPE [section.key=value ...]
#          launch.sh --setup      only makes the environment, for nodes without a network
#
# RECIPE is a file, or the name of a recipe that ships; paths are relative to where this is called. One process per GPU;
# without GPUs two on the CPU, or N. PYTHON names the interpreter to make .venv with, PARTIALFC_VENV another place for it. A job that comes near its time
# limit, or is preempted, saves, and queues itself again; so it goes on until it is done. In the shell of an allocation
# (salloc), and in a script that calls this one, nothing is requeued unless --requeue is given.
#SBATCH --job-name=partialfc
#SBATCH --ntasks-per-node=1
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
options=()
if [ ! -d "$root/partialfc" ]; then # sbatch runs a copy
  options=(--requeue)
  # Of an array the id of this task: that of the job stands for all of them.
  job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
  job=${job:-${SLURM_JOB_ID:?launch.sh stands in the repository}}
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
python=$(cd "$root" && source environment.sh && realpath -s "$(environment_folder)")/bin/python
[ -z "${PARTIALFC_VENV:-}" ] || export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} # the package is not installed there
exec "$python" -m partialfc train "${options[@]}" "$@"
