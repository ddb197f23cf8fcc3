#!/usr/bin/env python3
"""Monitor the fleet: ``monitor_vllm_health.py [--watch] [--fleet FILE]``; without ``--watch``, one round, for cron.

The same as ``python -m workflow_composer fleet monitor``.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from workflow_composer.cli.main import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], name=Path(__file__).name, command=("fleet", "monitor")))
