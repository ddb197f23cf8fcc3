"""A real vLLM server on the CPU, for tests: started in a process group of its own, waited for, killed, started again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "WORKFLOW_COMPOSER_VLLM_PYTHON"
"""A Python that has vLLM: its build for the CPU lives apart, since it brings a torch of its own."""

START_LIMIT = 300.0


def vllm_python() -> str | None:
    """The interpreter to start servers with, where one is named and there."""
    path = os.environ.get(VARIABLE)
    return path if path and Path(path).exists() else None


class VLLMServer:
    """One server for one checkpoint on one port; ``options`` are vLLM's, and go before those here.

    `kill` ends it at once, as a lost node would.
    """

    def __init__(self, checkpoint: Path, port: int, log: Path, name: str = "small", options: Sequence[str] = ()) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._command = [
            vllm_python() or "python",
            "-m",
            "vllm.entrypoints.openai.api_server",
            f"--model={checkpoint}",
            f"--served-model-name={name}",
            "--host=127.0.0.1",
            f"--port={port}",
            "--dtype=float32",
            "--max-model-len=512",
            "--max-num-seqs=16",
            "--enforce-eager",
            *options,
        ]

    def start(self) -> None:
        """Start the server and wait until it is healthy. Raises with the end of its log where it ends or takes too long."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start the server and return at once, so that others can be started beside it."""
        environ = os.environ | {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else two servers share the first core, and one of them starves
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "PYTHONPATH": "",
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=environ, start_new_session=True, cwd=self._log.parent
            )

    def wait(self) -> None:
        """Wait until the server is healthy. Raises as `start`."""
        assert self._process is not None, "the server is not running"
        ends = time.monotonic() + START_LIMIT
        while not self._healthy():
            if self._process.poll() is not None or time.monotonic() > ends:
                self.kill()
                raise RuntimeError("the vLLM server did not start:\n" + self._log.read_text(errors="replace")[-3000:])
            time.sleep(0.5)  # a poll for health, not a guess at how long the start takes

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def running_requests(self) -> float:
        """How many requests the server is generating for, by its own metrics."""
        return self.metric("vllm:num_requests_running")

    def metric(self, name: str, label: str = "") -> float:
        """The sum of a metric of the server's over the lines that have the label; 0 where it is not there yet."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{") and label in line)

    def finished_requests(self, reason: str) -> float:
        """How many answers the server has finished for this reason (``stop``, ``length``), by its own metrics."""
        return self.metric("vllm:request_success_total", f'finished_reason="{reason}"')

    def freeze(self) -> None:
        """Stop the server where it stands (SIGSTOP to its group): connections stay open, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen server go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "the server is not running"
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """End the server and its engine process at once (SIGKILL to their group)."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
