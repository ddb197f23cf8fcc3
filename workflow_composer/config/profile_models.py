"""The parts of a profile: each key declared once, with its type, default and meaning.

`docs/profiles.md` is generated from these declarations. Checks across keys are in `workflow_composer.config.checks`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SkipValidation,
    WrapValidator,
    model_validator,
)

from workflow_composer.config.named_code import form_in_text

LOCAL_BACKENDS = frozenset({"vllm", "embedded", "replay", "fake"})
"""Backends of the package that send no data beyond the profile's own machines."""
REGISTRY = "registry:"
"""Prefix of a role whose servers come from the registry."""
REGISTERED_ROLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Valid names after `REGISTRY`: those that roles of a fleet may have."""
_LOGPROBS_MODES = {"vllm": "raw", "openai": "raw", "embedded": "processed"}


Capability = Literal["chat", "embeddings", "tools", "json", "logprobs", "vision"]
"""A feature that a request may need: chat answers, embeddings, tool calls, a response format, log-probabilities, images."""


class Expanded(str):
    """Text of a profile with ``${NAME}`` expanded; ``source`` is the unexpanded text, and all that `repr` shows."""

    __slots__ = ("source",)
    source: str

    def __new__(cls, value: str, source: str) -> Self:
        """Pair the value with its source."""
        text = super().__new__(cls, value)
        text.source = source
        return text

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]  # copies keep both parts; str's has one
        return str(self), self.source

    def __repr__(self) -> str:
        return repr(self.source)


def as_written(value: Any) -> Any:
    """Return the value as written: ``${NAME}`` unexpanded, in plain dicts and lists that any serializer accepts."""
    if isinstance(value, Expanded):
        return value.source
    if isinstance(value, Mapping):
        return {key: as_written(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_written(item) for item in value]
    return value


def frozen(value: Any) -> Any:
    """Return an immutable copy: mappings read-only, lists as tuples, at every depth."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: frozen(item) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return tuple(frozen(item) for item in value)
    return value


def checked_form(value: Any) -> Any:
    """Return a form unchanged; raise ValueError if it is none. Files and Python types are left to the router."""
    from workflow_composer.answers.output_form import output_form
    from workflow_composer.errors import ConfigError

    try:
        output_form(_without_files(as_written(value)))
    except ConfigError as error:
        raise ValueError(error.message) from None
    return tuple(value) if isinstance(value, list) else value


def _without_files(form: Any) -> Any:
    if isinstance(form, str) and (inner := form_in_text(form)) is not form:
        return _without_files(inner)
    if isinstance(form, Mapping):
        if set(form) == {"python"} or (set(form) == {"json_schema"} and isinstance(form["json_schema"], str)):
            return "text"
        return {name: _without_files(part) for name, part in form.items()}
    return [_without_files(part) for part in form] if isinstance(form, list) else form


def plain(value: Any) -> Any:
    """Return a mapping as a dict, as the models require; return anything else unchanged."""
    return dict(value) if isinstance(value, Mapping) else value


def frozen_mapping(description: str) -> Any:
    """Return a field for a mapping that is empty by default."""
    return Field(default_factory=lambda: MappingProxyType({}), description=description)


Name = Annotated[str, Field(min_length=1)]
Place = Annotated[str, Field(min_length=1), WrapValidator(lambda v, check: v if isinstance(v, Expanded) else check(v))]
"""A URL or path that may contain ``${NAME}``."""
EnvName = Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")]
Names = Annotated[tuple[Name, ...], Field(strict=False)]
_OWN_HEADERS = re.compile(
    r"authorization|cookie|host|connection|keep-alive|te|trailer|transfer-encoding|upgrade|expect|accept-encoding|range"
    r"|(x-)?api-key|x-admin-token|content-.*|proxy-.*|x-workflow-composer-.*|(x-)?forwarded(-.*)?|x-real-ip"
)
"""Headers of a connection, with keys, or for this service."""
_TELLING = re.compile(r"user-agent|referer|origin|session-id|thread-id|x-codex-.*|x-stainless-.*|x-openwebui-user-.*")
"""Headers in which clients tell of themselves and of their users."""


def _header(text: str) -> str:
    name = text.strip().lower()
    if re.fullmatch(r"[!#$%&'*+.^_`|~0-9a-z-]+", name) is None:
        raise ValueError(f"{text!r} is not the name of a header")
    if _OWN_HEADERS.fullmatch(name):
        raise ValueError(f"{name} is not forwarded: it is for this service or for one connection only")
    if _TELLING.fullmatch(name):
        raise ValueError(f"{name} is not forwarded: clients tell of themselves in it")
    return name


