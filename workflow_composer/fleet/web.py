"""HTTP from the fleet to servers and receivers of alerts: no proxies, no redirects, bounded in bytes and in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from requests import Response, Session

T = TypeVar("T")

LARGEST = 4 << 20
"""Bytes of an answer that are read; a server's metrics have some 50,000."""
CONNECT = 5.0
"""Seconds in which a connection must stand."""


class OutOfTime(Exception):
    """The time for an exchange is over. ``connected``: something took the connection."""

    def __init__(self, *, connected: bool) -> None:
        super().__init__("no answer in time")
        self.connected = connected


class TooLarge(Exception):
    """The answer has more bytes than are read."""


class Line:
    """One client's requests to one address, all within one deadline. A context manager.

    `ask` raises `OutOfTime`, `TooLarge`, and what `requests` raises for a connection that fails.
    """

    def __init__(self, seconds: float, key: str | None = None) -> None:
        import requests

        self.session: Session = requests.Session()
        self.session.trust_env = False  # neither proxies nor ~/.netrc
        if key:
            self.session.headers["Authorization"] = f"Bearer {key}"
        self.ends = time.monotonic() + seconds

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()

    def ask(self, method: str, url: str, json: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        """Status and body of the answer."""
        import requests

        try:
            with self.session.request(
                method,
                url,
                json=json,
                timeout=(min(CONNECT, self._left(connected=False)), self._left(connected=False)),
                allow_redirects=False,
                stream=True,
            ) as response:
                return response.status_code, self._body(response)
        except requests.exceptions.ConnectTimeout as error:
            raise OutOfTime(connected=False) from error
        except requests.exceptions.Timeout as error:
            raise OutOfTime(connected=True) from error
        except requests.exceptions.ConnectionError as error:
            if "timed out" in str(error).lower():  # how requests words a timeout within the body
                raise OutOfTime(connected=True) from error
            raise

    def _body(self, response: Response) -> bytes:
        found = bytearray()
        for part in response.iter_content(16_384):
            found += part
            if len(found) > LARGEST:
                raise TooLarge
            self._left(connected=True)
        return bytes(found)

    def _left(self, *, connected: bool) -> float:
        left = self.ends - time.monotonic()
        if left <= 0:
            raise OutOfTime(connected=connected)
        return left


def all_at_once(tasks: Mapping[str, Callable[[], T]], seconds: float) -> dict[str, T]:
    """Run the tasks in threads, and return the results of those that ended within ``seconds``.

    What takes longer (a name server that does not answer has no time limit of its own) is left behind in a thread that does
    not keep the process from ending; what raised is missing like it.
    """
    done: dict[str, T] = {}
    guard = threading.Lock()

    def run(name: str, task: Callable[[], T]) -> None:
        found = task()
        with guard:
            done[name] = found

    threads = [threading.Thread(target=run, args=item, name=f"check-{item[0]}", daemon=True) for item in tasks.items()]
    for thread in threads:
        thread.start()
    ends = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, ends - time.monotonic()))
    with guard:
        return dict(done)
