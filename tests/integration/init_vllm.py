"""Run by `test_init_vllm` in a network of its own: ``init`` and one question beside real vLLM servers, one of which embeds.

Usage: python -m tests.integration.init_vllm DIRECTORY (in fresh namespaces). Prints what each command said, as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.integration.vllm_server import VLLMServer, vllm_python
from tests.paths import CHECKPOINTS, ROOT


def command(folder: Path, *arguments: str) -> dict[str, object]:
    """Run a command of the program to its end."""
    environ = {name: os.environ[name] for name in ("PATH", "COVERAGE_PROCESS_START") if name in os.environ}
    environ |= {"HOME": str(folder), "XDG_STATE_HOME": str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "workflow_composer", *arguments],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return {"code": done.returncode, "out": done.stdout, "err": done.stderr}


def main(folder: Path) -> dict[str, object]:
    """The embedding model is on the first port of vLLM, the one that chats on the second, under two names."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    script = ROOT / "tests" / "integration" / "tiny_embeddings.py"
    subprocess.run([vllm_python() or "python", script, folder / "tiny"], check=True, capture_output=True)
    pooling = ("--runner=pooling", "--max-model-len=128")
    embeds = VLLMServer(folder / "tiny", 8000, folder / "embeds.log", name="words", options=pooling)
    chats = VLLMServer(
        CHECKPOINTS / "large", 8001, folder / "chats.log", name="numbers", options=["--served-model-name", "numbers", "sums"]
    )
    try:
        embeds.start()
        report: dict[str, object] = {"embeds": command(folder, "init", "--yes", "--output", "none")}
        chats.start()
        report["init"] = command(folder, "init", "--yes")
        report["generate"] = command(folder, "generate", "What is 17 + 25?")
        report["doctor"] = command(folder, "doctor", "-s", "local")
    finally:
        for server in (embeds, chats):
            server.kill()
    profile = folder / "config" / "strategies" / "local.yaml"
    return report | {"profile": profile.read_text() if profile.exists() else ""}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
