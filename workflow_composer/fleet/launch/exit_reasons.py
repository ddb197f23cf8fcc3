"""Explain in one line why vLLM exited, from the end of its log."""

from __future__ import annotations

import re

from workflow_composer.config.redaction import scrub

_PREFIX = re.compile(r"^(?:\([^)]*pid=\d+\)\s*)?(?:(?:ERROR|CRITICAL|WARNING|INFO) \d\d-\d\d [\d:]+ (?:\[[^\]]*\] ?)+)?")
_RAISED = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?([A-Z]\w*(?:Error|Exception|Exit|NotFound|Interrupt)): (.+)$")
_SYMPTOMS = ("Engine core initialization failed", "See root cause above", "Failed core proc", "cancelled")

_NOT_FOUND = "the model was not found"
_DENIED = "access to the model is denied"
_REJECTED = "vLLM rejects an option"
_INCOMPLETE = "this vLLM installation is incomplete"
_LASTING = (_NOT_FOUND, _DENIED, _REJECTED, _INCOMPLETE)
"""What happens again at every start until a person changes something."""
_UNREACHABLE = re.compile(
    r"couldn't connect|connection (?:error|refused|reset)|max retries|name resolution|timed? ?out", re.IGNORECASE
)

_KNOWN: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile("|".join(patterns), re.IGNORECASE), what, remedy)
    for patterns, what, remedy in (
        (
            (
                r"(?:CUDA|HIP) out of memory",
                r"OutOfMemoryError",
                r"Free memory on device .* is less than",
                r"No available memory for",
            ),
            "not enough GPU memory",
            "stop other processes on the GPU, or lower gpu_memory_utilization or max_model_len",
        ),
        (
            (r"KV cache is needed", r"larger than the (?:available KV cache memory|maximum number of tokens)"),
            "the KV cache is too small for one request of max_model_len tokens",
            "lower max_model_len, or give the cache more memory (VLLM_CPU_KVCACHE_SPACE on a CPU)",
        ),
        (
            (r"\bMemoryError\b", r"Cannot allocate memory", r"DefaultCPUAllocator: can't allocate"),
            "not enough memory",
            "stop other processes, or lower max_model_len",
        ),
        (
            (r"No space left on device", r"Disk quota exceeded"),
            "the disk is full",
            "free space in the folders of models and caches",
        ),
        ((r"Address already in use",), "the port is in use", "stop the process that listens on it, or choose another port"),
        (
            (
                r"quantization method .* is not supported",
                r"(?:Invalid|Unknown) quantization",
                r"minimum capability",
                r"is (?:currently )?not supported (?:in|for quantization)",
            ),
            "this quantization is not supported on this hardware",
            "weights in another form; vLLM's documentation lists what each GPU can run",
        ),
        (
            (
                r"Repository ?Not ?Found",
                r"is not a local folder and is not a valid model identifier",
                r"Can't load (?:the )?(?:config|model)",
                r"does not appear to have a file named",
                r"Invalid repository ID",
                r"Cannot find any model weights",
                r"EntryNotFound",
                r"offline mode is enabled",
            ),
            _NOT_FOUND,
            "check `model`; the path of a folder starts with ./ or /. `fleet fetch` downloads a model",
        ),
        (
            (r"couldn't connect to .*huggingface",),
            "the model hub cannot be reached",
            "`fleet fetch` downloads the model on a machine with network access",
        ),
        (
            (r"GatedRepo", r"40[13] Client Error"),
            _DENIED,
            "set HF_TOKEN to a token that may download it",
        ),
        (
            (r"unrecognized arguments", r"error: argument "),
            _REJECTED,
            "check `arguments` and the options after `--`",
        ),
        ((r"No module named",), _INCOMPLETE, "reinstall vLLM, or set another Python"),
    )
)


def reason(tail: str, code: int) -> str:
    """Return why vLLM exited: from the end of its log, else from its exit code (128 + signal)."""
    lines = [_PREFIX.sub("", line).strip() for line in tail.splitlines()]
    raised = [line for line in lines if _RAISED.match(line) and not any(word in line for word in _SYMPTOMS)]
    usage = [line for line in lines if "error: " in line]
    for candidates in (raised, usage, lines):
        for pattern, what, remedy in _KNOWN:
            if found := next((line for line in candidates if pattern.search(line)), None):
                return f"{what}: {_short(found)}; {remedy}"
    if code == 137:
        return "killed by SIGKILL: by a user, or by the system for lack of memory"
    if raised:
        return _short(raised[-1])
    if code > 128:
        return f"terminated by signal {code - 128}"
    last = next((line for line in reversed(lines) if line), "")
    return f"exit code {code}" + (f": {_short(last)}" if last else "")


def is_lasting(tail: str, code: int) -> bool:
    """Whether vLLM would exit again in the same way. A model hub that did not answer may do so at the next start."""
    known = reason(tail, code).startswith(_LASTING)
    return known and not (reason(tail, code).startswith(_NOT_FOUND) and _UNREACHABLE.search(tail) is not None)


def last_line(tail: str) -> str:
    """The last line of a log, short, for a progress display."""
    lines = [_PREFIX.sub("", line).strip() for line in tail[-4000:].splitlines()]
    return _short(next((line for line in reversed(lines) if line), ""))


def _short(line: str) -> str:
    """The line without secrets and control characters, at most 240 characters."""
    text = "".join(character for character in scrub(line) if character.isprintable())
    return text if len(text) <= 240 else f"{text[:237]}..."
