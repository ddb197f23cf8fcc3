"""A headless Chromium, driven over its DevTools protocol; just what the tests of the dashboard need."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page:
    """One page. ``complaints`` gathers what its console, its exceptions and its security policy say."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._number = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self._listening = asyncio.get_running_loop().create_task(self._listen())

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command; its result."""
        self._number += 1
        answer = self._waiting[self._number] = asyncio.get_running_loop().create_future()
        data = json.dumps({"id": self._number, "method": method, "params": parameters}).encode()
        mask = os.urandom(4)
        self._writer.write(
            struct.pack("!BBQ", 0x81, 0xFF, len(data)) + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))
        )
        async with asyncio.timeout(60):
            found = await answer
        assert "error" not in found, found
        return found["result"]

    async def value(self, script: str) -> Any:
        """What an expression of JavaScript is; a promise is awaited."""
        found = await self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, script: str, *, seconds: float = 60.0) -> None:
        """Wait until an expression is true."""
        ends = time.monotonic() + seconds
        while not await self.value(script):
            assert time.monotonic() < ends, f"never true: {script}; the page: {await self.value('document.body.innerText')}"
            await asyncio.sleep(0.05)

    async def open(self, url: str) -> None:
        """Load a page and watch what it says."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.send(f"{domain}.enable")
        await self.send("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def size(self, width: int, height: int = 1400) -> None:
        """As on a screen of that size."""
        shape = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        await self.send("Emulation.setDeviceMetricsOverride", **shape)

    async def screenshot(self) -> bytes:
        """A picture of the whole page, as PNG."""
        found = await self.send("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(found["data"])

    async def _listen(self) -> None:
        text = b""
        while True:
            first, second = await self._reader.readexactly(2)
            size = second & 127
            if size == 126:
                (size,) = struct.unpack("!H", await self._reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", await self._reader.readexactly(8))
            text += await self._reader.readexactly(size)
            if not first & 0x80:
                continue
            message, text = json.loads(text), b""
            if "id" in message:
                self._waiting.pop(message["id"]).set_result(message)
            else:
                self._note(message["method"], message["params"])

    def _note(self, method: str, parameters: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.asked.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(parameters["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in {"error", "warning"}:
            self.complaints.append(json.dumps(parameters["args"])[:500])
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in {"error", "warning"}:
            self.complaints.append(parameters["entry"]["text"])

    async def close(self) -> None:
        """Stop listening."""
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        self._writer.close()


@asynccontextmanager
async def browsing(folder: Path) -> AsyncIterator[Page]:
    """A fresh browser with one page."""
    assert CHROMIUM is not None
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run")
    process = await asyncio.create_subprocess_exec(
        CHROMIUM, *options, f"--user-data-dir={folder}", "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        place = folder / "DevToolsActivePort"
        async with asyncio.timeout(60):
            while not (place.is_file() and len(place.read_text().splitlines()) == 2):
                await asyncio.sleep(0.05)
        port = int(place.read_text().splitlines()[0])
        page = await _connect(port)
        try:
            yield page
        finally:
            await page.close()
    finally:
        os.killpg(process.pid, 15)
        await process.wait()


async def _connect(port: int) -> Page:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /json/list HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    targets = json.loads(await reader.readexactly(length))
    writer.close()
    path = urlsplit(next(one["webSocketDebuggerUrl"] for one in targets if one["type"] == "page")).path
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    return Page(reader, writer)
