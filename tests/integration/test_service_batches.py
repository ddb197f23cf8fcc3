"""Files and batches, through OpenAI's own client: uploaded, run, cancelled, cut off and resumed; a key sees its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import time

import openai
import pytest

from tests.integration.service import PATIENCE, Service, echo, echoing, serving, write_profile
from tests.integration.stub_server import Reply
from workflow_composer.server.auth.keys import Key, change_keys

ENDED = {"completed", "failed", "expired", "cancelled"}
CHAT = "/v1/chat/completions"


def line(name: str, text: str, url: str = CHAT, **more) -> dict:
    """One line of a batch: an echo of a text."""
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], **more}
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


def jsonl(*rows: dict | str) -> bytes:
    """A file of lines."""
    return b"".join((row if isinstance(row, str) else json.dumps(row)).encode() + b"\n" for row in rows)


def client_of(service: Service, key: str = "any") -> openai.OpenAI:
    """OpenAI's client, unmodified."""
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0)


def begun(client: openai.OpenAI, content: bytes, endpoint: str = CHAT, **more):
    """A batch over an uploaded file."""
    file = client.files.create(file=("rows.jsonl", io.BytesIO(content)), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more)


def waited(client: openai.OpenAI, identity: str, until=lambda batch: batch.status in ENDED):
    """A batch once something is so of it."""
    ends = time.monotonic() + PATIENCE
    while not until(found := client.batches.retrieve(identity)):
        assert time.monotonic() < ends, found
        time.sleep(0.05)
    return found


def rows_of(client: openai.OpenAI, file: str | None) -> dict[str, dict]:
    """The lines of a file of answers, by the client's IDs."""
    if file is None:
        return {}
    rows = [json.loads(row) for row in client.files.content(file).text.splitlines()]
    assert len({row["custom_id"] for row in rows}) == len(rows)
    return {row["custom_id"]: row for row in rows}


def said(row: dict) -> str:
    """What a line was answered."""
    assert row["response"]["status_code"] == 200, row
    return row["response"]["body"]["choices"][0]["message"]["content"]


