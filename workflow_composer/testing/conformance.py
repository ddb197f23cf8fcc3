"""What all conformance checks have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from workflow_composer.errors import WorkflowComposerError


class NotConforming(AssertionError):  # it is a finding
    """A plugin does not keep to the interface; the text says where and how."""


def require(condition: object, finding: str) -> None:
    """Raise `NotConforming` unless the condition holds."""
    if not condition:
        raise NotConforming(finding)


@contextmanager
def only_own_errors(where: str) -> Iterator[None]:
    """Let the package's own errors pass; raise `NotConforming` for any other."""
    try:
        yield
    except (NotConforming, WorkflowComposerError):
        raise
    except Exception as error:
        raise NotConforming(
            f"{where} raised {type(error).__name__}: {error}; raise an error of workflow_composer.errors instead"
        ) from error
