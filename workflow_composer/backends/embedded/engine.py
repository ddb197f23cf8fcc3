"""mistral.rs in this process: one loaded checkpoint per directory, shared by its users.

How the engine behaves (mistral.rs 0.9.5, measured), and the consequences:

- A ``Runner`` must not be called by two threads at once ("Already borrowed"); but sending a streaming request returns
  within 0.1 ms, and its stream can be read by any thread, without the GIL. So every answer is a stream read by its own
  thread, sending happens under a lock, and the engine batches the requests in flight.
- Dropping a stream stops its generation with the next token; nothing else does. So a stop is a flag between tokens.
- With ``n_choices`` the usage counts one choice only, and a stream ends as soon as one of its choices does. So k samples
  are k streams. The engine's prefix cache is off: for a model of 5 million parameters it took two and a half times the
  memory and made eight samples of one prompt slower, not faster.
- Where ``generation_config.json`` says ``do_sample: false``, the most likely token is taken whatever the temperature,
  unless the request names a ``top_k``. So there, `Checkpoint.all_tokens` is sent with every temperature above zero.
- Loading holds the GIL and blocks the rest of the process meanwhile (0.2 s for 5 million parameters). A
  checkpoint of gigabytes belongs behind a server.
- A missing directory is looked up on Hugging Face's hub. So the files are checked first.
- Its threads, which all its models share, do not exist in a forked child, where every call would wait for ever. So a child
  refuses to use it once a model was loaded before the fork.
"""

from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from workflow_composer.errors import BadRequest, ContextOverflow, ModelNotFound, ServerFailed, ServerUnreachable, Unsupported
from workflow_composer.support.installing import install_command
from workflow_composer.types import Sample, TokenLogprob, Usage

MAX_SEQUENCES = 64

