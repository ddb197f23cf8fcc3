"""Folders as the Hugging Face hub, its library and other programs leave them."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workflow_composer.batch.datasets.table import read_table
from workflow_composer.errors import InputError


def parquet(path, *questions):
    """A Parquet file of questions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"question": list(questions)}), path)


def arrow(path, *questions):
    """An Arrow stream of questions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = pa.table({"question": list(questions)})
    with pa.ipc.new_stream(path, data.schema) as writer:
        writer.write_table(data)


def questions(source, data_dir=None, split=None):
    """The questions of a table, in order."""
    return [row.values["question"] for row in read_table(source, data_dir=data_dir, split=split).rows()]


def fault(source, data_dir=None):
    """The fault of opening it."""
    with pytest.raises(InputError) as caught:
        read_table(source, data_dir=data_dir)
    return str(caught.value)


LAYOUTS = {
    "hub, data/": [
        "data/test-00000-of-00002.parquet",
        "data/test-00001-of-00002.parquet",
        "data/train-00000-of-00001.parquet",
    ],
    "hub, configuration": [
        "main/test-00000-of-00002.parquet",
        "main/test-00001-of-00002.parquet",
        "socratic/test-00000-of-00001.parquet",
    ],
    "refs/convert/parquet": ["default/test/0000.parquet", "default/test/0001.parquet", "default/train/0000.parquet"],
    "old converter": ["default/name-test-00000-of-00002.parquet", "default/name-test-00001-of-00002.parquet"],
    "folders of splits": ["test/part-00000.parquet", "test/part-00001.parquet", "train/part-00000.parquet"],
}
"""Of each the first two files are the test split."""


@pytest.mark.parametrize("files", LAYOUTS.values(), ids=LAYOUTS)
def test_the_test_split_is_found_by_path_and_by_name(tmp_path, files):
    """Without a card; hidden files and files about the data set are no tables."""
    for number, name in enumerate(files):
        parquet(tmp_path / "openai_gsm8k" / name, f"file {number}")
    (tmp_path / "openai_gsm8k" / "dataset_infos.json").write_text("{}")
    (tmp_path / "openai_gsm8k" / ".cache").mkdir()
    parquet(tmp_path / "openai_gsm8k" / ".cache" / "test.parquet", "hidden")

    for source, folder in ((tmp_path / "openai_gsm8k", None), ("openai_gsm8k", tmp_path), ("openai/gsm8k:test", tmp_path)):
        assert questions(source, folder) == ["file 0", "file 1"]


def test_a_split_may_have_any_name_and_the_usual_ones_have_synonyms(tmp_path):
    """HuggingFaceH4/ultrachat_200k has train_sft and test_sft; GLUE and SuperGLUE call a split dev."""
    for name in ("train_sft", "test_sft"):
        parquet(tmp_path / "ultrachat" / "data" / f"{name}-00000-of-00001.parquet", name)
    parquet(tmp_path / "glue" / "dev.parquet", "dev")

    assert questions("ultrachat:test_sft", tmp_path) == ["test_sft"]
    assert "ultrachat:test_sft, ultrachat:train_sft" in fault("ultrachat", tmp_path)
    assert (
        questions("glue:validation", tmp_path) == questions("glue:dev", tmp_path) == questions("glue", tmp_path) == ["dev"]
    )


def test_the_cards_list_of_files_counts(tmp_path):
    """hails/mmlu_no_train: configs in the head of README.md."""
    for name in ("test-1.parquet", "holdout.parquet"):
        parquet(tmp_path / "d" / "all" / name, name)
    card = """---
license: mit
configs:
- config_name: all
  data_files:
  - split: test
    path: all/holdout*
  - split: dev
    path: ["all/test-1.parquet"]
---
# Card
"""
    (tmp_path / "d" / "README.md").write_text(card)

    assert questions("d", tmp_path) == ["holdout.parquet"]
    assert questions("d:validation", tmp_path) == ["test-1.parquet"]


def test_what_save_to_disk_writes(tmp_path):
    """A DatasetDict: dataset_dict.json and a folder for each split; caches of `map` lie beside the data."""
    folder = tmp_path / "saved"
    for split in ("train", "held_out"):
        arrow(folder / split / "data-00000-of-00001.arrow", split)
        arrow(folder / split / "cache-1a2b3c.arrow", "stale")
        (folder / split / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
        (folder / split / "dataset_info.json").write_text("{}")
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "held_out"]}))

    assert questions(folder) == ["train"]
    assert questions(f"{folder}:held_out") == ["held_out"]
    assert questions(folder / "held_out") == ["held_out"]


def test_the_caches_of_the_hub(tmp_path, monkeypatch):
    """What `huggingface-cli download` and `load_dataset` leave: snapshots of commits, and prepared Arrow files."""
    hub = tmp_path / "home" / "hub" / "datasets--openai--gsm8k"
    parquet(hub / "snapshots" / "old" / "main" / "test-00000-of-00001.parquet", "old")
    parquet(hub / "snapshots" / "e53f048" / "main" / "test-00000-of-00001.parquet", "snapshot")
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("e53f048")
    prepared = tmp_path / "home" / "datasets" / "cais___mmlu" / "all" / "0.0.0" / "c30699e"
    arrow(prepared / "mmlu-test.arrow", "prepared")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "data").mkdir()

    for name in ("openai/gsm8k", "openai_gsm8k"):
        assert questions(name, tmp_path / "data") == ["snapshot"]
    assert questions("cais/mmlu:test", tmp_path / "data") == ["prepared"]


def test_shards_by_pattern(tmp_path, monkeypatch):
    """Spark and Dask write part-00000 and so on; a pattern in quotes, from the folder of the command."""
    for number in range(3):
        parquet(tmp_path / "out" / f"part-0000{number}-8f1e.snappy.parquet", f"part {number}")
    monkeypatch.chdir(tmp_path)

    assert questions("out/part-*.parquet") == questions("out") == ["part 0", "part 1", "part 2"]
    assert "no file matches" in fault("out/p-*.parquet")


class TestPaths:
    def test_a_path_needs_no_data_folder_and_a_file_name_may_lie_in_it(self, tmp_path, monkeypatch):
        (tmp_path / "data").mkdir()
        (tmp_path / "cases.csv").write_text("question\nhere\n")
        (tmp_path / "data" / "more.csv").write_text("question\nthere\n")
        monkeypatch.chdir(tmp_path)

        assert questions("cases.csv", tmp_path / "nowhere") == ["here"]
        assert questions("./cases.csv", tmp_path / "data") == ["here"]
        assert questions("more.csv", tmp_path / "data") == ["there"]

    def test_a_missing_one_names_what_is_near(self, tmp_path):
        (tmp_path / "questions.jsonl").write_text('{"question": "q"}\n')

        assert f"did you mean {tmp_path / 'questions.jsonl'}?" in fault(str(tmp_path / "question.jsonl"))
        assert "did you mean questions?" in fault("question", tmp_path)

    def test_several_files_of_one_folder_ask_which(self, tmp_path):
        for name in ("algebra", "geometry"):
            parquet(tmp_path / "d" / f"{name}.parquet", name)

        assert "several files: algebra.parquet, geometry.parquet" in fault(tmp_path / "d")

    def test_an_empty_folder_says_so(self, tmp_path):
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "notes.md").write_text("x")

        assert "no table in" in fault(tmp_path / "d")
        assert "notes.md" in fault(tmp_path / "d")
