"""``python -m workflow_composer``."""

from workflow_composer.cli.main import main

if __name__ == "__main__":
    main()