HeaderNames = Annotated[tuple[Annotated[str, AfterValidator(_header)], ...], Field(strict=False)]
"""Names of headers, in lower case, that may go on to model servers."""
Places = Annotated[tuple[Place, ...], Field(strict=False)]
Capabilities = Annotated[tuple[Capability, ...], Field(strict=False)]
Settings = Annotated[Mapping[str, Any], BeforeValidator(plain), AfterValidator(frozen)]
NameToName = Annotated[Mapping[str, Name], BeforeValidator(plain), AfterValidator(frozen)]
NameToNames = Annotated[Mapping[str, Names], BeforeValidator(plain), AfterValidator(frozen)]
RoleToServers = Annotated[
    Mapping[str, Annotated[str | tuple[str, ...], SkipValidation]], BeforeValidator(plain), AfterValidator(frozen)
]
"""Role -> one server or several; `NormalForm` has already reported any other value."""
Form = Annotated[str | tuple[Any, ...] | Mapping[str, Any], BeforeValidator(checked_form), AfterValidator(frozen)]
"""A form as `output_form` takes it. The router reads the files that it names."""
Seconds = Annotated[float, Field(gt=0, le=86400)]
Dollars = Annotated[float, Field(ge=0)]


def registered_role(place: str) -> str | None:
    """Return ROLE of ``registry:ROLE``; None for a URL.

    >>> registered_role("registry:coder"), registered_role("http://localhost:8001/v1")
    ('coder', None)
    """
    return place.removeprefix(REGISTRY) if place.startswith(REGISTRY) else None


class ProfilePart(BaseModel):
    """Base of every part of a profile: strict types, no unknown keys, frozen. Pydantic's errors never show a value."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, hide_input_in_errors=True, allow_inf_nan=False, protected_namespaces=()
    )

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.__copy__()  # its values are frozen too, and read-only mappings cannot be deep-copied


class ModelSpec(ProfilePart):
    """One model of the catalogue (``models``): where it is served and what it costs."""

    name: Name = Field(description="The catalogue's key; not written again.")
    backend: Name = Field(
        description="How to reach it: `vllm` (your own server), `openai` (any OpenAI-compatible cloud API), "
        "`embedded` (in this process), `replay` (recorded answers), `fake` (tests), or a plugin's backend. Left out: the "
        "model is one of the built-in catalogue ([models.md](models.md)), and the entry says what differs."
    )
    model: Name | None = Field(
        default=None,
        description="The model's id on the server. Default: the catalogue's key; for `vllm`: what the server reports.",
    )
    endpoint: Name | None = Field(default=None, description="`vllm`: the role of `vllm_endpoints` that serves it.")
    base_url: Place | None = Field(
        default=None,
        description="The API's URL, up to and including `/v1`: for `openai`, and for `vllm` without `endpoint`.",
    )
    path: Place | None = Field(
        default=None,
        description="`embedded`: a shipped checkpoint's name or a directory; `replay`: a JSONL file. Relative to the "
        "profile's file.",
    )
    api_key_env: EnvName | None = Field(
        default=None, description="The environment variable that holds the API key. `api_key: ${NAME}` means the same."
    )
    input_price: Dollars | None = Field(
        default=None,
        description="Dollars per million prompt tokens. Without prices costs are unknown, and budgets cannot limit them; "
        "write 0 for a model that is free of charge.",
    )
    output_price: Dollars | None = Field(default=None, description="Dollars per million completion tokens; likewise.")
    cached_input_price: Dollars | None = Field(
        default=None,
        description="Dollars per million prompt tokens that the server read from its cache. Default: `input_price`.",
    )
    reasoning_price: Dollars | None = Field(
        default=None,
        description="Dollars per million completion tokens that were reasoning. Default: `output_price`.",
    )
    gpu_hour_price: Dollars | None = Field(
        default=None, description="Dollars per hour of the GPU that serves it, shared among the calls in flight."
    )
    gpu_hours_per_day: float | None = Field(
        default=None,
        ge=0,
        le=24,
        description="Hours per day for which that GPU is held, idle included; for the reservation that `metrics` shows. "
        "Servers that a fleet runs are known without it.",
    )
    aliases: Names = Field(
        default=(),
        description="Further names by which the server reports this model, such as the model behind a deployment. If the "
        "server answers as any other model, its answers are charged at that model's price, with a warning; dated snapshots "
        "and tags of the same name are known.",
    )
    context_length: int | None = Field(
        default=None,
        gt=0,
        le=100_000_000,
        description="Tokens of prompt and answer together; longer requests go to another model.",
    )
    logprobs_mode: Literal["raw", "processed"] | None = Field(
        default=None,
        description="How its log-probabilities are computed: `raw`, before temperature, top-p and penalties (default for "
        "`vllm` and `openai`), or `processed`, after them (default for `embedded`; vLLM with "
        "`--logprobs-mode processed_logprobs`). A certificate is valid for one mode only.",
    )
    capabilities: Capabilities = Field(
        default=(),
        description="What it supports: `chat`, `embeddings`, `tools`, `json`, `logprobs`, `vision`. A request that needs "
        "anything else goes to another model. Empty: unknown, so every request is tried.",
    )

    @model_validator(mode="after")
    def _default_model(self) -> Self:
        if self.model is None and self.backend != "vllm":
            self.__dict__["model"] = self.name  # frozen for everyone else
        if self.logprobs_mode is None:
            self.__dict__["logprobs_mode"] = _LOGPROBS_MODES.get(self.backend)
        return self

    @property
    def local(self) -> bool:
        """Whether the package knows that calls to it stay on the profile's own machines."""
        return self.backend in LOCAL_BACKENDS

    @property
    def priced(self) -> bool:
        """Whether it has its own price."""
        return any(price is not None for price in (self.input_price, self.output_price, self.gpu_hour_price))


