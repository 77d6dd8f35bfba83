"""An interrupted preparation goes on after its last whole shard, and makes what an uninterrupted one makes."""

import dataclasses
import json
import random
from pathlib import Path

import pytest

import data.corpus.prepare
from data.config import DataConfig
from data.corpus.prepare import prepare
from data.corpus.shards import open_corpus


@pytest.fixture
def texts():
    """300 documents of which some repeat an earlier one, exactly or nearly, far apart."""
    draw = random.Random(5)
    words = [f"w{draw.randrange(10**6)}" for _ in range(3000)]
    rows = [draw.choices(words, k=draw.randint(20, 40)) for _ in range(260)]
    rows += [rows[i] for i in range(0, 60, 3)] + [[*rows[i][:-1], "changed"] for i in range(1, 60, 3)]
    return [" ".join(row) for row in rows]


@pytest.fixture(params=["jsonl", "streamed", "downloaded"])
def config(request, texts, tmp_path):
    """The texts as one file, or as a local data set of four files that is streamed or read whole."""
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(4):
        part = texts[i * 75 : (i + 1) * 75]
        (folder / f"part{i}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    keys = {
        "jsonl": {"source": "files", "files": (str(folder / "*.jsonl"),)},
        "streamed": {"source": "hub", "dataset": str(folder)},
        "downloaded": {"source": "hub", "dataset": str(folder), "streaming": False},
    }[request.param]
    return DataConfig(
        **keys,
        deduplicate="near",
        vocab_size=300,
        validation_fraction=0.2,
        subsample=0.8,
        tokenizer_bytes=5_000,
        shard_tokens=4_000,
        directory=str(tmp_path / "corpora"),
    )


def test_goes_on_after_an_interruption(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data.corpus.prepare, "_BATCH_BYTES", 4_000)
    whole = prepare(dataclasses.replace(config, directory=str(tmp_path / "whole")), progress=False)
    encode, batches = data.corpus.prepare._encode, []

    def interrupted(tokenizer, batch, config):
        batches.append(len(batch))
        if len(batches) in (9, 12):
            raise KeyboardInterrupt
        return encode(tokenizer, batch, config)

    monkeypatch.setattr(data.corpus.prepare, "_encode", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    assert not list(Path(config.directory).glob("[!.]*-*"))
    resumed = prepare(config)
    assert capsys.readouterr().err.count("going on after the first") == 2
    documents = sum(batches)
    again = open_corpus(resumed).manifest
    assert documents < 1.5 * (again.train.documents + again.validation.documents)  # not three times all of them
    assert again == dataclasses.replace(open_corpus(whole).manifest, config=again.config)
    assert sorted(path.name for path in resumed.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert again.dropped["duplicate"] == 20
    assert again.dropped["near_duplicate"] >= 15
    assert not list(Path(config.directory).glob(".*.partial"))


def test_without_a_whole_shard_it_begins_anew(config, monkeypatch, capsys):
    monkeypatch.setattr(data.corpus.prepare, "_encode", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(config)
    assert not list(Path(config.directory).glob(".*.partial"))
    monkeypatch.undo()
    prepare(config)
    assert "going on" not in capsys.readouterr().err
