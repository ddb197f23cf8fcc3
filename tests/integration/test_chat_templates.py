"""One system message with the context first in it, against the chat templates of models: what the model is given to read."""

import json
import subprocess

import pytest

from tests.integration.vllm_server import VARIABLE, vllm_python
from tests.paths import CHECKPOINTS
from workflow_composer import LLMRequest
from workflow_composer.contexts.applying import Contexts
from workflow_composer.contexts.library import Library, shipped

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(vllm_python() is None, reason=f"{VARIABLE} names no Python with vLLM, and so with jinja2"),
]

RENDER = """
import json, sys
from jinja2.sandbox import ImmutableSandboxedEnvironment

def refuse(message):
    raise ValueError(message)

environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
environment.globals["raise_exception"] = refuse
found = []
for template, messages in json.load(sys.stdin):
    try:
        found.append(environment.from_string(template).render(messages=messages, add_generation_prompt=True))
    except ValueError as error:
        found.append([str(error)])
print(json.dumps(found))
"""
"""As transformers and vLLM render a template."""

QWEN = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) or message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
"""Qwen2.5's rule, without tools."""

STRICT = """{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] + '\\n\\n' %}{%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant') }}
    {%- endif %}
    {{- '[INST] ' + (system if loop.first and system else '') + message['content'] + ' [/INST]' }}
{%- endfor %}"""
"""A template that takes one system message and refuses a second, as Llama 2's and Mistral's do."""

SHIPPED = json.loads((CHECKPOINTS / "small" / "tokenizer_config.json").read_text())["chat_template"]
TEXT = Library([shipped()]).get("file-formats").text


def render(*pairs):
    """The prompts that templates make of messages; a list with the reason where one refuses."""
    data = json.dumps([(template, [dict(m) for m in messages]) for template, messages in pairs])
    python = vllm_python()
    assert python is not None
    done = subprocess.run([python, "-c", RENDER], input=data, capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


def messages(question, *, system=None, context=("file-formats",)):
    contexts = Contexts(Library([shipped()]))
    return contexts.applied(LLMRequest.of(question, system=system, context=context)).messages


@pytest.mark.parametrize("template", [QWEN, STRICT], ids=["Qwen2.5", "strict"])
def test_prompts_share_everything_up_to_the_end_of_the_context(template):
    """Whatever stands behind it; and the callers' own words are read, too."""
    first, second, third = render(
        (template, messages("Is BED 0-based?", system="Be brief.")),
        (template, messages("What is FLAG 4?", system="Answer in one word.")),
        (template, messages("Why?")),
    )
    end = first.index(TEXT) + len(TEXT)
    assert first[:end] == second[:end] == third[:end]
    assert "Be brief." in first[end:]
    assert "Is BED 0-based?" in first[end:]


def test_a_second_system_message_would_be_refused():
    """That is why there is one."""
    two = [
        {"role": "system", "content": TEXT},
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
    ]
    assert render((STRICT, two)) == [["Conversation roles must alternate user/assistant"]]


def test_qwens_own_system_message_gives_way_to_the_context():
    """As it does to any other."""
    without, with_context = render((QWEN, messages("Why?", context=())), (QWEN, messages("Why?")))
    assert "You are Qwen" in without
    assert "You are Qwen" not in with_context


def test_the_shipped_checkpoints_read_no_system_message_and_so_no_context():
    """They were trained on questions alone: their answers stay what they are."""
    without, with_context = render((SHIPPED, messages("Why?", context=())), (SHIPPED, messages("Why?")))
    assert without == with_context == "<|user|>Why?<|assistant|>"
