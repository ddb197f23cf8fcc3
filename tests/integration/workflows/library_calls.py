"""Calls of a workflow by the libraries of OpenAI and Anthropic, unmodified; run by a Python that has them: ``URL MODEL``.

Prints one JSON object: what each form of API gave, whole and streamed, and how errors came.
"""

import json
import sys

import anthropic
import openai

url, model = sys.argv[1:]
own = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
other = anthropic.Anthropic(base_url=url, api_key="none")
MESSAGES = [{"role": "user", "content": "x"}]


def told(call):
    """What a call gave, or the error that the library raised."""
    try:
        return call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def chat_stream():
    parts, usage = [], None
    asked = {"model": model, "messages": MESSAGES, "stream_options": {"include_usage": True}}
    for chunk in own.chat.completions.create(**asked, stream=True):
        usage = chunk.usage or usage
        parts += [one.delta.content for one in chunk.choices if one.delta.content]
    return [parts, usage.total_tokens]


def chat_helper():
    with own.chat.completions.stream(model=model, messages=MESSAGES) as events:
        kinds = [event.type for event in events]
        return ["content.done" in kinds, events.get_final_completion().choices[0].message.content]


def response_stream():
    with own.responses.stream(model=model, input="x") as events:
        kinds = [event.type for event in events]
        return [kinds[0], kinds[-1], events.get_final_response().output_text]


def message_stream():
    with other.messages.stream(model=model, max_tokens=50, messages=MESSAGES) as events:
        kinds = [event.type for event in events]
        return [kinds[0], kinds[-1], events.get_final_text()]


def message():
    found = other.messages.create(model=model, max_tokens=50, messages=MESSAGES, system="be kind")
    return [found.content[0].text, found.stop_reason, found.usage.output_tokens]


calls = {
    "listed": lambda: model in [one.id for one in own.models.list()],
    "one": lambda: own.models.retrieve(model).id,
    "chat": lambda: own.chat.completions.create(model=model, messages=MESSAGES).choices[0].message.content,
    "chat_stream": chat_stream,
    "chat_helper": chat_helper,
    "completion": lambda: own.completions.create(model=model, prompt="x").choices[0].text,
    "response": lambda: own.responses.create(model=model, input="x", instructions="be kind").output_text,
    "response_stream": response_stream,
    "message": message,
    "message_stream": message_stream,
    "tokens": lambda: other.messages.count_tokens(model=model, messages=MESSAGES).input_tokens > 0,
}
print(json.dumps({name: told(call) for name, call in calls.items()}))
