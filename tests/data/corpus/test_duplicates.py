"""Which documents count as repeated, which share of the text is used, and a user's own transform."""

import dataclasses
import json
import random

import numpy as np
import pytest

from data.config import DataConfig, DataError
from data.corpus.duplicates import Duplicates
from data.corpus.prepare import prepare
from data.corpus.shards import open_corpus, read_manifest


def words(count, seed):
    return random.Random(seed).choices([f"word{i}" for i in range(5000)], k=count)


def test_exact_duplicates_differ_in_case_and_white_space_at_most():
    seen = Duplicates("exact", 0.8)
    assert seen.kind("One two\nthree.") is None
    assert seen.kind("ONE  two three. ") == "exact"
    assert seen.kind("One two three!") is None
    assert Duplicates("none", 0.8).kind("") is None


def test_near_duplicates_share_most_of_their_word_sequences():
    seen = Duplicates("near", 0.8)
    texts = [words(400, seed) for seed in range(30)]
    assert [seen.kind(" ".join(text)) for text in texts] == [None] * 30
    for text in texts:
        edited = text.copy()
        edited[200] = "edited"  # 5 of some 396 sequences: a similarity of .975
        assert seen.kind(" ".join(edited)) == "near"
        halved = text[:200] + words(200, str(text[0]))  # a similarity of 1/3
        assert seen.kind(" ".join(halved)) is None
    assert seen.kind("short") is None
    assert seen.kind("Short") == "exact"


@pytest.fixture
def config(tmp_path):
    """300 documents, every tenth of which is one word from another."""
    rows = [words(60, i) for i in range(270)]
    rows += [[*row[:-1], "changed"] for row in rows[::9]]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": " ".join(row)}) + "\n" for row in rows))
    return DataConfig(
        source="files", files=(str(path),), vocab_size=300, validation_fraction=0.2, directory=str(tmp_path / "corpora")
    )


def test_the_manifest_counts_near_duplicates(config):
    kept = read_manifest(prepare(config, progress=False))
    assert (kept.dropped["near_duplicate"], kept.train.documents + kept.validation.documents) == (0, 300)
    cleaned = read_manifest(prepare(dataclasses.replace(config, deduplicate="near"), progress=False))
    assert (cleaned.dropped["near_duplicate"], cleaned.train.documents + cleaned.validation.documents) == (30, 270)


def test_fractions_are_nested_and_share_tokenizer_and_validation_set(config):
    def documents(fraction, seed=0):
        corpus = open_corpus(prepare(dataclasses.replace(config, subsample=fraction, subset_seed=seed), progress=False))
        tokens = corpus.train.read(0, len(corpus.train))
        parts = np.split(tokens, np.flatnonzero(tokens == corpus.end_of_text_id) + 1)
        return {part.tobytes() for part in parts[:-1]}, corpus.manifest

    (whole, all_of_it), (half, middle), (tenth, least) = map(documents, (1.0, 0.5, 0.1))
    assert tenth < half < whole
    assert 0.35 < len(half) / len(whole) < 0.65
    assert all_of_it.validation == middle.validation == least.validation
    assert all_of_it.tokenizer == middle.tokenizer == least.tokenizer
    assert documents(0.1, seed=1)[0] != tenth
    with pytest.raises(DataError, match="leaves none of the training documents"):
        documents(1e-9)


TRANSFORM = """
def upper(text):
    return text.upper() if "word1" in text else ""

def broken(text):
    return text[10_000]

def number(text):
    return 3
"""


def test_a_transform_is_applied_and_part_of_the_identity(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user_transform.py").write_text(TRANSFORM)

    def prepared(name):
        return prepare(dataclasses.replace(config, transform=name), progress=False)

    directory = prepared("user_transform:upper")
    corpus = open_corpus(directory)
    from data.corpus.tokenizer import load

    text = load(directory / "tokenizer.json").decode(corpus.train.read(0, len(corpus.train)))
    assert "WORD1" in text
    assert "word" not in text
    assert corpus.manifest.source["transform"].startswith("user_transform:upper@")
    assert directory != prepare(config, progress=False)
    with pytest.raises(DataError, match=r"failed on the document that begins 'word.*IndexError"):
        prepared("user_transform:broken")
    with pytest.raises(DataError, match="returned int, not text"):
        prepared("user_transform:number")
    with pytest.raises(DataError, match="has no function 'none'"):
        prepared("user_transform:none")
    with pytest.raises(DataError, match="'no_such_module' cannot be imported"):
        prepared("no_such_module:f")