_EMBEDDING_ARCHITECTURES = {"Gemma3TextModel": "EmbeddingGemma", "Qwen3ForCausalLM": "Qwen3Embedding"}
_TOO_LONG = "sequence length is greater than"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The properties of a checkpoint's directory.

    ``embedding`` is mistral.rs's name of its embedding architecture, None for a text model. ``all_tokens`` is the ``top_k``
    that its settings require for sampling, None if they do not.
    """

    directory: Path
    architecture: str
    embedding: str | None
    vocabulary: int
    all_tokens: int | None

    @classmethod
    def read(cls, directory: Path) -> Checkpoint:
        """Inspect the files without loading the model. Raises `ModelNotFound`."""
        if not directory.is_dir():
            raise ModelNotFound(f"no checkpoint: {directory} is not a directory")
        missing = [name for name in ("config.json", "tokenizer.json") if not (directory / name).is_file()]
        if not any(directory.glob("*.safetensors")):
            missing.append("*.safetensors")
        if missing:
            raise ModelNotFound(f"incomplete checkpoint in {directory}: no {', no '.join(missing)}")
        try:
            config = json.loads((directory / "config.json").read_bytes())
            architecture = str(config["architectures"][0])
            vocabulary = int(config["vocab_size"])
            settings = directory / "generation_config.json"
            samples = json.loads(settings.read_bytes()).get("do_sample", True) if settings.is_file() else True
        except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
            raise ModelNotFound(f"damaged checkpoint in {directory}: {type(error).__name__}: {error}") from None
        # Qwen3-Embedding has the same architecture name as Qwen3; only the list of modules distinguishes them.
        pooled = (directory / "modules.json").is_file()
        embedding = _EMBEDDING_ARCHITECTURES.get(architecture) if pooled else None
        return cls(directory, architecture, embedding, vocabulary, None if samples else vocabulary)


@dataclass(frozen=True, slots=True)
class Piece:
    """One token of an answer, or its end with ``finish_reason`` and ``usage``."""

    text: str = ""
    logprob: TokenLogprob | None = None
    finish_reason: str | None = None
    usage: Usage | None = None


class Engine:
    """One loaded checkpoint. `generate` and `embed` block and run in threads of ``pool``; any number may run at once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pool = ThreadPoolExecutor(MAX_SEQUENCES, thread_name_prefix="embedded-engine")
        self._closed = threading.Event()
        self._loading = threading.Lock()
        self._sending = threading.Lock()
        self._checkpoint: Checkpoint | None = None
        self._runner: Any = None

    @property
    def loaded(self) -> bool:
        """Whether it can answer without loading first."""
        return self._runner is not None

    @property
    def checkpoint(self) -> Checkpoint:
        """The loaded checkpoint's properties."""
        assert self._checkpoint is not None
        return self._checkpoint

    def load(self) -> None:
        """Load the checkpoint unless it is loaded. Raises `ModelNotFound`, or `Unsupported` without mistral.rs."""
        with self._loading:
            if self._runner is None:
                checkpoint = Checkpoint.read(self.directory)
                self._runner = _runner(checkpoint)
                self._checkpoint = checkpoint

    def generate(self, fields: Mapping[str, Any], stop: threading.Event, *, alternatives: int) -> Iterator[Piece]:
        """Yield an answer token by token until it ends or ``stop`` is set.

        ``fields`` are those of ``mistralrs.ChatCompletionRequest``; ``alternatives`` is how many of the most likely tokens
        each log-probability lists. Raises `ContextOverflow`, `BadRequest` or `ServerFailed`.
        """
        from mistralrs import ChatCompletionRequest

        if stop.is_set() or self._closed.is_set():
            raise self._is_closed()
        try:
            request = ChatCompletionRequest(model="default", stream=True, **fields)
            with self._sending:
                chunks = self._runner.send_chat_completion_request(request)
            for chunk in chunks:
                if stop.is_set() or self._closed.is_set():
                    return
                yield _piece(chunk, alternatives)
        except Exception as error:  # noqa: BLE001  # the engine has no exception classes; `_error` maps them
            raise self._error(error) from None
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            raise ServerFailed(f"the embedded engine panicked: {error}") from None

    def sample(self, fields: Mapping[str, Any], stop: threading.Event, *, alternatives: int) -> tuple[Sample, Usage]:
        """Return one whole answer. Raises as `generate`; `ServerFailed` also for an incomplete answer."""
        parts, logprobs, end = [], [], None
        for piece in self.generate(fields, stop, alternatives=alternatives):
            parts.append(piece.text)
            if piece.logprob is not None:
                logprobs.append(piece.logprob)
            if piece.finish_reason is not None:
                end = piece
        if end is None:
            raise ServerFailed(f"the embedded engine stopped before the end of an answer ({self.directory.name})")
        sample = Sample("".join(parts), end.finish_reason, (), tuple(logprobs) if fields["logprobs"] else None)
        return sample, end.usage or Usage()

    def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        """Return one vector per text, and the tokens read. Raises `ContextOverflow`, `BadRequest` or `ServerFailed`."""
        from mistralrs import EmbeddingRequest

        try:
            with self._sending:
                vectors = self._runner.send_embedding_request(EmbeddingRequest(input=list(texts)))
                # A checkpoint's own start and end tokens count: the model reads them too.
                tokens = sum(len(self._runner.tokenize_text(text, True, None)) for text in texts)
        except Exception as error:  # noqa: BLE001  # as in generate
            raise self._error(error) from None
        return vectors, tokens

    def can_write(self, text: str) -> bool:
        """Whether the vocabulary has tokens for ``text``."""
        with self._sending:
            if self._closed.is_set():
                raise self._is_closed()
            tokens = self._runner.tokenize_text(text, False, None)
            return text in str(self._runner.detokenize_text(tokens, True))

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._closed.is_set()

    def stop(self) -> None:
        """Stop every generation at its next token, and reject new ones."""
        self._closed.set()

    def close(self) -> None:
        """Stop all generation, end the threads and free the memory. Blocks for about the time of one token."""
        self.stop()
        # Queued work runs and finds the engine closed; if it were cancelled, it would look like the caller's cancellation.
        self.pool.shutdown(wait=True)
        with self._sending:
            self._runner = None

    def _is_closed(self) -> ServerUnreachable:
        return ServerUnreachable(f"the embedded engine of {self.directory.name} is closed")

    def _error(self, error: Exception) -> Exception:
        message = str(error).partition("\n")[0]
        if _TOO_LONG in message:
            return ContextOverflow(f"{self.directory.name}: {message.partition(',')[0]}")
        if isinstance(error, (TypeError, OverflowError)) or "must be" in message:
            return BadRequest(f"{self.directory.name}: {message}")
        return ServerFailed(f"{self.directory.name}: {message}")


