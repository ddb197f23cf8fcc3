"""Stand-ins that answer as the model servers on people's own machines do: ollama, llama.cpp, LM Studio, SGLang, vLLM.

Each has the forms of the real server's answers and errors, taken from:

- ollama: ``openai/openai.go`` (``ToListCompletion``, ``ToChatCompletion``, ``NewError``: the type of an error follows its
  status), ``server/routes.go`` and ``docs/api.md`` of ollama/ollama (``/api/version``, ``/api/ps``, ``/api/show`` with its
  ``capabilities``); the list of a server without models is ``null``, as Go writes a nil slice; an embedding model's error is
  quoted in tinyhumansai/openhuman#3359, content that stays empty while a model thinks in ollama/ollama#15288;
  ``remote_host`` and the tags of models of ollama's cloud: ollama/ollama#17818, simonw/llm#1283
- llama.cpp: ``tools/server/server-context.cpp`` (``get_res_models``, ``get_res_props``), ``server-common.cpp``
  (``format_error_response``), ``server-http.cpp`` ("Loading model") and ``server-models.cpp`` (the router's list) of
  ggml-org/llama.cpp
- LM Studio: ``1_developer/2_rest/endpoints.mdx`` of lmstudio-ai/docs; the error of a model of the wrong kind is quoted in
  lmstudio-ai/lms#205; a path that it does not know gets status 200 and an error
- SGLang: ``python/sglang/srt/entrypoints/http_server.py`` of sgl-project/sglang (``available_models``, ``get_model_info``)
- vLLM: ``entrypoints/openai/models/serving.py``, ``entrypoints/serve/engine/protocol.py`` (``ModelCard``) and
  ``entrypoints/launchers/api_server/routers.py`` (which paths there are) of vllm-project/vllm 0.32;
  ``test_init_vllm.py`` has the real server

As a program it serves one of them: ``python -m tests.integration.local_servers KIND PORT USER MODEL...``, as the user with
that number (0: as it was started); ``KIND:key=K`` asks for a key, ``KIND:loading`` answers 503, ``KIND:old`` is an old
version. A model is its name, followed by ``=embedding``, ``=thinking`` (it thinks and never answers), ``=wrong`` (it
answers something else) or ``=cloud`` (ollama sends its prompts on).
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.integration.stub_server import Reply, Request, StubServer

Answer = Callable[[str], str]


def sum_of(prompt: str) -> str:
    """The answer of these models: the sum of the numbers in a question."""
    numbers = [int(word) for word in prompt.replace("?", " ").split() if word.isdigit()]
    return str(sum(numbers))


@dataclass(frozen=True)
class Model:
    """A model of a stand-in."""

    name: str
    kind: str = "chat"
    context: int = 8192
    loaded: bool = False

    @classmethod
    def of(cls, text: str) -> Model:
        """Read ``NAME`` or ``NAME=KIND``; ``NAME=short`` has a context of 512 tokens."""
        name, _, kind = text.partition("=")
        return cls(name, context=512) if kind == "short" else cls(name, kind or "chat")


class LocalServer(StubServer):
    """The common part: a list of models, chat completions, and errors in the server's own form."""

    owner = "organization"
    unknown_path = 404
    old = False
    """An old version: ollama without capabilities, vLLM with all paths whatever its model."""

    def __init__(self, *models: Model | str, port: int = 0, key: str | None = None) -> None:
        self.served = [model if isinstance(model, Model) else Model.of(model) for model in models]
        self.key = key
        self.ready = True
        super().__init__(models=(), port=port)
        self.answer = self._post

    # The stand-in decides on every request; the base class would answer GETs by itself.
    def _reply(self, request: Request) -> Reply:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return self.refusal(401, "Invalid API Key")
        if not self.ready:
            return self.refusal(503, "Loading model")
        path = request.path.partition("?")[0]
        if request.method == "GET":
            found = self.pages().get(path)
            return Reply.of(found) if found is not None else self.nowhere(request)
        return self._post(request)

    def _post(self, request: Request) -> Reply:
        if request.path not in self.posts():
            return self.nowhere(request)
        return self.posts()[request.path](request.json)

    def pages(self) -> dict[str, Any]:
        """What GETs answer, by path."""
        return {"/v1/models": {"object": "list", "data": [self.row(model) for model in self.served]}}

    def posts(self) -> dict[str, Callable[[Any], Reply]]:
        """What POSTs answer, by path."""
        return {"/v1/chat/completions": self.chat}

    def row(self, model: Model) -> dict[str, Any]:
        """A row of the list of models."""
        return {"id": model.name, "object": "model", "created": 1764460800, "owned_by": self.owner}

    def nowhere(self, request: Request) -> Reply:
        """The answer at a path that it does not know."""
        return Reply.of({"error": "not found"}, status=self.unknown_path)

    def refusal(self, status: int, message: str) -> Reply:
        """An error in the server's form."""
        return Reply.error(status, message)

    def model(self, name: str) -> Model | None:
        """The model that a request names."""
        return next((model for model in self.served if model.name == name), None)

    def no_model(self, name: str) -> Reply:
        """The error of an unknown model."""
        return self.refusal(404, f"The model `{name}` does not exist.")

    def no_chat(self, model: Model) -> Reply:
        """The error of an embedding model that is asked to chat."""
        return self.refusal(400, f"{model.name} is no chat model")

    def chat(self, asked: Any) -> Reply:
        """Answer a chat completion, whole or as a stream."""
        model = self.model(asked["model"])
        if model is None:
            return self.no_model(asked["model"])
        if model.kind == "embedding":
            return self.no_chat(model)
        if asked.get("max_tokens", 0) > model.context and self.owner in ("vllm", "sglang"):
            wrong = f"max_tokens={asked['max_tokens']} cannot be greater than max_model_len={model.context}."
            return self.refusal(400, f"{wrong} Please request fewer output tokens.")
        prompt = asked["messages"][-1]["content"]
        said = {"chat": sum_of(prompt), "cloud": sum_of(prompt), "wrong": "I like turtles."}.get(model.kind, "")
        thought = "The user asks for a sum. Let me think. " * 3 if model.kind == "thinking" else ""
        finish = "length" if model.kind == "thinking" else "stop"
        return _streamed(model, said, thought, finish) if asked.get("stream") else _whole(model, said, thought, finish)


