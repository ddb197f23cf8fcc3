"""``workflow check`` and ``workflow graph``: what they print, and that nothing is called."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

FLOW = """\
workflow: triage
inputs: {note: private, pmid: text}
steps:
  kind: {prompt: "{{ note }}", answer: ["yes", "no"], release: choices}
  far: {when: kind == "yes", model: remote, prompt: "{{ pmid }} <b>"}
  all: {reduce: rows, prompt: "{% for r in rows %}{{ r.far }}{% endfor %}"}
  code: {python: "names:merge", with: {all: all}}
output: {pmid: pmid, kind: kind}
"""
PROFILE = """\
profile_name: mine
models:
  small: {backend: embedded, path: small}
  remote: {backend: openai, base_url: "https://api.example.com/v1", api_key_env: KEY}
task_routing: {"*": small}
"""


@pytest.fixture
def run(command, tmp_path):
    (tmp_path / "p.yaml").write_text(PROFILE)
    (tmp_path / "flow.yaml").write_text(FLOW)
    return lambda *arguments: command("-s", str(tmp_path / "p.yaml"), "workflow", *map(str, arguments))


def test_check_prints_the_flow_and_what_leaves(run, tmp_path):
    done = run("check", tmp_path / "flow.yaml")
    assert done.code == 0, done.err
    lines = {line.split()[0]: line for line in done.out.splitlines() if line.startswith("  ")}
    assert list(lines) == ["kind", "far", "all", "code"]
    assert "small" in lines["kind"]
    assert "own machines only" in lines["kind"]
    assert "remote" in lines["far"]
    assert "own machines" not in lines["far"]
    assert "once per run" in lines["all"]
    assert "at most 1 bit of note a row leaves through kind" in done.out
    assert "not promised" in done.out
    assert "code: no answer" in done.out
    assert "a run is refused" in done.out
    assert "there is no module 'names' here" in done.out


def test_check_as_json(run, tmp_path):
    found = run("check", tmp_path / "flow.yaml", "--json").json
    assert found["order"] == ["kind", "far", "all", "code"]
    assert found["steps"]["kind"]["private"] == ["note"]
    assert found["steps"]["kind"]["bits"] == 1.0
    assert found["steps"]["far"]["private"] == []


def test_faults_and_missing_columns_have_exit_code_2(run, tmp_path):
    (tmp_path / "t.csv").write_text("pmid,notes\n1,x\n")
    done = run("check", tmp_path / "flow.yaml", "--input", tmp_path / "t.csv")
    assert done.code == 2
    assert "flow.yaml:2" in done.err
    assert "'notes'" in done.err
    assert run("check", tmp_path / "none.yaml").code == 2


@pytest.mark.parametrize("form", ["text", "mermaid", "svg"])
def test_graph(run, tmp_path, form):
    done = run("graph", tmp_path / "flow.yaml", "--as", form)
    assert done.code == 0, done.err
    for name in ("kind", "far", "all", "code"):
        assert name in done.out
    if form == "mermaid":
        assert done.out.count("-->") == 5
        assert "class n0,n2 private" in done.out
    if form == "svg":
        tree = ET.fromstring(done.out)
        assert len(tree.findall(".//{*}rect")) == 6


def test_graph_to_a_file(run, tmp_path):
    assert run("graph", tmp_path / "flow.yaml", "-o", tmp_path / "flow.svg").code == 0
    assert (tmp_path / "flow.svg").read_text().startswith("<svg")
