"""The page about clients and the suite that runs it name the same ones."""

import re

import pytest

from tests.integration.unmodified.frame import CLIENTS, PAGE, commands_of, files_of, rows, section
from tests.integration.unmodified.standin import example, what_vllm_refuses

NAMES = [client.name for client in CLIENTS]
SECTION = """
Words.

`~/.tool/config.toml`:

```toml
url = "http://localhost:8080/v1"
```

```console
$ export A=1
$ tool --one \\
    --two
output
```
"""


@pytest.mark.parametrize("name", NAMES)
def test_each_client_has_commands_that_the_suite_runs(name):
    assert commands_of(section(name))


def test_every_section_is_of_a_client_of_the_suite_and_every_row_too():
    page = PAGE.read_text()
    assert set(re.findall(r"^## (.*)$", page, re.M)) == set(NAMES)
    assert list(rows(page)) == NAMES


def test_a_section_is_its_files_and_its_commands_without_what_they_print():
    assert files_of(SECTION) == {"~/.tool/config.toml": 'url = "http://localhost:8080/v1"\n'}
    assert commands_of(SECTION) == "export A=1\ntool --one \\\n    --two"


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"messages": [{"role": "developer", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]}, "beginning"),
        ({"messages": [{"role": "tool", "tool_call_id": "a", "content": "x"}]}, "answers no call"),
        ({"client_metadata": {}}, "client_metadata"),
        ({"tools": [{"type": "web_search"}]}, "function"),
        ({"tool_choice": "auto"}, "tools"),
    ],
)
def test_the_stand_in_refuses_what_a_real_server_refuses(fields, word):
    data = {"model": "served", "messages": [{"role": "user", "content": "x"}]}
    assert what_vllm_refuses(data) is None
    assert word in what_vllm_refuses({**data, **fields})


def test_an_example_has_the_form_of_its_schema():
    schema = {"properties": {"a": {"$ref": "#/$defs/A"}, "b": {"type": "array", "items": {"enum": ["x", "y"]}}}}
    schema["$defs"] = {"A": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}
    assert example(schema) == {"a": 7, "b": ["x"]}
