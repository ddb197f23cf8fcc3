"""Start commands and requests of each server in `serving.py`: the stub, nginx, Rust routers, LiteLLM's proxy, ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.serving_load import Caller, body_of, free_port, pinned

KEY = "sk-benchmark-0123456789abcdef"
PATH = "/v1/chat/completions"


@dataclass
class Running:
    """A server under test. ``first`` is in seconds, from the command's start to the first answer."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    key: str
    model: str
    first: float = 0.0

    @property
    def url(self) -> str:
        """Where chats are asked."""
        return f"http://127.0.0.1:{self.port}{PATH}"

    def caller(self, *, stream: bool = False) -> Caller:
        """A connection of one's own."""
        return Caller(self.port, PATH, self.key, body_of(self.model, stream=stream))

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _answers(running: Running) -> bool:
    try:
        caller = running.caller()
        caller.unary()
        caller.close()
    except OSError:
        return False
    return True


@dataclass
class Peer:
    """A server that can be started: ``command`` writes its files into a folder and says how. ``why_not``: it cannot be."""

    name: str
    command: Callable[[Path, int, int], tuple[list[str], dict[str, str]]]
    key: str = KEY
    model: str = "stub"
    why_not: str = ""
    more: dict[str, str] = field(default_factory=dict)

    def start(self, folder: Path, upstream: int, core: int) -> Running:
        """Start it and wait for its first answer."""
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        command, environ = self.command(folder, port, upstream)
        with (folder / "log").open("wb") as log:
            began = time.perf_counter()
            process = subprocess.Popen(
                pinned(core, command), stdout=log, stderr=log, env={**os.environ, **environ}, start_new_session=True
            )
        running = Running(self.name, process, port, self.key_of(folder), self.model)
        while not _answers(running):
            if process.poll() is not None or time.perf_counter() - began > 120:
                running.stop()
                raise RuntimeError(f"{self.name} did not start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.005)
        running.first = time.perf_counter() - began
        return running

    def key_of(self, folder: Path) -> str:
        """The key that it wants, which may be in a file that its command wrote."""
        place = folder / "key"
        return place.read_text().strip() if place.is_file() else self.key


def _stub(folder: Path, port: int, upstream: int) -> tuple[list[str], dict[str, str]]:
    return [sys.executable, str(Path(__file__).parent / "serving_stub.py"), str(port)], {}


def _nginx(folder: Path, port: int, upstream: int) -> tuple[list[str], dict[str, str]]:
    (folder / "nginx.conf").write_text(
        f"""daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_buffer_size 64k;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; keepalive_requests 100000000;
  upstream stub {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{port}; location / {{
    proxy_pass http://stub; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }} }}
}}
"""
    )
    place = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or "nginx"
    return [place, "-p", str(folder), "-c", str(folder / "nginx.conf")], {}


def _ours(workers: int, *extra: str) -> Callable[[Path, int, int], tuple[list[str], dict[str, str]]]:
    def command(folder: Path, port: int, upstream: int) -> tuple[list[str], dict[str, str]]:
        profile = folder / "bench.yaml"
        profile.write_text(
            f"""profile_name: bench
allow_cloud: false
vllm_endpoints:
  stub: http://127.0.0.1:{upstream}/v1
task_routing:
  "*": stub
models:
  stub-7b:
    backend: vllm
    endpoint: stub
    gpu_hour_price: 0.35
routers: [cascade, t4_model]
"""
        )
        program = [sys.executable, "-m", "workflow_composer"]
        made = subprocess.run(
            [*program, "keys", "new", "bench", "--file", str(folder / "keys.json"), "--budget", "1000000"],
            capture_output=True,
            text=True,
            check=True,
        )
        (folder / "key").write_text(made.stdout.strip())
        environ = {
            "WORKFLOW_COMPOSER_METRICS": str(folder / "metrics.jsonl"),
            "WORKFLOW_COMPOSER_SERVE_STATE": str(folder / "state"),
        }
        settings = ["--port", str(port), "--workers", str(workers), "--keys", str(folder / "keys.json")]
        return [*program, "-s", str(profile), "serve", *settings, *extra], environ

    return command


def _rust(program: str, *first: str, log: str = "warn") -> Callable[[Path, int, int], tuple[list[str], dict[str, str]]]:
    """The routers that have descended from sglang's, which take the same options."""

    def command(folder: Path, port: int, upstream: int) -> tuple[list[str], dict[str, str]]:
        settings = ["--worker-urls", f"http://127.0.0.1:{upstream}", "--policy", "round_robin", "--log-level", log]
        metrics = ["--prometheus-port", str(free_port())]
        return [program, *first, "--host", "127.0.0.1", "--port", str(port), *settings, *metrics], {}

    return command


def _litellm(program: str, *, metrics: bool) -> Callable[[Path, int, int], tuple[list[str], dict[str, str]]]:
    def command(folder: Path, port: int, upstream: int) -> tuple[list[str], dict[str, str]]:
        parameters = {"model": "openai/stub", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "none"}
        config = {
            "model_list": [{"model_name": "stub", "litellm_params": parameters}],
            "general_settings": {"master_key": KEY},
            "litellm_settings": {"telemetry": False, **({"callbacks": ["prometheus"]} if metrics else {})},
        }
        (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
        return [program, "--config", str(folder / "config.yaml"), "--host", "127.0.0.1", "--port", str(port)], {
            "LITELLM_LOG": "ERROR",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }

    return command


def peers(folder: Path | None) -> list[Peer]:
    """All servers; those that are not installed say so. ``folder``: of an environment with LiteLLM and the routers."""

    def found(name: str) -> str:
        return (
            shutil.which(name, path=None if folder is None else f"{folder}/bin:{os.environ.get('PATH', '')}:/usr/sbin") or ""
        )

    def missing(name: str, install: str) -> str:
        return "" if found(name) else f"not installed: {install}"

    def router(name: str, *first: str, log: str = "warn") -> Peer:
        return Peer(name, _rust(found(name), *first, log=log), why_not=missing(name, f"pip install {name}"))

    return [
        Peer("direct", _stub),
        Peer("nginx", _nginx, why_not=missing("nginx", "apt install nginx")),
        router("sglang-router", "launch"),
        router("smg", "launch"),
        router("vllm-router", log="warning"),
        Peer(
            "LiteLLM", _litellm(found("litellm"), metrics=True), why_not=missing("litellm", "pip install 'litellm[proxy]'")
        ),
        Peer(
            "LiteLLM, no metrics",
            _litellm(found("litellm"), metrics=False),
            why_not=missing("litellm", "pip install 'litellm[proxy]'"),
        ),
        Peer("workflow_composer", _ours(1), model="auto"),
        Peer("workflow_composer, 2 workers", _ours(2), model="auto"),
    ]
