"""Calls by the clients that people use; run by a Python that has them: ``CLIENT URL KEY MODEL VECTORS``. Prints JSON."""

import asyncio
import base64
import json
import struct
import sys

QUESTION = "Anna has 3 pens. Then she finds 4 more. How many pens does Anna have now?"
MESSAGES = [{"role": "user", "content": QUESTION}]
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    },
}


def told(client, **fields):
    """What a call gave: its answer, or the error that the client raised."""
    try:
        return client(**fields)
    except Exception as error:
        retry = getattr(getattr(error, "response", None), "headers", {}).get("retry-after")
        return {
            "error": type(error).__name__,
            "code": getattr(error, "code", None),
            "retry_after": retry,
            "text": str(error),
        }


def packed(text):
    """The numbers of a vector that came as base64: the client unpacks only what it has asked for by itself."""
    data = base64.b64decode(text)
    return struct.unpack(f"<{len(data) // 4}f", data)


def openai_client(url, key, model, vectors):
    """OpenAI's own, synchronous and asynchronous."""
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    create = client.chat.completions.create

    def chat(**fields):
        answer = create(**{"model": model, "messages": MESSAGES, "temperature": 0.0, "max_tokens": 40, **fields})
        first = answer.choices[0]
        return {
            "object": answer.object,
            "texts": [choice.message.content for choice in answer.choices],
            "finish": first.finish_reason,
            "tokens": answer.usage.completion_tokens,
            "logprobs": first.logprobs and [(t.token, t.logprob, len(t.top_logprobs)) for t in first.logprobs.content],
        }

    def stream(**fields):
        text, usage, finish, count = "", None, None, 0
        with create(model=model, messages=MESSAGES, temperature=0.0, max_tokens=40, stream=True, **fields) as chunks:
            for chunk in chunks:
                count += 1
                usage = chunk.usage or usage
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                    finish = choice.finish_reason or finish
        return {"text": text, "usage": usage and usage.completion_tokens, "finish": finish, "chunks": count}

    def called():
        choice = {"type": "function", "function": {"name": "add"}}
        fields = {"model": model, "messages": MESSAGES, "max_tokens": 60, "temperature": 0.0}
        answer = create(tools=[TOOL], tool_choice=choice, **fields).choices[0].message
        return {"content": answer.content, "calls": [call.function.name for call in answer.tool_calls or []]}

    def response(**fields):
        answer = client.responses.create(model=model, input=QUESTION, temperature=0.0, max_output_tokens=40, **fields)
        return {"text": answer.output_text, "status": answer.status, "tokens": answer.usage.output_tokens}

    def response_stream():
        events = client.responses.create(model=model, input=QUESTION, temperature=0.0, max_output_tokens=40, stream=True)
        found = list(events)
        text = "".join(one.delta for one in found if one.type == "response.output_text.delta")
        return {"text": text, "last": found[-1].type}

    def embed(**fields):
        found = client.embeddings.create(model=vectors, input=["what is a gene", "what is a cell"], **fields)
        read = [packed(one.embedding) if isinstance(one.embedding, str) else one.embedding for one in found.data]
        return {"lengths": [len(one) for one in read], "first": list(read[0][:3])}

    async def together():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key) as many:
            asked = [
                many.chat.completions.create(model=model, messages=MESSAGES, temperature=0.0, max_tokens=40)
                for _ in range(8)
            ]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]

    raw = client.chat.completions.with_raw_response.create(model=model, messages=MESSAGES, max_tokens=5)
    wrong = openai.OpenAI(base_url=f"{url}/v1", api_key="sk-wrong", max_retries=0)
    return {
        "models": [one.id for one in client.models.list()],
        "headers": {name: value for name, value in raw.headers.items() if name.startswith("x-workflow-composer-")},
        "chat": told(chat),
        "two": told(chat, n=2, temperature=0.8),
        "seed": told(chat, temperature=0.8, seed=7),
        "same_seed": told(chat, temperature=0.8, seed=7),
        "logprobs": told(chat, logprobs=True, top_logprobs=3),
        "tools": told(chat, tools=[TOOL], tool_choice="none"),
        "named_tool": told(called),
        "stop": told(chat, stop=["="]),
        "json": told(chat, response_format={"type": "json_object"}),
        "bias": told(chat, logit_bias={"1": -100}),
        "extra": told(chat, extra_body={"top_k": 1, "min_p": 0.1, "ignore_eos": True, "max_tokens": 9}),
        "task": told(chat, model="task:documentation", extra_body={"metadata": {"task_type": "documentation"}}),
        "stream": told(stream),
        "stream_with_usage": told(stream, stream_options={"include_usage": True}),
        "together": asyncio.run(together()),
        "completions": told(lambda: client.completions.create(model=model, prompt="Anna has", max_tokens=4).choices[0].text),
        "responses": told(response),
        "response_stream": told(response_stream),
        "embeddings": told(embed),
        "embeddings_base64": told(embed, encoding_format="base64"),
        "no_model": told(chat, model="nobody"),
        "no_messages": told(chat, messages=[]),
        "wrong_key": told(lambda: wrong.models.list().data),
    }


