"""The service whose silent streams show that they are alive a hundred times as often."""

from __future__ import annotations

from workflow_composer.cli.main import main
from workflow_composer.server import silence

if __name__ == "__main__":
    silence.SILENT /= 100
    main()
