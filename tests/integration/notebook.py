"""Runs cells in a real Jupyter kernel: ``python notebook.py < CELLS.json > OUTPUTS.json``, in the working directory.

A process of its own, because the kernel's client brings threads, loops and warnings of its own. The kernel is reached over
sockets in a folder, not over ports.
"""

from __future__ import annotations

import json
import sys
import tempfile


def outputs(cells: list[str]) -> list[str]:
    """What each cell printed, and its value; raises if one fails."""
    import nbformat
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    with tempfile.TemporaryDirectory() as folder:
        manager = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{folder}/kernel")
        NotebookClient(notebook, km=manager, timeout=400).execute()
    return ["".join(_text(output) for output in cell.outputs) for cell in notebook.cells]


def _text(output: dict[str, object]) -> str:
    if output["output_type"] == "stream":
        return str(output["text"]) if output["name"] == "stdout" else ""
    data = output.get("data")
    return str(data["text/plain"]) if isinstance(data, dict) else ""


if __name__ == "__main__":
    json.dump(outputs(json.load(sys.stdin)), sys.stdout)
