"""``var record`` and ``var replay``: routes written down, and what tables know of them."""

import json

import numpy as np
import pytest

from workflow_composer.cli.main import run


@pytest.fixture
def var(capsys):
    """Run ``var`` with these arguments: exit code, output, errors."""

    def go(*arguments):
        code = run(["var", *map(str, arguments)])
        return (code, *capsys.readouterr())

    return go


@pytest.fixture
def recording(tmp_path):
    """Routes of 30 texts; layer 0's follow from the token, layer 1's from nothing."""
    drawing = np.random.default_rng(0)
    path = tmp_path / "routes.jsonl"
    with path.open("w") as file:
        for text in range(30):
            for position in range(20):
                token = int(drawing.integers(20))
                for layer, first in ((0, token % 8), (1, int(drawing.integers(8)))):
                    place = {"sequence": text, "position": position}
                    file.write(
                        json.dumps({"token": token, "layer": layer, "experts": [first, (first + 1) % 8], **place}) + "\n"
                    )
    return path


def test_replay_says_by_layer_what_tables_know(var, recording):
    """All of what follows from the token, and about chance of what does not."""
    code, out, _ = var("replay", recording, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["learned"], found["tokens"], found["slots"]) == (480, 120, 4)
    known, unknown = found["layers"]
    assert known["overlap"] == 1.0
    assert unknown["overlap"] < 0.5


def test_replay_compares_policies_on_a_machine_of_ones_choice(var, recording):
    """With the figures of the machine: two transfers and a layer's time, twice, where nothing is kept."""
    code, out, _ = var("replay", recording, "--json", "--slots", 3, "--transfer", 10, "--layer-time", 2)
    policies = json.loads(out)["policies"]
    assert code == 0
    assert policies["no memory"]["time_per_token"] == 2 * (2 * 10 + 2)
    assert policies["everything known"]["time_per_token"] <= policies["VAR"]["time_per_token"]
    assert policies["LRU"]["time_per_token"] < policies["no memory"]["time_per_token"]


def test_replay_prints_tables_for_people(var, recording):
    code, out, _ = var("replay", recording)
    assert code == 0
    assert "480 tokens for learning, 120 replayed" in out
    assert "frequency-pinned" in out
    assert "4 of 8 experts" in out


def test_a_file_that_is_no_recording_is_one_line(var, tmp_path):
    (tmp_path / "other").write_text("{}")
    code, _, err = var("replay", tmp_path / "other")
    assert code == 2
    assert "line 1: layer must be" in err
    assert "Traceback" not in err


def test_record_needs_a_model(var, tmp_path):
    pytest.importorskip("transformers", reason="pip install '.[moe]'")
    (tmp_path / "text").write_text("hello")
    code, _, err = var("record", tmp_path, tmp_path / "text", "-o", tmp_path / "routes.jsonl")
    assert code == 2
    assert "cannot load a model from" in err


def test_record_writes_routes_that_replay_reads(var, tmp_path):
    """With a tiny model of random weights and a tokenizer of single letters."""
    pytest.importorskip("transformers", reason="pip install '.[moe]'")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from tests.unit.moe.conftest import tiny_model

    letters = Tokenizer(models.WordLevel({chr(97 + i): i for i in range(26)} | {"?": 26}, unk_token="?"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    model, text, routes = tmp_path / "model", tmp_path / "text", tmp_path / "routes.jsonl"
    tiny_model("olmoe").save_pretrained(model)
    PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="?").save_pretrained(model)
    text.write_text("abcdefghij" * 5)
    code, out, err = var("record", model, text, "-o", routes, "--length", 10, "--json")
    assert code == 0, err
    assert json.loads(out[out.index("{") :]) == {"tokens": 50, "layers": [0, 1, 2], "output": str(routes)}
    code, out, _ = var("replay", routes, "--json")
    assert code == 0
    assert all(layer["overlap"] == 1.0 for layer in json.loads(out)["layers"]), "the same ten letters each time"