def keys_file(folder, **names) -> tuple[list[str], dict[str, str]]:
    """A file of keys with these limits; the option that names it, and the keys."""
    made = {name: Key.new(name, **limits) for name, limits in names.items()}
    path = folder / "keys.json"
    change_keys(path, lambda keys: keys.update({key.id: key for key, _ in made.values()}))
    return ["--keys", str(path)], {name: secret for name, (_, secret) in made.items()}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A service without keys, and the server behind it."""
    with echoing() as stub, serving(tmp_path_factory.mktemp("batches"), stub) as service:
        yield client_of(service), stub, service


def test_a_batch_answers_every_line_by_its_own_id(served):
    client, _, _ = served
    batch = begun(client, jsonl(*(line(f"row-{n}", f"text {n} ü\u2028") for n in range(40))), metadata={"run": "a"})
    assert batch.status in {"validating", "in_progress"}
    ended = waited(client, batch.id)
    assert (ended.status, ended.error_file_id, ended.metadata) == ("completed", None, {"run": "a"})
    assert (ended.request_counts.total, ended.request_counts.completed, ended.request_counts.failed) == (40, 40, 0)
    rows = rows_of(client, ended.output_file_id)
    assert {name: said(row) for name, row in rows.items()} == {f"row-{n}": f"text {n} ü\u2028" for n in range(40)}
    assert batch.id in {one.id for one in client.batches.list()}
    assert {ended.input_file_id, ended.output_file_id} <= {one.id for one in client.files.list()}


@pytest.mark.parametrize(
    ("endpoint", "body", "read"),
    [
        ("/v1/completions", {"prompt": "four"}, lambda body: body["choices"][0]["text"]),
        ("/v1/responses", {"input": "four"}, lambda body: body["output"][0]["content"][0]["text"]),
        (
            "/v1/messages",
            {"max_tokens": 9, "messages": [{"role": "user", "content": "four"}]},
            lambda body: body["content"][0]["text"],
        ),
    ],
)
def test_every_form_of_the_api_has_batches(served, endpoint, body, read):
    client, _, _ = served
    row = {"custom_id": "a", "method": "POST", "url": endpoint, "body": {"model": "auto", **body}}
    ended = waited(client, begun(client, jsonl(row), endpoint).id)
    (found,) = rows_of(client, ended.output_file_id).values()
    assert read(found["response"]["body"]) == "four"


def test_vectors_have_batches_too(served):
    client, _, _ = served
    row = {"custom_id": "v", "method": "POST", "url": "/v1/embeddings", "body": {"model": "auto", "input": ["a", "b"]}}
    ended = waited(client, begun(client, jsonl(row), "/v1/embeddings").id)
    (found,) = rows_of(client, ended.output_file_id).values()
    assert [one["embedding"] for one in found["response"]["body"]["data"]] == [[1.0, 0.5]] * 2


def test_a_line_that_fails_stands_in_the_file_of_errors_and_harms_no_other(served):
    client, _, _ = served
    rows = [line("good", "yes"), line("bad", "no", temperature=99), line("odd", "no", model="nothing-like-this")]
    ended = waited(client, begun(client, jsonl(*rows)).id)
    assert (ended.status, ended.request_counts.completed, ended.request_counts.failed) == ("completed", 1, 2)
    errors = rows_of(client, ended.error_file_id)
    assert {name: row["response"]["status_code"] for name, row in errors.items()} == {"bad": 400, "odd": 404}
    assert errors["bad"]["response"]["body"]["error"]["param"] == "temperature"
    assert said(rows_of(client, ended.output_file_id)["good"]) == "yes"


@pytest.mark.parametrize(
    ("rows", "code", "place"),
    [
        ([], "empty_file", None),
        ([line("a", "x"), line("a", "y")], "duplicate_custom_id", 2),
        ([line("a", "x"), "{not json"], "invalid_json_line", 2),
        (['["a"]'], "invalid_json_line", 1),
        ([line("a", "x", url="/v1/completions")], "mismatched_url", 1),
        ([{**line("a", "x"), "method": "GET"}], "invalid_method", 1),
        ([{**line("a", "x"), "body": [1]}], "invalid_body", 1),
        ([line("", "x")], "invalid_custom_id", 1),
        ([line("a", "x", stream=True)], "unsupported_parameter", 1),
    ],
)
def test_a_file_with_a_fault_fails_before_any_line_is_asked(served, rows, code, place):
    client, stub, _ = served
    before = len(stub.requests)
    ended = waited(client, begun(client, jsonl(*rows)).id)
    assert ended.status == "failed"
    fault = ended.errors.data[-1]
    assert (fault.code, fault.line) == (code, place)
    assert len(stub.requests) == before


def test_what_cannot_be_a_batch_is_refused_at_once(served):
    client, _, _ = served
    file = client.files.create(file=("x.jsonl", b"{}\n"), purpose="batch")
    other = client.files.create(file=("x.txt", b"text"), purpose="user_data")
    for fields, param in (
        ({"completion_window": "fast"}, "completion_window"),
        ({"endpoint": "/v1/images"}, "endpoint"),
        ({"input_file_id": other.id}, "input_file_id"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.batches.create(**{"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h", **fields})
        assert caught.value.param == param
    for identity in ("file-0123456789abcdef01234567", "..%2F..%2Fledger", "file-x"):
        with pytest.raises(openai.NotFoundError):
            client.batches.create(input_file_id=identity, endpoint=CHAT, completion_window="24h")
    with pytest.raises(openai.BadRequestError):
        client.files.create(file=("x", b"x"), purpose="nothing")


def test_files_are_kept_byte_for_byte_listed_in_pages_and_deleted(served):
    client, _, service = served
    content = bytes(range(256)) * 2000 + b"\r\n--boundary\r\n"
    made = client.files.create(file=('a "b"\tü.bin', content), purpose="user_data")
    assert (made.bytes, made.purpose, made.status) == (len(content), "user_data", "processed")
    assert client.files.content(made.id).read() == content
    assert client.files.retrieve(made.id).filename == made.filename
    more = [client.files.create(file=("n", b"x"), purpose="user_data").id for _ in range(3)]
    pages = [one.id for one in client.files.list(limit=2, purpose="user_data")]
    assert set(more) | {made.id} <= set(pages)
    assert len(pages) == len(set(pages))
    assert client.files.delete(made.id).deleted
    for act in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            act(made.id)
    for path in ("/v1/files/..%2f..%2fledger.bin", "/v1/files/a/b", "/v1/batches/../x", "/v1/files//content"):
        assert service.request("GET", path)[0] == 404


def test_one_key_sees_nothing_of_another_s(tmp_path):
    option, keys = keys_file(tmp_path, ann={}, bob={})
    with echoing() as stub, serving(tmp_path, stub, options=tuple(option)) as service:
        ann, bob = (client_of(service, keys[name]) for name in ("ann", "bob"))
        batch = begun(ann, jsonl(line("a", "secret of ann")))
        ended = waited(ann, batch.id)
        for identity in (ended.input_file_id, ended.output_file_id):
            for act in (bob.files.retrieve, bob.files.content, bob.files.delete):
                with pytest.raises(openai.NotFoundError):
                    act(identity)
        for act in (bob.batches.retrieve, bob.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                act(batch.id)
        assert list(bob.files.list()) == list(bob.batches.list()) == []
        with pytest.raises(openai.NotFoundError):
            bob.batches.create(input_file_id=ended.input_file_id, endpoint=CHAT, completion_window="24h")
        with pytest.raises(openai.AuthenticationError):
            client_of(service, "wfc-0-x").files.list()
        state = tmp_path / "state" / "batches"
        assert all(path.stat().st_mode & 0o077 == 0 for path in state.rglob("*") if not path.name.endswith(".lock"))
        assert "secret of ann" not in service.log
        assert "secret of ann" not in service.metrics.read_text()


def test_a_key_s_models_budget_and_rate_hold_for_its_lines(tmp_path):
    """A rate that passes is waited for; a budget that is used up, and a model that is not allowed, are told line by line."""
    option, keys = keys_file(tmp_path, few={"requests_per_minute": 600}, poor={"budget": 0.05}, tied={"models": ("p-1",)})
    price = {"input_price": 10_000.0, "output_price": 10_000.0}
    with echoing() as stub, echoing() as other:
        models = {name: {"backend": "vllm", "base_url": one.url, **price} for name, one in (("p-0", stub), ("p-1", other))}
        with serving(tmp_path, stub, other, options=tuple(option), models=models) as service:
            tied = client_of(service, keys["tied"])
            rows = rows_of(tied, waited(tied, begun(tied, jsonl(line("a", "x", model="p-0"))).id).error_file_id)
            assert rows["a"]["response"]["status_code"] == 403
            poor = client_of(service, keys["poor"])
            ended = waited(poor, begun(poor, jsonl(*(line(f"r{n}", "word " * 5, max_tokens=5) for n in range(30)))).id)
            assert ended.request_counts.failed > 0
            codes = {row["response"]["status_code"] for row in rows_of(poor, ended.error_file_id).values()}
            assert codes <= {402, 429}
            few = client_of(service, keys["few"])
            ended = waited(few, begun(few, jsonl(*(line(f"r{n}", "x") for n in range(20)))).id)
            assert (ended.status, ended.request_counts.completed) == ("completed", 20)


def test_a_cancelled_batch_keeps_what_it_has(tmp_path):
    def answer(request):
        return Reply(hang=True) if request.json["messages"][-1]["content"] == "stay" else echo(request)

    with echoing() as stub, serving(tmp_path, stub) as service:
        client = client_of(service)
        stub.answer = answer
        batch = begun(client, jsonl(line("first", "quick"), *(line(f"s{n}", "stay") for n in range(3))))
        waited(client, batch.id, lambda found: found.request_counts.completed == 1)
        with pytest.raises(openai.ConflictError):
            client.files.delete(batch.input_file_id)
        assert client.batches.cancel(batch.id).status == "cancelling"
        ended = waited(client, batch.id)
        assert ended.status == "cancelled"
        assert ended.cancelled_at
        assert set(rows_of(client, ended.output_file_id)) == {"first"}
        with pytest.raises(openai.ConflictError):
            client.batches.cancel(batch.id)
        client.files.delete(batch.input_file_id)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_service_goes_on_where_it_was(tmp_path, workers):
    """Answered lines are not asked again, and every line is answered once."""
    options = ("--workers", str(workers))
    with echoing() as stub:
        profile = write_profile(tmp_path, "p", stub.url)
        count = 60

        def answer(request):
            number = int(request.json["messages"][-1]["content"])
            return Reply(hang=True) if number >= count // 2 and hanging else echo(request)

        hanging, stub.answer = True, answer
        service = Service(profile, *options)
        client = client_of(service)
        batch = begun(client, jsonl(*(line(f"r{n}", str(n)) for n in range(count))))
        rows = tmp_path / "state" / "batches" / "nobody" / "batches" / f"{batch.id}.rows"
        ends = time.monotonic() + PATIENCE
        while not rows.exists() or rows.read_bytes().count(b"\n") < count // 2:
            assert time.monotonic() < ends
            time.sleep(0.02)
        running = service.workers
        service.process.kill()  # the supervisor first, which would replace a worker
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        service.ended()
        with rows.open("ab") as file:
            file.write(b'{"n":59,"ok":tr')  # the kill may have cut a line
        asked = [int(one.json["messages"][-1]["content"]) for one in stub.requests if one.path.endswith("/chat/completions")]
        hanging = False
        with Service(profile, *options) as again:
            client = client_of(again)
            ended = waited(client, batch.id)
            assert ended.status == "completed"
            found = rows_of(client, ended.output_file_id)
            assert {name: said(row) for name, row in found.items()} == {f"r{n}": str(n) for n in range(count)}
        later = [int(one.json["messages"][-1]["content"]) for one in stub.requests if one.path.endswith("/chat/completions")]
        repeated = later[len(asked) :]
        assert sorted(repeated) == list(range(count // 2, count))


def test_a_service_that_keeps_no_files_says_so(tmp_path):
    with echoing() as stub, serving(tmp_path, stub, options=("--keep-files", "0")) as service:
        with pytest.raises(openai.PermissionDeniedError) as caught:
            client_of(service).files.list()
        assert caught.value.code == "files_disabled"
        assert not (tmp_path / "state" / "batches").exists()
