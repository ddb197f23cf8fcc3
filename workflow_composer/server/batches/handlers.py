"""Handlers of ``/v1/files`` and ``/v1/batches``, in OpenAI's format. A key sees its own files and batches only."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from workflow_composer.server import multipart
from workflow_composer.server.api import field_checks, schemas
from workflow_composer.server.api.completion_handler import Accounts
from workflow_composer.server.api.field_checks import UNSUPPORTED, described, wrong
from workflow_composer.server.api.forms import ADDRESS_HEADERS, Field, Form
from workflow_composer.server.api.json_wire import encode
from workflow_composer.server.batches.running import Batches
from workflow_composer.server.batches.shelf import NOBODY, Shelf
from workflow_composer.server.exchange import Exchange, Handler, Reply
from workflow_composer.server.failures import PERMISSION, HttpFailure
from workflow_composer.support.large_json import LARGE

FILES, BATCHES = "/v1/files", "/v1/batches"
FILE, BATCH = f"{FILES}/", f"{BATCHES}/"
"""Starts of the paths of one file and one batch."""
CONTENT, CANCEL = "/content", "/cancel"
_LONGEST_NAME = 255
_MOST_SHOWN, _USUALLY_SHOWN = 10_000, 100
_BLOCK = 2**18
_LEAST_SECONDS, _MOST_SECONDS = 3600, 2_592_000
_LONGEST_WINDOW = 168
PURPOSES = ("batch", "user_data", "assistants", "evals", "fine-tune", "vision")
_OPEN = {"in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at"}


@described({**schemas.TEXT, "pattern": r"^([1-9]|[1-9][0-9]|1[0-5][0-9]|16[0-8])h$"})
def _window(name: str, value: Any) -> int:
    found = re.fullmatch(r"(\d{1,3})h", field_checks.text(name, value))
    if found is None or not 1 <= int(found[1]) <= _LONGEST_WINDOW:
        raise wrong(name, f"must be a number of hours, at most {_LONGEST_WINDOW}h, such as 24h")
    return int(found[1]) * 3600


@described({"type": "object", "maxProperties": 16, "additionalProperties": {**schemas.TEXT, "maxLength": 512}})
def _metadata(name: str, value: Any) -> dict[str, str]:
    found = field_checks.mapping(name, value)
    if len(found) > 16 or not all(isinstance(text, str) and len(text) <= 512 for text in found.values()):
        raise wrong(name, "must have at most 16 texts of at most 512 characters")
    return found


def batch_form(endpoints: Iterable[str]) -> Form:
    """Return the form of a new batch, whose lines go to one of these paths."""
    told = f"must be one of {', '.join(endpoints)}"
    return Form(
        {
            "input_file_id": Field(field_checks.text, required="must be the ID of an uploaded file"),
            "endpoint": Field(field_checks.one_of(*endpoints, message=told), required=told),
            "completion_window": Field(_window, required="must be a number of hours, such as 24h"),
            "metadata": Field(_metadata),
            "output_expires_after": Field(field_checks.mapping, left_out="all files are kept equally long"),
        },
        closed="is not a field of this API",
        code=UNSUPPORTED,
        example={"input_file_id": "file-abc123", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
    )


class Uploads:
    """Handlers of files and batches; ``batches`` None: the service keeps no files, and says so."""

    def __init__(self, accounts: Accounts, batches: Batches | None, form: Form) -> None:
        self._accounts = accounts
        self._batches = batches
        self._form = form

    def routes(self) -> Mapping[tuple[str, str], Handler]:
        """Return the handlers by method and path."""
        return {
            ("POST", FILES): self.upload,
            ("GET", FILES): self.files,
            ("GET", FILE): self.file,
            ("GET", f"{FILE}*{CONTENT}"): self.content,
            ("DELETE", FILE): self.delete,
            ("POST", BATCHES): self.begin,
            ("GET", BATCHES): self.batches,
            ("GET", BATCH): self.batch,
            ("POST", f"{BATCH}*{CANCEL}"): self.cancel,
        }

    def _shelf(self, exchange: Exchange) -> Shelf:
        key = self._accounts.enter(exchange)
        if self._batches is None:
            message = "the service keeps no files; its operator allows them with serve --keep-files DAYS"
            raise HttpFailure(403, message, type=PERMISSION, code="files_disabled")
        return self._batches.shelf(NOBODY if key is None else key.id)

    # -------------------------------------------------------------------------------------------------------- files

    async def upload(self, exchange: Exchange) -> Reply:
        """Keep a file: ``purpose`` and ``file``, as multipart."""
        shelf = self._shelf(exchange)
        form = multipart.read(exchange.body, exchange.headers)
        purpose, part = form.text("purpose") or "", form.file("file")
        if purpose not in PURPOSES:
            raise HttpFailure(400, f"purpose: must be one of {', '.join(PURPOSES)}", param="purpose")
        name = "".join(one for one in (part.filename or "") if one.isprintable())[-_LONGEST_NAME:]
        seconds = _seconds(form.text("expires_after[seconds]"))
        made = await asyncio.to_thread(shelf.add, part.content, name or "file", purpose, seconds)
        return Reply(200, encode(made.shown))

    async def files(self, exchange: Exchange) -> Reply:
        """List the files, the newest first."""
        shelf, query = self._shelf(exchange), parse_qs(exchange.query)
        purpose = query.get("purpose", [None])[0]
        found = await asyncio.to_thread(lambda: [one.shown for one in shelf.files()])
        return _listed([one for one in found if purpose in (None, one["purpose"])], query)

    async def file(self, exchange: Exchange) -> Reply:
        """Return a file's record."""
        shelf = self._shelf(exchange)
        found = await asyncio.to_thread(shelf.file, _named(exchange.path, FILE))
        return Reply(200, encode(found.shown))

    async def content(self, exchange: Exchange) -> Reply | None:
        """Return a file's content."""
        shelf = self._shelf(exchange)
        identity = _named(exchange.path, FILE, CONTENT)
        found = await asyncio.to_thread(shelf.file, identity)
        path = shelf.content(identity)
        if found.bytes <= LARGE:
            return Reply(200, await asyncio.to_thread(path.read_bytes), "application/octet-stream")
        exchange.open_stream(content_type="application/octet-stream", headers=exchange.shared)
        await _sent(path, exchange)
        return None

    async def delete(self, exchange: Exchange) -> Reply:
        """Delete a file. Raises `HttpFailure` 409 if an unfinished batch reads it."""
        shelf = self._shelf(exchange)
        identity = _named(exchange.path, FILE)

        def deleted() -> None:
            open_ones = (one for one in shelf.batches() if not one.finished)
            if readers := [one.id for one in open_ones if one.shown["input_file_id"] == identity]:
                message = f"{readers[0]} still reads this file; cancel it first"
                raise HttpFailure(409, message, code="file_in_use", param="id")
            shelf.delete(identity)

        await asyncio.to_thread(deleted)
        return Reply(200, encode({"id": identity, "object": "file", "deleted": True}))

    # ------------------------------------------------------------------------------------------------------ batches

    async def begin(self, exchange: Exchange) -> Reply:
        """Begin a batch over the lines of a file."""
        shelf = self._shelf(exchange)
        _, own, _, warnings = self._form.read(exchange.body)
        file = await asyncio.to_thread(shelf.file, own["input_file_id"])
        if file.purpose != "batch":
            raise HttpFailure(400, "input_file_id: the file's purpose must be batch", param="input_file_id")
        now = int(time.time())
        shown = {
            "object": "batch",
            "endpoint": own["endpoint"],
            "errors": None,
            "input_file_id": file.id,
            "completion_window": f"{own['completion_window'] // 3600}h",
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": now,
            "expires_at": now + own["completion_window"],
            **dict.fromkeys(sorted(_OPEN)),
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": own.get("metadata"),
        }
        told = {name: exchange.headers[name] for name in ADDRESS_HEADERS if name in exchange.headers}
        made = await asyncio.to_thread(shelf.begin, shown, told)
        assert self._batches is not None  # it keeps files
        self._batches.told()
        headers = [("x-workflow-composer-warning", warning) for warning in warnings]
        return Reply(200, encode(made.shown), headers=headers)

    async def batches(self, exchange: Exchange) -> Reply:
        """List the batches, the newest first."""
        shelf = self._shelf(exchange)
        found = await asyncio.to_thread(lambda: [one.shown for one in shelf.batches()])
        return _listed([self._now(one) for one in found], parse_qs(exchange.query))

    async def batch(self, exchange: Exchange) -> Reply:
        """Return a batch's record."""
        shelf = self._shelf(exchange)
        identity = _named(exchange.path, BATCH)
        found = await asyncio.to_thread(shelf.batch, identity)
        return Reply(200, encode(self._now(found.shown)))

    async def cancel(self, exchange: Exchange) -> Reply:
        """End a batch; what is answered by then is in its files."""
        shelf = self._shelf(exchange)
        identity = _named(exchange.path, BATCH, CANCEL)

        def cancelled() -> dict[str, Any]:
            found = shelf.batch(identity)
            if found.finished:
                message = f"the batch has ended already: {found.shown['status']}"
                raise HttpFailure(409, message, code="batch_finished", param="id")
            shelf.cancel(identity)
            return {**found.shown, "status": "cancelling", "cancelling_at": shelf.cancelled_at(identity)}

        return Reply(200, encode(await asyncio.to_thread(cancelled)))

    def _now(self, shown: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a record with the counts of this moment, if the batch runs in this worker."""
        counts = None if self._batches is None else self._batches.counts(shown["id"])
        if counts is None or shown["status"] not in ("in_progress", "cancelling"):
            return shown
        return {**shown, "request_counts": counts}


def _named(path: str, start: str, end: str = "") -> str:
    """Return the ID in a path. Raises `HttpFailure` 404."""
    identity = path.removeprefix(start).removesuffix(end)
    if not identity or "/" in identity:
        raise HttpFailure(404, f"unknown path {path[:100]!r}; see /openapi.json", code="not_found")
    return identity


def _seconds(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or not _LEAST_SECONDS <= int(text) <= _MOST_SECONDS:
        limits = f"must be a number of seconds from {_LEAST_SECONDS} to {_MOST_SECONDS}"
        raise HttpFailure(400, f"expires_after[seconds]: {limits}", param="expires_after[seconds]")
    return int(text)


def _listed(found: Sequence[Mapping[str, Any]], query: Mapping[str, list[str]]) -> Reply:
    """Return a page of a list: ``limit`` entries ``after`` one, in ``order``."""
    limit = query.get("limit", [str(_USUALLY_SHOWN)])[0]
    if not limit.isdecimal() or not 1 <= int(limit) <= _MOST_SHOWN:
        raise HttpFailure(400, f"limit: must be a number from 1 to {_MOST_SHOWN}", param="limit")
    is_rising = query.get("order", ["desc"])[0] == "asc"
    rows = sorted(found, key=lambda one: (one["created_at"], one["id"]), reverse=not is_rising)
    if after := query.get("after", [""])[0]:
        at = next((number for number, one in enumerate(rows) if one["id"] == after), None)
        if at is None:
            raise HttpFailure(400, f"after: there is no {after[:60]!r}", param="after")
        rows = rows[at + 1 :]
    page = rows[: int(limit)]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return Reply(200, encode({"object": "list", "data": page, **ends, "has_more": len(rows) > len(page)}))


async def _sent(path: Path, exchange: Exchange) -> None:
    """Send a file as fast as the client reads. Raises OSError."""
    with await asyncio.to_thread(path.open, "rb") as file:
        read: Callable[[int], bytes] = file.read
        while block := await asyncio.to_thread(read, _BLOCK):
            exchange.write(block)
            await exchange.drain()
    exchange.close_stream()
