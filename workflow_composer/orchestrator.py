"""ModelOrchestrator: the single entry point for all requests. Start reading here.

It composes the parts and makes no decisions itself. The flow of a request::

    active  = self._active               one read of one immutable snapshot (profile, routers, endpoints)
    plan    = active.plan(request)       the first router that has a plan
    outcome = active.executor.run(plan)  fallback, escalation, retries, deadlines
    metric  = one line                   the decision, the calls and the cost; then plugins are notified

A strategy switch publishes a complete new snapshot with one assignment; the old one closes after its last request.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from workflow_composer.backends.base import Passed, Upload
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.execution.call import Outcome, Trace
from workflow_composer.execution.readers import DataReader, may_read
from workflow_composer.execution.streaming import StreamRun
from workflow_composer.metrics.sink import MetricsSink, default_sink, gathered
from workflow_composer.plan import Plan
from workflow_composer.plugins.host import PluginHost, PluginRegistry, plugin_host
from workflow_composer.plugins.sources import PluginSource
from workflow_composer.routers.base import Router
from workflow_composer.runtime.active_strategy import ActiveStrategy
from workflow_composer.runtime.decision_log import LogStream, Narrator, PluginObserver, debug_wanted, metric_of
from workflow_composer.runtime.resources import (
    CLOUD_SECONDS,
    OrchestratorStatus,
    ResourceDetector,
    detect_strategy,
    served_models,
    unprobed,
)
from workflow_composer.runtime.snapshot import Snapshot, build
from workflow_composer.runtime.streams import ResponseStream, SyncResponseStream, UnderWay, response_of
from workflow_composer.support.loop_thread import LoopThread
from workflow_composer.support.places import STRATEGY_VARIABLE
from workflow_composer.types import Chunk, Embeddings, LLMRequest, LLMResponse, Message

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from workflow_composer.batch.run.run_batch import BatchRun, RowResult
    from workflow_composer.batch.run.tally import Tally
    from workflow_composer.support.typed_fields import (
        BatchFields,
        EmbeddingFields,
        EmbedFields,
        ManyFields,
        RequestFields,
        RowFields,
        Schema,
        WorkflowFields,
    )
    from workflow_composer.workflows.from_python import AnyWorkflow, TableOrRows, WorkflowResult

    V = TypeVar("V", default=Any)

Prompt = str | Sequence[Message] | LLMRequest

_CLOSING = 10.0
"""Seconds for an interrupted batch to close its journal."""

__all__ = ["ModelOrchestrator", "OrchestratorStatus", "Prompt"]


class ModelOrchestrator(ActiveStrategy):
    """Sends each request to the cheapest model that is good enough, under the active strategy.

    Args:
        strategy: a profile's name, path or `StrategyConfig`. None: the environment's ``BIOPIPELINES_STRATEGY``, else
            detection (healthy local servers, else the embedded engine; never the cloud), which may take two seconds.
        plugins: a `PluginHost`; None: the built-in plugin and every installed plugin.
        metrics: destination, or several, of the metric line of each request; None: the file ``routing_metrics.jsonl`` in
            the profile's folder ``logs``, or by default in the user's state folder.
        environ: environment variables; None: the process's own.
        log: destination of decisions (with debugging on) and of reports about broken plugins; None: structlog's or
            `logging`'s logger ``workflow_composer``, whichever the program has configured, else standard error.

    Raises `ConfigError` for an invalid profile, `NoStrategy` if none is named and none can be detected.

    The asynchronous methods (``agenerate``, ``astream``, ...) are the implementation; the others run them on the
    orchestrator's own thread and wait, also in a notebook, whose event loop is blocked meanwhile. Both kinds may be used
    from any thread or event loop at the same time; only code on the orchestrator's own loop (such as a router or a hook)
    must await. Close it, or use it as a context manager.

    >>> with ModelOrchestrator("development") as orchestrator:  # doctest: +SKIP
    ...     orchestrator.generate("What is 30 + 12?").text
    '30 + 12 = 42. #### 42'
    """

    def __init__(
        self,
        strategy: str | Path | StrategyConfig | None = None,
        *,
        plugins: PluginHost | None = None,
        metrics: MetricsSink | Sequence[MetricsSink] | None = None,
        environ: Mapping[str, str] | None = None,
        log: LogStream | None = None,
    ) -> None:
        self._environ = os.environ if environ is None else environ
        self._narrator = Narrator(log)
        self._debug = debug_wanted(self._environ)
        self._thread = LoopThread()
        super().__init__()
        self.plugins = plugins or plugin_host(on_broken=self._narrator.broken_plugin, environ=self._environ)
        config, self._chosen_by = self._choose(strategy)
        sinks = default_sink(self._environ, config.logs) if metrics is None else metrics
        self._sinks = tuple(sinks) if isinstance(sinks, Sequence) else (sinks,)
        self._begin(self._build(config, self.plugins.registry))

    def __repr__(self) -> str:
        return f"<ModelOrchestrator: {self.strategy}, models {', '.join(self._active.endpoints)}{', closed' * self._closed}>"

    @property
    def strategy(self) -> str:
        """The active profile's name."""
        return self._active.config.profile_name

    @property
    def config(self) -> StrategyConfig:
        """The active profile."""
        return self._active.config

    @property
    def routers(self) -> Mapping[str, Router]:
        """The active profile's routers by name, in their order."""
        return {router.name: router for router in self._active.routers}

    def breakers(self) -> dict[str, str]:
        """The state of each model's circuit breaker: closed, open or half-open."""
        return {name: endpoint.breaker.state for name, endpoint in self._active.endpoints.items()}

    def add_metrics(self, sink: MetricsSink) -> None:
        """Write the metric line of each later request to one more destination."""
        self._sinks = (*self._sinks, sink)

    def gathering(self) -> AbstractContextManager[Callable[[], None]]:
        """Write the metric lines of a run's requests together; the value writes those that wait."""
        return gathered(self._sinks)

    # ----------------------------------------------------------------------------------------------------- requests

    async def agenerate(
        self, prompt: Prompt, *, schema: Schema[V] | None = None, **fields: Unpack[RequestFields]
    ) -> LLMResponse[V]:
        """Answer a prompt, messages or `LLMRequest`; ``fields`` are those of `LLMRequest`, and ``system``.

        ``schema`` is what the answer must be: a pydantic model or another type, a JSON Schema, or a form (`output_form`).
        The response's ``value`` is then the answer as data, of a pydantic model an instance; None if it has another form.
        Raises `RoutingError` if no router has a plan, `AllCandidatesFailed` (with every attempt) if no model answered, and
        unchanged any `ModelError` for which no other model is tried.
        """
        active = self._active.acquire() or self._acquire()
        try:
            request = self._request(active, prompt, fields, schema)
            started, trace, plan = time.perf_counter(), Trace(request.timeout, request.most_calls), None
            try:
                plan = active.plan(request)
                outcome = await active.executor.run(plan, request, trace)
            except BaseException as error:
                self._note(active, request, trace, started, plan=plan, error=error)
                raise
            return self._finish(active, request, plan, outcome, trace, started)
        finally:
            await active.release()

    async def _execute(self, active: Snapshot, plan: Plan, request: LLMRequest) -> LLMResponse:
        """Run a router's own plan under that router's profile, which may already be retired."""
        started, trace = time.perf_counter(), Trace(request.timeout, request.most_calls)
        try:
            outcome = await active.executor.run(plan, request, trace)
        except BaseException as error:
            self._note(active, request, trace, started, plan=plan, error=error)
            raise
        return self._finish(active, request, plan, outcome, trace, started)

    def astream(
        self, prompt: Prompt, *, schema: Schema[Any] | None = None, **fields: Unpack[RequestFields]
    ) -> ResponseStream:
        """Stream an answer: ``async for chunk in (stream := orchestrator.astream(...)): ...``.

        ``stream.response`` is the `LLMResponse` after the last chunk. ``await stream.aclose()``, or ``async with``, stops
        the work at the server. Before the first chunk, raises as `agenerate`; after it, `StreamInterrupted`.
        """
        return ResponseStream(lambda stream: self._chunks(stream, prompt, fields, schema))

    async def _chunks(
        self, stream: ResponseStream, prompt: Prompt, fields: Mapping[str, Any], schema: Schema[Any] | None
    ) -> AsyncGenerator[Chunk, None]:
        active = self._active.acquire() or self._acquire()
        try:
            request = self._request(active, prompt, fields, schema)
            started = time.perf_counter()
            trace = Trace(request.timeout, request.most_calls)
            plan: Plan | None = None
            try:
                plan = active.plan(request)
                if request.relay is not None:
                    request.relay.keep = plan.router in active.listeners or "after_answer" in active.plugins.hooks
                run = StreamRun(active.executor, plan, request, trace)
                stream.follow(UnderWay(active.config.profile_name, plan, run, trace))
                async with aclosing(run.chunks()) as chunks:
                    async for chunk in chunks:
                        yield chunk
                assert run.outcome is not None  # a stream that ends without an error has one
            except BaseException as error:
                self._note(active, request, trace, started, plan=plan, error=error)
                raise
            stream.response = self._finish(active, request, plan, run.outcome, trace, started)
        finally:
            await active.release()

    async def aembed(
        self,
        texts: Sequence[str | Sequence[int]],
        *,
        task_type: str = "embeddings",
        dimensions: int | None = None,
        **fields: Unpack[EmbeddingFields],
    ) -> Embeddings:
        """Return one vector per text from the first model of the plan, without fallback: vectors of two models cannot
        be compared. A text may be a list of tokens, for servers that take them. Raises as `agenerate`.
        """
        active = self._active.acquire() or self._acquire()
        try:
            told = "\n".join(text if isinstance(text, str) else " ".join(map(str, text)) for text in texts)
            request = self._request(active, told, {"kind": "embeddings", "task_type": task_type, **fields})
            started = time.perf_counter()
            trace = Trace(request.timeout, request.most_calls)
            plan: Plan | None = None
            try:
                plan = active.plan(request)
                if request.purse is not None:
                    request = await active.executor.paid(plan, request, trace)
                found = await active.executor.embed(
                    plan.tiers[0].members[0].candidates[0], texts, request, trace, dimensions
                )
            except BaseException as error:
                self._note(active, request, trace, started, plan=plan, error=error)
                raise
            self._note(active, request, trace, started, plan=plan, model=found.model)
            return found
        finally:
            await active.release()

    async def apass(self, path: str, body: Mapping[str, Any] | Upload, **fields: Unpack[RequestFields]) -> Passed:
        """Pass a request (``/v1/rerank``, ``//tokenize``: two slashes mean beside the API) on to the server of the plan's
        first model. Raises as `agenerate`.
        """
        active = self._active.acquire() or self._acquire()
        try:
            said = body.text if isinstance(body, Upload) else json.dumps(body)
            request = self._request(active, said, {"kind": "other", **fields})
            started, trace, plan = time.perf_counter(), Trace(request.timeout, request.most_calls), None
            try:
                plan = active.plan(request)
                if request.purse is not None:
                    request = await active.executor.paid(plan, request, trace)
                candidate = plan.tiers[0].members[0].candidates[0]
                found = await active.executor.pass_on(candidate, path, body, request, trace)
            except BaseException as error:
                self._note(active, request, trace, started, plan=plan, error=error)
                raise
            self._note(active, request, trace, started, plan=plan, model=found.model)
            return found
        finally:
            await active.release()

    async def arun_batch(
        self,
        rows: Iterable[str | Mapping[str, Any] | LLMRequest],
        *,
        journal: str | Path,
        schema: Schema[Any] | None = None,
        budget: Mapping[str, float] | None = None,
        concurrency: int | None = None,
        retries: int = 1,
        progress: Callable[[Tally], None] | None = None,
        **fields: Unpack[RowFields],
    ) -> BatchRun:
        """Answer many rows and write each answer to the ``journal``; a later run with the same journal resumes there.

        A row is a string, an `LLMRequest`, or a mapping with ``prompt`` (or ``question``, or ``messages``) and optional
        ``id``, ``task_type``, ``model``, ``context``, and ``answer``, the correct answer for grading. ``rows`` may be an
        iterator, which is read as rows are sent. ``budget`` is ``{"row": dollars, "run": dollars}``: the limits of one row
        and of the run including earlier runs of the journal. ``concurrency`` is the number of concurrent rows; None: adapt
        it to the throughput. Rows that failed because no server was available are retried ``retries`` times. ``progress``
        is called after each row. ``fields`` are those of `LLMRequest` for all rows, and ``system``.

        A failed row becomes a result with an error, and a later run retries it. Raises `InputError` if rows are invalid, or
        if the journal belongs to another run or is in use, and any exception of ``progress``. However the run ends, the
        journal has all answers.
        """
        from workflow_composer.batch.run.run_batch import run_rows

        return await run_rows(
            self.agenerate,
            rows,
            config=self.config,
            environ=self._environ,
            journal=journal,
            budget=budget,
            concurrency=concurrency,
            retries=retries,
            progress=progress,
            fields=self._formed(fields, schema),
        )

    async def agenerate_many(
        self,
        prompts: Iterable[Prompt | Mapping[str, Any]],
        *,
        schema: Schema[V] | None = None,
        **options: Unpack[ManyFields],
    ) -> list[RowResult[V]]:
        """Answer many prompts at once; return one result per prompt, in their order.

        A prompt that failed has an ``error`` in its result, and so has one that the run budget no longer covered. With a
        ``journal`` (a path), each answer is written there, and a later call with the same journal asks only for what is
        missing; without one no file is written. ``progress``: True shows it on standard error, a function is called after
        each answer. ``budget``, ``concurrency``, ``retries``, the other ``options`` and what is raised are as in
        `arun_batch`; ``schema`` and a result's ``value`` as in `agenerate`.
        """
        from workflow_composer.batch.run.run_batch import run_many

        fields = self._formed(options, schema)
        return await run_many(self.agenerate, prompts, config=self.config, environ=self._environ, **fields)

    async def arun_workflow(
        self, workflow: AnyWorkflow, rows: TableOrRows, **options: Unpack[WorkflowFields]
    ) -> WorkflowResult:
        """Run a workflow over rows; see `workflow_composer.workflows.from_python.run_workflow`."""
        from workflow_composer.workflows.from_python import run_workflow

        return await run_workflow(self, workflow, rows, served=served_models, **options)

    def plan(self, prompt: Prompt, *, schema: Schema[Any] | None = None, **fields: Unpack[RequestFields]) -> Plan:
        """Return the plan for a request; sends nothing."""
        return self.prepare(prompt, schema=schema, **fields)[1]

    def prepare(
        self, prompt: Prompt, *, schema: Schema[Any] | None = None, **fields: Unpack[RequestFields]
    ) -> tuple[LLMRequest, Plan]:
        """Return a request with its context, as routers and models would see it, and its plan; sends nothing."""
        active = self._active
        request = self._request(active, prompt, fields, schema)
        return request, active.plan(request)

    # ----------------------------------------------------------------------------------------------------- strategies

    async def aswitch_strategy(self, strategy: str | Path | StrategyConfig) -> None:
        """Switch to another profile. Raises `ConfigError` if it is invalid; the old profile then stays active.

        Running requests finish under the old profile; its connections close with the last of them.
        """
        await self.apublish(self.prepare_strategy(strategy))

    def prepare_strategy(
        self, strategy: str | Path | StrategyConfig, *, plugins: Iterable[PluginSource] | None = None
    ) -> Snapshot:
        """Build and check another profile; nothing changes until `apublish`. Raises `ConfigError`.

        ``plugins`` replace those that were found before; None: they stay. Call ``retire`` on a snapshot that is not
        published.
        """
        if plugins is not None and (offered := self.plugins.generation(plugins)) is not self.plugins.registry:
            new = self._build(self._load(strategy), offered)
            new.with_plugins = True
            return self._tried(new)
        return self._build(self._load(strategy), self.plugins.registry)

    async def astatus(self, *, probe: bool = True, probe_cloud: bool = False) -> OrchestratorStatus:
        """Return what is active and, with ``probe``, what is reachable (within about two seconds; failures do not raise).

        ``probe_cloud`` asks the cloud servers for their models, with the key and without a prompt; a profile without the
        cloud has none. Routers use the result of the probe from then on.
        """
        active = self._active.acquire() or self._acquire()
        try:
            if probe:
                detector = ResourceDetector(active.config, environ=self._environ, egress=active.egress)
                active.resources = await detector.adetect()
            if probe_cloud:
                active.resources = replace(active.resources, clouds=await active.cloud_health(CLOUD_SECONDS))
            return OrchestratorStatus(
                strategy=active.config.profile_name,
                source=str(active.config.source or ""),
                chosen_by=self._chosen_by,
                allow_cloud=active.config.allow_cloud,
                debug=self._debug or active.config.debug_routing,
                resources=active.resources,
                routers=tuple(spec.name for spec in active.config.routers),
                models=tuple(active.endpoints),
                in_process=tuple(name for name, spec in active.config.models.items() if spec.backend == "embedded"),
                broken_plugins=tuple(f"{info.name}: {info.detail}" for info in self.plugins.broken),
            )
        finally:
            await active.release()

    async def aclose(self) -> None:
        """Close every backend after its last request, then the metrics. Requests that begin later are refused."""
        self._refuse()
        await self._active.retire()
        for sink in self._sinks:
            sink.close()

    # ---------------------------------------------------------------------------------------- the synchronous facade

    def generate(
        self, prompt: Prompt, *, schema: Schema[V] | None = None, **fields: Unpack[RequestFields]
    ) -> LLMResponse[V]:
        """Synchronous `agenerate`."""
        return self._thread.run(self.agenerate(prompt, schema=schema, **fields))

    def generate_many(
        self,
        prompts: Iterable[Prompt | Mapping[str, Any]],
        *,
        schema: Schema[V] | None = None,
        **options: Unpack[ManyFields],
    ) -> list[RowResult[V]]:
        """Synchronous `agenerate_many`; a function for ``progress`` is called on the orchestrator's own thread."""
        return self._thread.run(self.agenerate_many(prompts, schema=schema, **options), patience=_CLOSING)

    def stream(
        self, prompt: Prompt, *, schema: Schema[Any] | None = None, **fields: Unpack[RequestFields]
    ) -> SyncResponseStream:
        """Synchronous `astream`: ``for chunk in (stream := orchestrator.stream(...)): ...``."""
        return SyncResponseStream(self._thread, self.astream(prompt, schema=schema, **fields))

    def embed(self, texts: Sequence[str], **options: Unpack[EmbedFields]) -> Embeddings:
        """Synchronous `aembed`."""
        return self._thread.run(self.aembed(texts, **options))

    def run_batch(self, rows: Iterable[str | Mapping[str, Any] | LLMRequest], **options: Unpack[BatchFields]) -> BatchRun:
        """Synchronous `arun_batch`; ``progress`` is called on the orchestrator's own thread.

        Ctrl-C cancels running calls and closes the journal, so that the same call resumes there.
        """
        return self._thread.run(self.arun_batch(rows, **options), patience=_CLOSING)

    def run_workflow(self, workflow: AnyWorkflow, rows: TableOrRows, **options: Unpack[WorkflowFields]) -> WorkflowResult:
        """Synchronous `arun_workflow`; Ctrl-C and ``progress`` as in `run_batch`."""
        return self._thread.run(self.arun_workflow(workflow, rows, **options), patience=_CLOSING)

    def switch_strategy(self, strategy: str | Path | StrategyConfig) -> None:
        """Synchronous `aswitch_strategy`."""
        self._thread.run(self.aswitch_strategy(strategy))

    def status(self, *, probe: bool = True, probe_cloud: bool = False) -> OrchestratorStatus:
        """Synchronous `astatus`."""
        return self._thread.run(self.astatus(probe=probe, probe_cloud=probe_cloud))

    def close(self) -> None:
        """Synchronous `aclose`; also ends the orchestrator's thread.

        First waits for the synchronous calls of other threads (of a stream: for the next chunk). Ctrl-C cancels them.
        """
        self._thread.refuse_own_loop()
        self._refuse()
        try:
            self._thread.drain()
        finally:
            self._thread.run(self.aclose())
            self._thread.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
        self._thread.stop()

    # --------------------------------------------------------------------------------------------------------- parts

    @staticmethod
    def _formed(fields: Mapping[str, Any], schema: Schema[Any] | None) -> Mapping[str, Any]:
        if schema is None and "form" not in fields:
            return fields
        from workflow_composer.answers.output_form import with_form

        return with_form({**fields, "schema": schema})

    def _request(
        self, active: Snapshot, prompt: Prompt, fields: Mapping[str, Any], schema: Schema[Any] | None = None
    ) -> LLMRequest:
        if schema is not None or "form" in fields:
            fields = self._formed(fields, schema)
        if isinstance(prompt, LLMRequest):
            request = replace(prompt, **fields) if fields else prompt
        else:
            request = LLMRequest.of(prompt, **fields)
        if "before_route" in active.plugins.hooks and may_read(DataReader.CHANGER, request):
            request = active.plugins.before_route(request, active.config.profile_name)
        if request.context is None and not active.contexts.tasks:
            return request
        return active.contexts.applied(request)  # after the plugins, so that nothing precedes it

    def _choose(self, strategy: str | Path | StrategyConfig | None) -> tuple[StrategyConfig, str]:
        if strategy is not None:
            return self._load(strategy), "argument"
        if named := self._environ.get(STRATEGY_VARIABLE, "").strip():
            return self._load(named), "environment"
        try:
            return self._thread.run(detect_strategy(self._environ, report=self._narrator.warning)), "detection"
        except BaseException:
            self._thread.stop()
            raise

    def _load(self, strategy: str | Path | StrategyConfig) -> StrategyConfig:
        if isinstance(strategy, StrategyConfig):
            return strategy
        return StrategyConfig.load(strategy, environ=self._environ, report=self._narrator.warning)

    def _build(self, config: StrategyConfig, offered: PluginRegistry) -> Snapshot:
        plugins = offered
        if config.plugins:
            plugins = self.plugins.with_files(offered, map(Path, config.plugins), self._files_now())
        snapshot = build(
            config,
            plugins,
            self._environ,
            execute=self._execute,
            resources=unprobed(config, self._environ),
            observer=PluginObserver(plugins),
            report=self._narrator.warning,
        )
        snapshot.offered = offered
        return snapshot

    def _finish(
        self, active: Snapshot, request: LLMRequest, plan: Plan, outcome: Outcome, trace: Trace, started: float
    ) -> LLMResponse:
        response = response_of(active.config, request, plan, outcome, trace, time.perf_counter() - started)
        self._note(active, request, trace, started, plan=plan, response=response)
        if (router := active.listeners.get(plan.router)) is not None and may_read(DataReader.LEARNER, request):
            self._tell(router, request, response)
        if "after_answer" in active.plugins.hooks and may_read(DataReader.LISTENER, request):
            active.plugins.notify("after_answer", request=request, response=response)
        return response

    def _tell(self, router: Router, request: LLMRequest, response: LLMResponse) -> None:
        try:
            router.answered(request, response)
        except Exception as error:  # noqa: BLE001  # an observer's error must not fail the request
            self._narrator.broken_plugin(router.name, f"answered failed: {type(error).__name__}: {error}")

    def _note(
        self,
        active: Snapshot,
        request: LLMRequest,
        trace: Trace,
        started: float,
        *,
        plan: Plan | None,
        response: LLMResponse | None = None,
        error: BaseException | None = None,
        model: str = "",
    ) -> None:
        """Write the request's metric and, with debugging on, the whole decision; but nothing that quotes a private one."""
        debug = (self._debug or active.config.debug_routing) and may_read(DataReader.DECISION_LOG, request)
        metric = metric_of(
            active.config,
            request,
            trace,
            time.perf_counter() - started,
            plan=plan,
            response=response,
            error=error,
            model=model,
            strongest_cost=None if plan is None or len(plan.tiers) == 1 else active.strongest_cost(plan, response),
            debug=debug,
        )
        for sink in self._sinks:
            try:
                sink.write(metric)
            except Exception as trouble:  # noqa: BLE001  # a sink's error must not fail the request
                self._narrator.broken_sink(trouble)
        if debug:
            self._narrator.decision(metric, None if plan is None else plan.reason)
