"""The text of a first profile: one model answers everything, and comments say what each part is for."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from workflow_composer.config.profile_models import REGISTRY
from workflow_composer.runtime.surroundings import Offer, shown_kind

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9._/-]*(?::[A-Za-z0-9._/-]+)*")
_WORDS = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n", "cloud", "cascade", "auto"})
_LATE = frozenset({"ollama", "lm-studio", "llama.cpp"})
"""Kinds of servers that load a model when it is first asked."""


@dataclass(frozen=True, slots=True)
class FirstProfile:
    """What goes into the profile. ``fallback``: a cloud model that takes over if the own one fails.

    ``others`` are further models of the same server; ``context_length`` is what the server takes, if known.
    """

    name: str
    offer: Offer
    fallback: Offer | None = None
    embeddings: Offer | None = None
    others: Sequence[Offer] = ()
    networks: Sequence[str] = ()
    context_length: int | None = None

    @property
    def cloud(self) -> bool:
        """Whether prompts may leave one's own machines."""
        return self.offer.cloud is not None or self.fallback is not None

    def text(self, call: str, day: datetime.date) -> str:
        """Return the file's text; ``call`` is a command that uses it."""
        parts = (self._head(call, day), self._governance(), self._servers(), self._models(), self._routes(), self._limits())
        return "\n\n".join("\n".join(part) for part in parts if part) + "\n"

    # ------------------------------------------------------------------------------------------------------------- parts

    def _head(self, call: str, day: datetime.date) -> list[str]:
        where = (
            f"the cloud ({self.offer.host})" if self.offer.cloud else f"{shown_kind(self.offer.kind)} at {self.offer.host}"
        )
        return [
            f"# Written by `init` on {day}. {_shown(self.offer.model)} of {where} answers every request.",
            f"# Ask it:   {call}",
            "# Every key is explained in docs/profiles.md. Change what you like; `strategies validate` checks the file.",
            "",
            f"profile_name: {quoted(self.name)}",
            f"description: {quoted(f'{self.offer.model} of {where}.')}",
        ]

    def _governance(self) -> list[str]:
        lines = ["# Prompts may be sent to the cloud: to the models below whose `backend` is `openai`.", "allow_cloud: true"]
        if not self.cloud:
            lines = [
                "# No prompt leaves your own machines: a connection to any other host is refused, whatever asks for it.",
                "allow_cloud: false",
            ]
        if users := dict.fromkeys(offer.user for offer in (self.offer, self.embeddings) if offer is not None and offer.user):
            who = ", ".join(users)
            lines += [
                "",
                f"# The server runs as the user {who}. A server of another user of this machine is refused unless that user",
                "# is named here, because on a shared machine anybody may listen on a port that is free.",
                f"local_users: [{', '.join(quoted(user) for user in users)}]",
            ]
        if self.networks:
            lines += ["", "# Networks with public addresses that are your own machines."]
            lines += [f"local_networks: [{', '.join(quoted(network) for network in self.networks)}]"]
        return lines

    @property
    def _role(self) -> str:
        return "server" if self.offer.model == "local" else "local"

    def _servers(self) -> list[str]:
        if self.offer.cloud is not None:
            return []
        registered = self.offer.place.startswith(REGISTRY)
        about = "the servers that the fleet has registered" if registered else "its server; a list of several is balanced"
        return [f"# Role -> {about}.", "vllm_endpoints:", f"  {self._role}: {quoted(self.offer.place)}"]

    def _models(self) -> list[str]:
        lines = ["models:"]
        if self.offer.cloud is None:
            lines += self._own(self.offer)
        else:
            lines += _of_cloud(self.offer)
        if self.fallback is not None:
            lines += ["", "  # Takes over if the server fails. Prompts are then sent there.", *_of_cloud(self.fallback)]
        if self.embeddings is not None:
            lines += ["", *self._vectors(self.embeddings)]
        if self.others:
            names = [_shown(offer.model) + (" (thinks first)" if offer.thinks else "") for offer in self.others[:20]]
            more = f", and {len(self.others) - 20} more" if len(self.others) > 20 else ""
            lines += [
                "",
                f"  # Also there, and not used: {', '.join(names)}{more}. Write another name in `model` to use it.",
            ]
        return lines

    def _own(self, offer: Offer) -> Iterator[str]:
        yield f"  {quoted(offer.model)}:"
        yield "    backend: vllm            # any server with OpenAI's API, not vLLM only"
        yield f"    endpoint: {self._role}"
        yield f"    model: {quoted(offer.model)}    # its name on the server"
        if offer.key_env:
            yield f"    api_key_env: {offer.key_env}    # the variable that holds the server's key"
        if self.context_length:
            yield f"    context_length: {self.context_length}    # tokens of prompt and answer, as the server says"
        elif offer.kind == "ollama":
            yield "    # context_length: 4096   # ollama cuts longer prompts off without an error; see `ollama ps`"
        yield "    # It runs on your own machine: free of charge. `gpu_hour_price: 0.35` would count its GPU's time instead."
        yield "    input_price: 0"
        yield "    output_price: 0"

    def _vectors(self, offer: Offer) -> Iterator[str]:
        yield "  # Makes vectors, for requests of the task `embeddings`."
        yield f"  {quoted(offer.model)}:"
        yield "    backend: vllm"
        yield f"    base_url: {quoted(offer.place)}"
        yield f"    model: {quoted(offer.model)}"
        if offer.key_env:
            yield f"    api_key_env: {offer.key_env}"
        yield "    capabilities: [embeddings]"
        yield "    input_price: 0"
        yield "    output_price: 0"

    def _routes(self) -> list[str]:
        target = quoted(self.offer.model) if self.offer.cloud is not None else self._role
        lines = ['# Task -> who answers; "*" stands for every task.', "task_routing:"]
        if self.embeddings is not None:
            lines += [f"  embeddings: {quoted(self.embeddings.model)}"]
        lines += [f'  "*": {target}']
        if self.fallback is not None:
            lines += ["", f"fallback: [{quoted(self.fallback.model)}]"]
        router = "cascading_provider" if self.cloud else "provider"
        lines += [
            "",
            "# cascade runs routing strings such as mv_MODEL_k4_t0.7 (docs/cascades.md); the other calls the task's model.",
        ]
        return [*lines, f"routers: [cascade, {router}]"]

    def _limits(self) -> list[str]:
        if self.offer.cloud is not None or self.offer.kind not in _LATE:
            return []
        return [
            "# Seconds. The first request may wait until the server has loaded the model.",
            "timeouts: {first_token: 300, total: 900}",
        ]


def _of_cloud(offer: Offer) -> Iterator[str]:
    model = offer.cloud
    if model is None:
        return
    yield f"  {quoted(offer.model)}:"
    yield f"    # Dollars per million tokens as of {model.priced_on}: {model.source}"
    for key, value in model.keys().items():
        yield f"    {key}: {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    return quoted(value) if isinstance(value, str) else json.dumps(value)


def quoted(text: str) -> str:
    """Return a text as YAML reads it back: plain if that is safe.

    >>> quoted("llama3.1:8b"), quoted("qwen: 7"), quoted("7b"), quoted("no")
    ('llama3.1:8b', '"qwen: 7"', '"7b"', '"no"')
    """
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return json.dumps(text, ensure_ascii=False)


def _shown(text: str) -> str:
    return " ".join(text.split())
