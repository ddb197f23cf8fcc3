"""The ``openai`` client without what it reads from the environment. Imported only when a first request is sent."""

from __future__ import annotations

from typing import Any

from openai import AsyncOpenAI


class BareClient(AsyncOpenAI):
    """Sends the headers that a request needs.

    The library adds organisation, project and any header named in the process's environment (``OPENAI_ORG_ID``,
    ``OPENAI_PROJECT_ID``, ``OPENAI_CUSTOM_HEADERS``) to each request, whichever server it goes to.
    """

    @property
    def default_headers(self) -> dict[str, Any]:
        """Content negotiation only; the key is given with each call."""
        return {"Accept": "application/json", "Content-Type": "application/json", "User-Agent": "workflow-composer"}