def _whole(model: Model, said: str, thought: str, finish: str) -> Reply:
    message = {"role": "assistant", "content": said, **({"reasoning": thought} if thought else {})}
    return Reply.of(
        {
            "id": "chatcmpl-101",
            "object": "chat.completion",
            "created": 1764460800,
            "model": model.name,
            "system_fingerprint": "fp_local",
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": 31, "completion_tokens": 9, "total_tokens": 40},
        }
    )


def _streamed(model: Model, said: str, thought: str, finish: str) -> Reply:
    import json

    def event(delta: dict[str, Any], end: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": end}
        head = {"id": "chatcmpl-101", "object": "chat.completion.chunk", "created": 1764460800, "model": model.name}
        return json.dumps({**head, "choices": [choice], **more}).encode()

    pieces = [event({"content": "", "reasoning": thought})] if thought else []
    usage = {"prompt_tokens": 31, "completion_tokens": 9, "total_tokens": 40}
    return Reply(events=(*pieces, event({"content": said}), event({"content": ""}, finish, usage=usage)))


class Ollama(LocalServer):
    """Ollama; names have tags."""

    owner = "library"
    version = "0.12.3"

    def pages(self) -> dict[str, Any]:
        found = super().pages()
        if not self.served:
            found["/v1/models"]["data"] = None
        running = [
            {"name": m.name, "model": m.name, "size": 1, "context_length": m.context} for m in self.served if m.loaded
        ]
        return found | {
            "/api/version": {"version": self.version},
            "/api/ps": {"models": running},
            "/api/tags": {
                "models": [{"name": model.name, "details": self._details(model)} for model in self.served] or None
            },
        }

    def posts(self) -> dict[str, Callable[[Any], Reply]]:
        return super().posts() | {"/api/show": self._show}

    def _details(self, model: Model) -> dict[str, Any]:
        family = "nomic-bert" if model.kind == "embedding" else "llama"
        return {"parent_model": "", "format": "gguf", "family": family, "families": [family], "parameter_size": "8.0B"}

    def _show(self, asked: Any) -> Reply:
        model = self.model(asked["model"])
        if model is None:
            return Reply.of({"error": f"model '{asked['model']}' not found"}, status=404)
        can = {"embedding": ["embedding"], "thinking": ["completion", "thinking"]}.get(model.kind, ["completion", "tools"])
        architecture = self._details(model)["family"]
        return Reply.of(
            {
                "license": "a license\n" * 100,
                "modelfile": f"FROM {model.name}",
                "parameters": 'stop                           "<|eot_id|>"',
                "details": self._details(model),
                "model_info": {"general.architecture": architecture, f"{architecture}.context_length": 131072},
                **({} if self.old else {"capabilities": can}),
                **({"remote_model": "m", "remote_host": "https://ollama.com:443"} if model.kind == "cloud" else {}),
            }
        )

    def nowhere(self, request: Request) -> Reply:
        return Reply(status=404, body=b"404 page not found", headers={"Content-Type": "text/plain"})

    def refusal(self, status: int, message: str) -> Reply:
        kind = {400: "invalid_request_error", 404: "not_found_error"}.get(status, "api_error")
        return Reply.of({"error": {"message": message, "type": kind, "param": None, "code": None}}, status=status)

    def no_model(self, name: str) -> Reply:
        return self.refusal(404, f"model '{name}' not found")

    def no_chat(self, model: Model) -> Reply:
        return self.refusal(400, f'"{model.name}" does not support chat')


class LlamaCpp(LocalServer):
    """The server of llama.cpp with one model; it answers under whatever name it is asked for. With several: its router."""

    owner = "llamacpp"

    def row(self, model: Model) -> dict[str, Any]:
        if len(self.served) > 1:
            status = {"value": "loaded" if model.loaded else "unloaded", "args": []}
            return super().row(model) | {"aliases": [], "tags": [], "status": status, "source": "cache"}
        meta = {"vocab_type": 2, "n_vocab": 128256, "n_ctx": model.context, "n_ctx_train": 131072, "n_embd": 4096}
        return super().row(model) | {"aliases": [], "tags": [], "meta": meta}

    def pages(self) -> dict[str, Any]:
        settings = {"params": {}, "n_ctx": self.served[0].context if self.served else 0}
        props = {"default_generation_settings": settings, "total_slots": 4, "build_info": "b6527"}
        shown = [{"name": model.name, "model": model.name, "capabilities": ["completion"]} for model in self.served]
        found = super().pages()
        return {"/v1/models": {"models": shown} | found["/v1/models"], "/props": props, "/health": {"status": "ok"}}

    def model(self, name: str) -> Model | None:
        return self.served[0] if len(self.served) == 1 else super().model(name)

    def nowhere(self, request: Request) -> Reply:
        return self.refusal(404, "File Not Found")

    def refusal(self, status: int, message: str) -> Reply:
        kinds = {
            400: "invalid_request_error",
            401: "authentication_error",
            404: "not_found_error",
            501: "not_supported_error",
        }
        kind = "unavailable_error" if status == 503 else kinds.get(status, "server_error")
        return Reply.of({"error": {"code": status, "message": message, "type": kind}}, status=status)

    def no_chat(self, model: Model) -> Reply:
        return self.refusal(500, "the current context does not logits computation. skipping")


class LMStudio(LocalServer):
    """LM Studio; every model that was downloaded is listed, loaded or not."""

    owner = "organization_owner"

    def pages(self) -> dict[str, Any]:
        rows = [
            {
                "id": model.name,
                "object": "model",
                "type": "embeddings" if model.kind == "embedding" else "llm",
                "publisher": "lmstudio-community",
                "arch": "llama",
                "compatibility_type": "gguf",
                "quantization": "Q4_K_M",
                "state": "loaded" if model.loaded else "not-loaded",
                "max_context_length": 131072,
                **({"loaded_context_length": model.context} if model.loaded else {}),
            }
            for model in self.served
        ]
        return super().pages() | {"/api/v0/models": {"object": "list", "data": rows}}

    def nowhere(self, request: Request) -> Reply:
        return Reply.of({"error": f"Unexpected endpoint or method. ({request.method} {request.path})"})

    def refusal(self, status: int, message: str) -> Reply:
        error = {"message": message, "type": "invalid_request_error", "param": "model", "code": "model_not_found"}
        return Reply.of({"error": error}, status=status)

    def no_chat(self, model: Model) -> Reply:
        return self.refusal(404, f'Failed to load model "{model.name}". Error: Model is not llm.')


class SGLang(LocalServer):
    """SGLang serves one model."""

    owner = "sglang"

    def row(self, model: Model) -> dict[str, Any]:
        return super().row(model) | {"root": model.name, "parent": None, "max_model_len": model.context}

    def pages(self) -> dict[str, Any]:
        generates = all(model.kind != "embedding" for model in self.served)
        return super().pages() | {"/get_model_info": {"model_path": "/models/m", "is_generation": generates}}


class VLLM(LocalServer):
    """VLLM: all names are of one model."""

    owner = "vllm"

    def row(self, model: Model) -> dict[str, Any]:
        return super().row(model) | {"root": "/models/m", "parent": None, "max_model_len": model.context, "permission": []}

    def pages(self) -> dict[str, Any]:
        embeds = any(model.kind == "embedding" for model in self.served)
        paths = ["/v1/models", *(["/v1/chat/completions"] if not embeds or self.old else [])]
        paths += ["/v1/embeddings", "/pooling"] if embeds or self.old else []
        return super().pages() | {"/openapi.json": {"openapi": "3.1.0", "paths": {path: {} for path in paths}}}

    def no_chat(self, model: Model) -> Reply:
        return self.refusal(400, "The model does not support Chat Completions API")


KINDS = {"ollama": Ollama, "llama.cpp": LlamaCpp, "lm-studio": LMStudio, "sglang": SGLang, "vllm": VLLM}


def main(arguments: Sequence[str]) -> None:
    """Serve until the process is ended; print a line once it listens."""
    asked, port, user, *models = arguments
    kind, _, how = asked.partition(":")
    with LocalServer() as server:  # its modules are read before: the user may not be allowed to
        server.close()
    if int(user):
        os.setuid(int(user))
    with KINDS[kind](*models, port=int(port), key=how.partition("key=")[2] or None) as server:
        server.ready = how != "loading"
        server.old = how == "old"
        print(server.port, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1:])
