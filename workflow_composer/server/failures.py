"""What went wrong, as HTTP tells it: `HttpFailure` is raised by handlers, and made from the package's errors."""

from __future__ import annotations


class HttpFailure(Exception):
    """A request that is answered by an error.

    ``status`` is HTTP's; ``type``, ``code`` and ``param`` are those of OpenAI's error object; ``retry_after`` is in seconds.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",  # noqa: A002  # OpenAI's name
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.retry_after = retry_after