class TierSpec(ProfilePart):
    """One step of a cascade (``tiers``), cheap ones first."""

    model: Name = Field(description="A catalogue model or a role.")
    cost: Dollars | None = Field(
        default=None,
        description="Dollars per million tokens, prompt and answer alike; used as the model's price if the model has none. "
        "Must not decrease from one tier to the next.",
    )
    samples: int = Field(
        default=4, ge=1, le=1024, description="Samples in the cascade of all tiers; the last tier takes a single sample."
    )
    temperature: float = Field(
        default=0.7,
        gt=0,
        le=2,
        description="Temperature of several samples, unless the routing string sets one.",
    )
    greedy_only: bool = Field(
        default=False,
        description="Always take one sample at temperature 0, whatever the routing string says (if memory is short).",
    )
    accept: Form | None = Field(
        default=None,
        description="The form of its answers in a cascade: a list of words, `number`, `truth`, `code`, `{field: form}`, "
        "`{json_schema: FILE}`, ... ([voting.md](voting.md#forms)). An answer of another form is not accepted.",
    )
    retries: int = Field(
        default=2, ge=0, le=16, description="How often its model is asked again for an answer of the form of `accept`."
    )
    target: float | None = Field(
        default=None, description="Minimum confidence to accept its vote. Default: the router's `target`."
    )
    deadline: Seconds | None = Field(default=None, description="Seconds before the cascade moves on to the next tier.")
    budget: float | None = Field(
        default=None, gt=0, description="Dollars per request: the tier is skipped if its expected cost exceeds this."
    )


class RouterSpec(ProfilePart):
    """One router of the profile (``routers``) and its settings."""

    name: Name = Field(description="The router's name.")
    settings: Settings = frozen_mapping("Its settings, checked by the router.")


class TimeoutSettings(ProfilePart):
    """Seconds that one call may take."""

    connect: Seconds = Field(default=2.0, description="Seconds to connect.")
    first_token: Seconds = Field(default=60.0, description="Seconds to the first token of a stream.")
    total: Seconds = Field(default=300.0, description="Seconds for one whole call.")


class RetrySettings(ProfilePart):
    """Retries of one candidate: exponential backoff with full jitter."""

    attempts: int = Field(default=3, ge=1, le=100, description="Calls to one candidate, the first one included.")
    base_delay: Seconds = Field(
        default=0.25, description="Upper bound of the first pause in seconds; it doubles with each retry."
    )
    max_delay: Seconds = Field(default=8.0, description="Longest pause in seconds.")


class BreakerSettings(ProfilePart):
    """When calls to a failing endpoint are suspended."""

    failures: int = Field(default=5, ge=1, le=1_000_000, description="Consecutive failures that open the breaker.")
    cooldown: Seconds = Field(default=30.0, description="Seconds before one call is let through as a probe.")


Catalogue = Annotated[Mapping[str, ModelSpec], BeforeValidator(plain), AfterValidator(frozen)]
Tiers = Annotated[Mapping[str, TierSpec], BeforeValidator(plain), AfterValidator(frozen)]
Routers = Annotated[tuple[RouterSpec, ...], Field(strict=False)]
