"""vLLM options that users may not add: those set by keys of the fleet file, and unsupported ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

OWNED = {
    "--api-key": "api_key_env, since every user of the machine can read command lines",
    "--convert": "task",
    "--dtype": "dtype",
    "--enable-prefix-caching": "prefix_caching",
    "--gpu-memory-utilization": "gpu_memory_utilization",
    "--device-memory-utilization": "gpu_memory_utilization",
    "--host": "listen",
    "--max-model-len": "max_model_len",
    "--model": "model",
    "--model-tag": "model",
    "--no-enable-prefix-caching": "prefix_caching",
    "--port": "port",
    "--quantization": "quantization",
    "-q": "quantization",
    "--runner": "task",
    "--served-model-name": "served_name",
    "--task": "task",
    "--tensor-parallel-size": "gpus",
    "-tp": "gpus",
}
"""vLLM option -> key of the fleet file that sets it."""

REFUSED = {
    "--headless": "fleet servers need an API",
    "--ssl-certfile": "fleet servers speak plain HTTP in their own network",
    "--ssl-keyfile": "fleet servers speak plain HTTP in their own network",
    "--uds": "fleet servers listen on a TCP port",
}
"""vLLM option -> why fleet servers do not support it."""


def faults(arguments: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Yield the invalid ones of additional options: index, what was found, what to do instead.

    >>> list(faults(["--max-num-seqs=8", "--port", "9"]))
    [(1, "the option '--port'", 'use the fleet-file key port')]
    """
    for index, argument in enumerate(arguments):
        # vLLM accepts underscores for dashes, and nested values such as --config.key=1.
        name = argument.partition("=")[0]
        name = name.replace("_", "-") if name.startswith("--") else name
        if name in OWNED:
            yield index, f"the option {name!r}", f"use the fleet-file key {OWNED[name]}"
        elif name in REFUSED:
            yield index, f"the option {name!r}", REFUSED[name]
