"""A stand-in for vLLM that is commanded by files beside its package, for the fleet's cases.

``all.json``, ``MODEL.json`` and ``port-N.json`` hold: health, models, models_raw, models_status, post_status, post_text,
post_headers, token_seconds, pieces, piece_seconds, hang, hang_after, hang_for, slow, fail, code, spam, waiting, no_metrics,
text.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.fake_vllm import make_fake_vllm

_SERVER = r"""
import json, os, pathlib, sys, time, socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

here = pathlib.Path(__file__).resolve().parents[3]
options = dict(zip(sys.argv[1:], sys.argv[2:] + [""]))
port = int(options["--port"])
name = options["--served-model-name"]


def cfg():
    out = {}
    for f in (here / "all.json", here / f"{name.replace('/', '_')}.json", here / f"port-{port}.json"):
        try:
            out.update(json.loads(f.read_text()))
        except (OSError, ValueError):
            pass
    return out


c = cfg()
print("argv:", sys.argv[1:], flush=True)
print(
    "env:",
    json.dumps(
        {
            k: v
            for k, v in os.environ.items()
            if k.startswith(("SLURM_JOB", "SBATCH", "CUDA", "HF_", "VLLM", "http", "no_proxy", "PYTHON"))
        }
    ),
    flush=True,
)
if c.get("fail"):
    print(c["fail"], file=sys.stderr)
    sys.exit(c.get("code", 1))
if c.get("spam"):
    for i in range(c["spam"]):
        print("x" * 1000, flush=True)
healthy = time.monotonic() + c.get("slow", 0.3)
running = 0


class H(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, v, status=200, headers={}):
        d = v.encode() if isinstance(v, str) else json.dumps(v).encode()
        self.send_response(status)
        for k, x in headers.items():
            self.send_header(k, x)
        self.send_header("Content-Length", str(len(d)))
        self.end_headers()
        self.wfile.write(d)

    def do_GET(self):
        c = cfg()
        if c.get("hang"):
            time.sleep(c["hang"])
        if self.path == "/health":
            self.answer("", c.get("health", 200 if time.monotonic() > healthy else 503))
        elif self.path == "/v1/models":
            self.answer(
                c.get("models_raw") if "models_raw" in c else {"data": [{"id": m} for m in c.get("models", [name])]},
                c.get("models_status", 200),
            )
        elif self.path == "/metrics":
            if c.get("no_metrics"):
                return self.answer("", 404)
            l = 'engine="0"'
            self.answer(
                "\n".join(
                    (
                        f"vllm:num_requests_running{{{l}}} {running}.0",
                        f"vllm:num_requests_waiting{{{l}}} {c.get('waiting', 0)}.0",
                        "",
                    )
                )
            )
        else:
            self.answer("", 404)

    def do_POST(self):
        global running
        running += 1
        c = cfg()
        try:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with open(here / "requests.log", "a") as f:
                f.write(json.dumps([time.time(), port, self.path, asked.get("model")]) + "\n")
            time.sleep(c.get("token_seconds", 0) + float(asked.get("seconds", 0)))
            if c.get("post_status"):
                return self.answer(
                    {"error": {"message": c.get("post_text", "no"), "type": "x", "code": c["post_status"]}},
                    c["post_status"],
                    c.get("post_headers", {}),
                )
            base = {"id": "1", "created": 1, "model": name}
            if asked.get("stream"):
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()

                def piece(x):
                    d = ("data: " + (x if isinstance(x, str) else json.dumps(x)) + "\n\n").encode()
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(d), d))
                    self.wfile.flush()

                n = c.get("pieces", 5)
                for i in range(n):
                    if "hang_after" in c and i >= c["hang_after"]:
                        time.sleep(c.get("hang_for", 60))
                    piece(
                        {
                            **base,
                            "object": "chat.completion.chunk",
                            "choices": [
                                {
                                    "index": 0,
                                    "delta": {"role": "assistant", "content": f"w{i} "},
                                    "finish_reason": None,
                                }
                            ],
                        }
                    )
                    time.sleep(c.get("piece_seconds", 0.05))
                piece(
                    {
                        **base,
                        "object": "chat.completion.chunk",
                        "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
                    }
                )
                piece("[DONE]")
                self.wfile.write(b"0\r\n\r\n")
                return
            m = {"role": "assistant", "content": c.get("text", "#### 42")}
            self.answer(
                {
                    **base,
                    "object": "chat.completion",
                    "choices": [{"index": 0, "text": "42", "message": m, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
                    "pid": os.getpid(),
                }
            )
        finally:
            running -= 1


class S(ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ":" in options["--host"] else socket.AF_INET
    daemon_threads = True


S((options["--host"], port), H).serve_forever()
"""


def make_commanded_vllm(folder: Path) -> Path:
    """Write the package, as vLLM's build for the CPU, into a folder for ``PYTHONPATH``."""
    made = make_fake_vllm(folder)
    (made / "vllm" / "entrypoints" / "openai" / "api_server.py").write_text(_SERVER)
    return made


def command(folder: Path, which: str = "all", **values: object) -> None:
    """Command the stand-ins of ``folder`` from now on: all, those of a model or of a port (``port-N``)."""
    (folder / f"{which}.json").write_text(json.dumps(values))
