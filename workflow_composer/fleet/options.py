"""vLLM options that a person may add, and those that a key of the fleet file sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

OWNED = {
    "--api-key": "api_key_env, since a command line is seen by every user of the machine",
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
"""Option of vLLM -> the key that sets it."""

REFUSED = {
    "--headless": "a server without an API cannot be found",
    "--ssl-certfile": "servers of a fleet speak plain HTTP to their own network",
    "--ssl-keyfile": "servers of a fleet speak plain HTTP to their own network",
    "--uds": "a server of a fleet listens on its port",
}
"""Option of vLLM -> why no server of a fleet can have it."""


def faults(arguments: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """What is wrong with further options: index, what was found, what to do instead.

    >>> list(faults(["--max-num-seqs=8", "--port", "9"]))
    [(1, "the option '--port'", 'set the key port')]
    """
    for index, argument in enumerate(arguments):
        # vLLM takes underscores for dashes, and nested values such as --config.key=1.
        name = argument.partition("=")[0]
        name = name.replace("_", "-") if name.startswith("--") else name
        if name in OWNED:
            yield index, f"the option {name!r}", f"set the key {OWNED[name]}"
        elif name in REFUSED:
            yield index, f"the option {name!r}", REFUSED[name]
