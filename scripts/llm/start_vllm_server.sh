#!/bin/bash
# Starts a vLLM server on this machine; see `--help`. The logic is in workflow_composer/fleet/launch/supervisor.py.

set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: start_vllm_server.sh ROLE|MODEL [--port N] [--dry-run] [--fleet FILE] [-- OPTIONS OF VLLM]

Starts a vLLM server in the foreground: a role of the fleet file (config/fleet.yaml of the working directory, else the
user's, else the shipped one), or a model id or folder. It adapts the settings to the GPU, checks port, memory, disk and
model before loading anything, prints the URL when the server is ready, and logs to logs/SERVER.log. SIGTERM and Ctrl-C
let active requests finish and stop all processes.

  start_vllm_server.sh coder
  start_vllm_server.sh ./my_model --port 8009 -- --max-num-seqs 8
  start_vllm_server.sh coder --dry-run        print the exact command and start nothing

Environment:
  WORKFLOW_COMPOSER_PYTHON       Python with workflow_composer installed; default: .venv/bin/python of the working
                                 directory or of this script's checkout, else the first python3 with it
  WORKFLOW_COMPOSER_VLLM_PYTHON  Python with vLLM installed, if the fleet file sets none
TEXT
}

has_package() {
    [[ -n "$1" ]] && command -v "$1" >/dev/null && "$1" -P -c 'import workflow_composer.fleet.file' 2>/dev/null
}

find_python() {
    local here candidate
    here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../..
    for candidate in "${WORKFLOW_COMPOSER_PYTHON:-}" "$PWD/.venv/bin/python" "$here/.venv/bin/python" python3 python; do
        if has_package "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    echo "error: no Python with workflow_composer found" >&2
    echo "hint: set WORKFLOW_COMPOSER_PYTHON to such a Python, or start this from a checkout with a .venv" >&2
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
# exec, so that a signal to this script reaches the server's supervisor.
exec "$python" -P -m workflow_composer fleet serve "$@"