def anthropic_client(url, key, model, vectors):
    """Anthropic's own."""
    import anthropic

    client = anthropic.Anthropic(base_url=url, api_key=key, max_retries=0)
    fields = {"model": model, "max_tokens": 40, "messages": MESSAGES, "extra_body": {"temperature": 0.0}}

    def message():
        answer = client.messages.create(**fields)
        return {"text": answer.content[0].text, "stop": answer.stop_reason, "tokens": answer.usage.output_tokens}

    def stream():
        with client.messages.stream(**fields) as events:
            text = "".join(events.text_stream)
            return {"text": text, "stop": events.get_final_message().stop_reason}

    return {
        "message": told(message),
        "stream": told(stream),
        "no_model": told(lambda: client.messages.create(**{**fields, "model": "nobody"})),
    }


def langchain(url, key, model, vectors):
    """LangChain's ChatOpenAI."""
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    chat = ChatOpenAI(model=model, base_url=f"{url}/v1", api_key=key, temperature=0.0, max_tokens=40)
    answer = chat.invoke(QUESTION)
    embeddings = OpenAIEmbeddings(model=vectors, base_url=f"{url}/v1", api_key=key, check_embedding_ctx_length=False)
    return {
        "chat": {"text": answer.content, "tokens": answer.usage_metadata["output_tokens"]},
        "stream": "".join(piece.content for piece in chat.stream(QUESTION)),
        "batch": [one.content for one in chat.batch([QUESTION] * 3)],
        "embeddings": told(lambda: len(embeddings.embed_query("what is a gene"))),
    }


def litellm_client(url, key, model, vectors):
    """LiteLLM's SDK."""
    import litellm

    litellm.suppress_debug_info = True
    fields = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": key, "temperature": 0.0, "max_tokens": 40}
    answer = litellm.completion(messages=MESSAGES, **fields)
    stream = litellm.completion(messages=MESSAGES, stream=True, **fields)
    return {
        "chat": answer.choices[0].message.content,
        "stream": "".join(chunk.choices[0].delta.content or "" for chunk in stream),
        "no_model": told(lambda: litellm.completion(messages=MESSAGES, **{**fields, "model": "openai/nobody"})),
    }


def limited(url, key, model, vectors):
    """OpenAI's client with a key for one request in a minute, and a field that says nothing to a model."""
    import openai

    create = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0).chat.completions.with_raw_response.create
    fields = {"model": model, "messages": MESSAGES, "max_tokens": 5, "service_tier": "flex"}
    first = create(**fields)
    return {"warning": first.headers.get("x-workflow-composer-warning"), "second": told(lambda: create(**fields).text)}


CLIENTS = {"openai": openai_client, "anthropic": anthropic_client, "langchain": langchain, "litellm": litellm_client}
CLIENTS["limited"] = limited

if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    print(json.dumps(CLIENTS[name](*arguments)))
