#!/usr/bin/env python3
"""Summarize routing metrics: ``analyze_routing_metrics.py --since 24h [--file logs/routing_metrics.jsonl] [--json]``.

Equivalent to ``python -m workflow_composer metrics``; kept for existing cron jobs.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from workflow_composer.cli.main import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], name=Path(__file__).name, command=("metrics",)))
