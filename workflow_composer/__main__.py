"""``python -m workflow_composer``."""

import os
import sys
from contextlib import suppress

_left = None
if __name__ == "__main__" and not sys.flags.safe_path:
    with suppress(OSError, IndexError):
        if sys.path[0] in ("", os.getcwd()):  # noqa: PTH109  # before anything that a file there could replace is imported
            _left = sys.path.pop(0)

from workflow_composer.cli.main import main  # noqa: E402  # the path first
from workflow_composer.support.own_program import FUNCTION_PATH  # noqa: E402  # as above

if __name__ == "__main__":
    if _left is not None:
        FUNCTION_PATH.append(_left or os.getcwd())  # noqa: PTH109  # where functions that a profile names are still found
    main()
