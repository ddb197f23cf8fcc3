"""Sound that is passed on: the server gets the client's body byte for byte, but for the model's name."""

from __future__ import annotations

import json

import openai
import pytest

from tests.integration.service import echoing, serving
from tests.integration.stub_server import Reply
from tests.integration.test_service_batches import client_of, keys_file

SOUND = bytes(range(256)) * 3000 + b"\r\n--x\r\n"
UNNAMED = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nq'


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A service over one server that hears."""
    with echoing() as stub:
        stub.answer = lambda request: Reply.of({"text": "four"})
        models = {"ear": {"backend": "vllm", "model": "whisper-large", "base_url": stub.url}}
        folder = tmp_path_factory.mktemp("uploads")
        with serving(folder, stub, models=models, task_routing={"*": "ear"}) as service:
            yield service, stub


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the client's own, of one of the two
@pytest.mark.parametrize("what", ["transcriptions", "translations"])
@pytest.mark.parametrize("model", ["auto", "ear"])
def test_sound_arrives_as_it_was_sent(served, what, model):
    service, stub = served
    client = client_of(service)
    act = getattr(client.audio, what).create
    found = act(file=("a b.wav", SOUND), model=model, prompt="names: Ünal", temperature=0.5)
    assert found.text == "four"
    got = stub.requests[-1]
    assert got.path == f"/v1/audio/{what}"
    boundary = got.headers["content-type"].partition("boundary=")[2]
    parts = got.body.split(f"--{boundary}".encode())
    texts = {part.partition(b'name="')[2].partition(b'"')[0]: part.partition(b"\r\n\r\n")[2][:-2] for part in parts[1:-1]}
    assert texts == {b"model": b"whisper-large", b"prompt": "names: Ünal".encode(), b"temperature": b"0.5", b"file": SOUND}


def test_other_forms_of_answers_come_back_as_they_are(served):
    service, stub = served
    usual = stub.answer
    stub.answer = lambda request: Reply(body=b"1\n00:00 --> 00:01\nfour\n", headers={"Content-Type": "text/plain"})
    try:
        found = client_of(service).audio.transcriptions.create(file=("a.wav", b"x"), model="auto", response_format="srt")
    finally:
        stub.answer = usual
    assert found == "1\n00:00 --> 00:01\nfour\n"


@pytest.mark.parametrize(
    ("body", "kind", "status", "param"),
    [
        (b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nauto\r\n--x--\r\n', "; boundary=x", 400, "file"),
        (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nq\r\n--x--\r\n',
            "; boundary=x",
            400,
            "model",
        ),
        (UNNAMED, "; boundary=x", 400, None),
        (b"--x\r\nnothing", "; boundary=x", 400, None),
        (b"", "; boundary=x", 400, None),
        (b"--x--", "", 400, None),
        (b"--x\r\n" * 500, "; boundary=x", 400, None),
    ],
)
def test_a_body_that_is_no_sound_is_refused(served, body, kind, status, param):
    service, stub = served
    before = len(stub.requests)
    headers = {"Content-Type": f"multipart/form-data{kind}"}
    found, _, text = service.request("POST", "/v1/audio/transcriptions", body, headers)
    assert found == status
    assert json.loads(text)["error"]["param"] == param
    assert len(stub.requests) == before


def test_a_stream_and_an_unknown_model_are_refused_by_name(served):
    client = client_of(served[0])
    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.transcriptions.create(file=("a.wav", b"x"), model="auto", stream=True)
    assert caught.value.param == "stream"
    with pytest.raises(openai.NotFoundError):
        client.audio.transcriptions.create(file=("a.wav", b"x"), model="nobody")


def test_a_key_s_models_hold_for_sound(tmp_path):
    option, keys = keys_file(tmp_path, tied={"models": ("p-1",)})
    with echoing() as stub, echoing() as other, serving(tmp_path, stub, other, options=tuple(option)) as service:
        with pytest.raises(openai.PermissionDeniedError):
            client_of(service, keys["tied"]).audio.transcriptions.create(file=("a.wav", b"x"), model="p-0")
        with pytest.raises(openai.AuthenticationError):
            client_of(service, "wfc-0-x").audio.transcriptions.create(file=("a.wav", b"x"), model="p-1")
        assert not stub.requests