def _piece(chunk: Any, alternatives: int) -> Piece:
    choice = chunk.choices[0]
    usage = chunk.usage and Usage(chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
    found, logprob = choice.logprobs, None
    if found is not None:
        # ``token`` has lost the space before it; ``bytes`` has it. The alternatives' texts are without it.
        text = bytes(found.bytes).decode(errors="replace") if found.bytes else found.token
        top = tuple((str(other.bytes), other.logprob) for other in found.top_logprobs[:alternatives])
        logprob = TokenLogprob(text, found.logprob, top)
    return Piece(choice.delta.content or "", logprob, choice.finish_reason, usage)


def _runner(checkpoint: Checkpoint) -> Any:
    global _began  # noqa: PLW0603  # of this process
    if _began == "before a fork":
        raise Unsupported(
            "the embedded engine was loaded before this process was forked, and works only in its parent", hint=_FORKED
        )
    # Read once, when the library is imported; otherwise it logs to standard output.
    os.environ.setdefault("RUST_LOG", "off")
    try:
        import mistralrs
    except ImportError:
        raise Unsupported("the embedded engine (mistral.rs) is not installed", hint=install_command("embedded")) from None
    _began = "here"
    which: Any
    if checkpoint.embedding:
        architecture = getattr(mistralrs.EmbeddingArchitecture, checkpoint.embedding)
        which = mistralrs.Which.Embedding(str(checkpoint.directory), arch=architecture)
    else:
        which = mistralrs.Which.Plain(str(checkpoint.directory))  # float32 on a CPU, whatever the file holds
    try:
        return mistralrs.Runner(which=which, max_seqs=MAX_SEQUENCES, prefix_cache_n=0)
    except Exception as error:  # noqa: BLE001  # with any error of the loader, the checkpoint is unusable
        reason = str(error).partition("\n")[0]
        raise ModelNotFound(f"cannot load the checkpoint in {checkpoint.directory}: {reason}") from None


_registry: dict[Path, tuple[Engine, int]] = {}
_registry_lock = threading.Lock()
_began: Literal["no", "here", "before a fork"] = "no"
"""Whether the library has loaded a model in this process, or in its parent before the fork."""
_FORKED = 'start processes with multiprocessing.set_start_method("spawn"), or fork before the engine is first used'
_left_behind: list[object] = []


def _after_fork() -> None:
    global _registry, _registry_lock, _began  # noqa: PLW0603  # as above
    _left_behind.append(_registry)  # freeing a model would wait for its threads
    _registry, _registry_lock = {}, threading.Lock()
    _began = "no" if _began == "no" else "before a fork"


os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _stop_at_exit() -> None:
    """Let the interpreter exit during generation."""

    def stop_all() -> None:
        for engine, _ in tuple(_registry.values()):
            engine.stop()

    # A pool's threads are joined before `atexit` runs and before the main thread counts as ended, so nothing public comes
    # early enough; as daemons they would die within the engine's Rust code, which aborts the process.
    threading._register_atexit(stop_all)  # type: ignore[attr-defined]  # in CPython since 3.9


def acquire(directory: Path) -> Engine:
    """Return the shared engine of a directory, not loaded yet. Each caller must `release` it once."""
    _stop_at_exit()
    key = directory.resolve()
    with _registry_lock:
        engine, users = _registry.get(key) or (Engine(key), 0)
        _registry[key] = (engine, users + 1)
        return engine


def release(engine: Engine) -> None:
    """Release an engine; the last release closes it."""
    with _registry_lock:
        found, users = _registry[engine.directory]
        assert found is engine
        if users > 1:
            _registry[engine.directory] = (engine, users - 1)
            return
        del _registry[engine.directory]
    engine.close()
