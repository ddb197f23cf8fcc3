#!/bin/bash
#SBATCH --job-name=wc-vllm
#SBATCH --partition=t4flex
#SBATCH --time=24:00:00
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%j.log
#
# A vLLM server as a SLURM job; `--help` explains. The logic is in workflow_composer/fleet/slurm/job.py.

set -euo pipefail
trap '' USR1 # SLURM's signal would end the shell; the job polls its own end time, so it needs no signal until it is up

usage() {
    cat <<'TEXT'
Usage: slurm_vllm_job.sh ROLE [--fleet FILE]          on a login node: submit the role with the fleet file's settings
       sbatch slurm_vllm_job.sh SERVER [--fleet FILE]  submit one server with the #SBATCH defaults of this script

Runs a vLLM server in a SLURM job: publishes its URL in the registry, hands over to a successor before the job's time
limit, requeues the job if the server fails, and removes its registry entry when it ends.

The defaults are partition t4flex, 24 hours, one GPU; `workflow-composer fleet submit ROLE --dry-run` shows the options set
by the fleet file. On a login node, all options of `workflow-composer fleet submit` are accepted.

Environment:
  WORKFLOW_COMPOSER_PYTHON  Python with workflow_composer installed; default: .venv/bin/python of the working directory
                            or of this script's checkout, else the first python3 (3.11 or later) with it
TEXT
}

has_package() {
    [[ -n "$1" ]] && command -v "$1" >/dev/null && "$1" -P -c 'import workflow_composer' 2>/dev/null
}

# sbatch runs a copy of this script from its spool folder, so its own path may not lead to the project.
find_python() {
    local here candidate
    here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../..
    for candidate in "${WORKFLOW_COMPOSER_PYTHON:-}" "${SLURM_SUBMIT_DIR:-$PWD}/.venv/bin/python" \
        "$here/.venv/bin/python" python3 python; do
        if has_package "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    echo "error: no Python with workflow_composer found" >&2
    echo "hint: set WORKFLOW_COMPOSER_PYTHON to such a Python, or submit from a checkout with a .venv" >&2
    return 1
}

case "${1:-}" in
    -h | --help)
        usage
        exit 0
        ;;
    "" | -*)
        usage >&2
        exit 2
        ;;
esac

python=$(find_python)
export WORKFLOW_COMPOSER_PYTHON=$python

# exec, so that SLURM's signal to the batch shell reaches the server's supervisor.
if [[ -n "${SLURM_JOB_ID:-}" && "${SLURM_PROCID:-}" == 0 ]]; then
    exec "$python" -P -m workflow_composer fleet job "$@" # without the working directory on Python's path
fi
exec "$python" -P -m workflow_composer fleet submit "$@"
