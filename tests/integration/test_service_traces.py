"""Traces of a real service, as a collector gets them."""

from __future__ import annotations

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.integration.client_calls import MESSAGES
from tests.integration.clients import curl, serving
from tests.paths import ROOT

pytest.importorskip("opentelemetry.proto")

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def collector():
    """A collector on this machine: the bodies that it has got, and what names it to a service."""
    bodies = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):  # http.server's name
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    yield bodies, {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
    server.shutdown()
    server.server_close()
    thread.join()


def spans_of(bodies):
    """Spans by name, each with its attributes as a mapping."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    found = {}
    for body in bodies:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    values = {one.key: one.value for one in span.attributes}
                    told = {key: getattr(value, value.WhichOneof("value")) for key, value in values.items()}
                    found.setdefault(span.name, []).append((span, told))
    return found


def test_a_request_is_a_span_of_the_caller_s_trace_with_the_model_s_work_in_it(tmp_path, collector):
    bodies, environ = collector
    with serving(tmp_path, "development", environ=environ) as (url, key):
        header = ("-H", f"traceparent: {PARENT}")
        told, _ = curl(url, key, {"model": "large", "messages": MESSAGES, "max_tokens": 30}, *header)
        curl(url, key, {"model": "small", "messages": MESSAGES, "max_tokens": 30, "stream": True})
        curl(url, key, {"model": "large", "messages": MESSAGES, "seed": 1, "temperature": 0.7})  # which it refuses
    spans = spans_of(bodies)
    served, _ = spans["POST /v1/chat/completions"][0]
    work, attributes = spans["chat large"][0]
    assert served.trace_id.hex() == PARENT.split("-")[1]
    assert served.parent_span_id.hex() == PARENT.split("-")[2]
    assert (work.trace_id, work.parent_span_id) == (served.trace_id, served.span_id)
    assert served.start_time_unix_nano <= work.start_time_unix_nano <= work.end_time_unix_nano <= served.end_time_unix_nano
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.request.model"] == "large"
    assert attributes["gen_ai.usage.output_tokens"] > 0
    assert attributes["gen_ai.response.id"] == told["x-workflow-composer-request-id"]
    assert attributes["workflow_composer.config.strategy"] == "development"
    streamed, _ = spans["chat small"][0]
    assert streamed.parent_span_id == spans["POST /v1/chat/completions"][1][0].span_id
    failed, attributes = spans["chat large"][1]
    assert attributes["error.type"]
    assert failed.status.code == 2
    assert spans["POST /v1/chat/completions"][2][1]["http.response.status_code"] == 400


def test_no_text_of_anybody_is_in_a_trace(tmp_path, collector):
    bodies, environ = collector
    with serving(tmp_path, "development", environ=environ) as (url, key):
        curl(url, key, {"model": "large", "messages": MESSAGES, "max_tokens": 30})
    whole = b"".join(bodies)
    assert b"chat large" in whole
    assert b"pens" not in whole
    assert key.encode() not in whole


def test_a_profile_that_forbids_the_cloud_sends_no_trace_out(tmp_path):
    """The service does not start; the message names the collector and what to do."""
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OTEL_EXPORTER_OTLP_ENDPOINT": "https://traces.example.com"}
    command = [sys.executable, "-m", "workflow_composer", "-s", "development", "serve", "--port", "0"]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "traces would go to traces.example.com, but the profile forbids the cloud" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_collector_the_libraries_are_not_even_loaded():
    code = "import sys, workflow_composer.server.service; print([m for m in sys.modules if m.startswith('opentelemetry')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
