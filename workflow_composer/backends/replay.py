"""Replays recorded answers of real models, for benchmarks and tests without the models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_composer.backends.recordings import Recorded, Recording, open_recording
from workflow_composer.errors import BadRequest, ModelNotFound, ServerUnreachable, Unsupported
from workflow_composer.types import Chunk, Completion, Embeddings, EndpointStatus, ModelCall, Sample, Usage, texts

if TYPE_CHECKING:
    from workflow_composer.backends.base import BackendContext
    from workflow_composer.strategy import ModelSpec

_PIECES = 4
_REFUSED = ("tools", "tool_choice", "response_format")


class ReplayBackend:
    """One model of a file of recorded answers; see ``docs/recordings.md`` for the format.

    ``path`` is the file, ``model`` selects the model in it (default: the entry's name). Answers are looked up by the text
    of the last user message: ``samples`` recorded answers in their order, starting with number ``first_sample``, always the
    same. The settings of the recording (temperature, length, stop strings, seed) apply; those of the call are ignored.
    Log-probabilities are returned if they were recorded; otherwise a request for them raises `Unsupported`.
    """

    local = True

    def __init__(self, spec: ModelSpec, context: BackendContext) -> None:
        self.name = spec.name
        self._model = spec.model or spec.name
        self._path = Path(spec.path or "")
        self._recording: Recording | None = None
        self._closed = False

    async def complete(self, call: ModelCall) -> Completion:
        """Return ``call.samples`` recorded answers, from number ``call.first_sample`` on."""
        return self._completion(await self._opened(), call, call.samples)

    async def stream(self, call: ModelCall) -> AsyncGenerator[Chunk, None]:
        """Yield the first recorded answer in a few pieces."""
        completion = self._completion(await self._opened(), call, 1)
        (sample,) = completion.samples
        size = max(1, -(-len(sample.text) // _PIECES))
        for start in range(0, len(sample.text), size):
            yield Chunk(sample.text[start : start + size], model=completion.model)
        yield Chunk(
            finish_reason=sample.finish_reason,
            logprobs=sample.logprobs or (),
            usage=completion.usage,
            model=completion.model,
        )

    async def embed(self, texts: Sequence[str], *, timeout: float, dimensions: int | None = None) -> Embeddings:
        """Raise `Unsupported`: embeddings are not recorded."""
        raise Unsupported(f"{self.name}: recordings have no embeddings", hint="route embeddings to another model")

    async def health(self, *, timeout: float) -> EndpointStatus:
        """Return whether the file exists. Counts answers only if it is already open."""
        url = f"replay:{self._path.name}"
        if not await asyncio.to_thread(self._path.is_file):
            return EndpointStatus(self.name, url, healthy=False, detail=f"no file {self._path}")
        count = None if self._recording is None else self._recording.models.get(self._model, 0)
        detail = "loads on first use" if count is None else f"{count} recorded answers"
        return EndpointStatus(self.name, url, count != 0, (self._model,), 0.0, detail)

    async def close(self) -> None:
        """Close the recording."""
        self._closed, self._recording = True, None

    async def _opened(self) -> Recording:
        if self._closed:
            raise ServerUnreachable(f"{self.name}: the recording is closed")
        if self._recording is None:
            self._recording = await asyncio.to_thread(open_recording, self._path)
        return self._recording

    def _completion(self, recording: Recording, call: ModelCall, count: int) -> Completion:
        request = call.request
        refused = [name for name in _REFUSED if getattr(request, name) is not None] + sorted(request.extra)
        if refused:
            raise Unsupported(f"{self.name}: recordings do not support {', '.join(refused)}", hint="leave it out")
        question = next((" ".join(texts(m)) for m in reversed(request.messages) if m.get("role") == "user"), None)
        if question is None:
            raise BadRequest(f"{self.name}: no user message to look up")
        try:
            answers = recording.answers(self._model, question, call.first_sample + count)[call.first_sample :]
        except (OSError, ValueError) as error:  # the file was truncated or replaced meanwhile
            raise ModelNotFound(f"{self._path}: {error}") from None
        wanted = request.top_logprobs if request.top_logprobs is not None else (0 if request.logprobs else None)
        samples = tuple(self._sample(answer, wanted) for answer in answers)
        usage = Usage(answers[0].prompt_tokens, sum(answer.tokens for answer in answers))
        costs = [answer.cost for answer in answers if answer.cost is not None]
        return Completion(samples, usage, self._model, sum(costs) if len(costs) == len(answers) else None)

    def _sample(self, answer: Recorded, alternatives: int | None) -> Sample:
        if alternatives is None:
            return Sample(answer.answer, "stop", score=answer.score)
        if answer.logprobs is None:
            raise Unsupported(f"{self.name}: no log-probabilities were recorded", hint="record them, or leave logprobs out")
        tokens = tuple(type(token)(token.token, token.logprob, token.top[:alternatives]) for token in answer.logprobs)
        return Sample(answer.answer, "stop", logprobs=tokens, score=answer.score)
