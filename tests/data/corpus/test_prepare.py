"""Text to shards: what is kept, how it is split, and that a crash or a rival leaves nothing half done."""

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.reader import ConfigError, build
from data.config import DataConfig, DataError
from data.corpus.documents import Tally, documents, is_validation, split_position
from data.corpus.duplicates import Duplicates
from data.corpus.prepare import prepare
from data.corpus.shards import open_corpus
from data.corpus.tokenizer import END_OF_TEXT, load, train

ROOT = Path(__file__).parents[3]
AWKWARD = [
    f"spelled out: {END_OF_TEXT} is text here",
    "tabs\t and \r\n line ends\r",
    "null \x00 and control \x1b",
    "accents: naïve, e\u0301; ligature ﬁ; 漢字; 𝄞; 🏳️‍🌈",
    "\ufeffbyte order mark",
    "  leading and trailing  ",
]


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text, "title": "t"}) + "\n" for text in texts))
    return str(path)


def sentences(count):
    return [f"Document {i} says that {i * i} is the square of {i}." for i in range(count)]


@pytest.fixture
def config(tmp_path):
    """A corpus of 200 short documents, awkward ones among them, one of them twice, two without text."""
    texts = sentences(200) + AWKWARD + ["", " \n", sentences(1)[0]]
    return DataConfig(
        source="files",
        files=(write_jsonl(tmp_path / "text.jsonl", texts),),
        vocab_size=300,
        validation_fraction=0.2,
        directory=str(tmp_path / "corpora"),
    )


def read_documents(corpus, tokenizer):
    """Decode every document of both splits."""
    found = {}
    for name in ("train", "validation"):
        tokens = getattr(corpus, name).read(0, len(getattr(corpus, name)))
        ends = np.flatnonzero(tokens == corpus.end_of_text_id)
        assert ends[-1] == len(tokens) - 1
        found[name] = [tokenizer.decode(part[:-1]) for part in np.split(tokens, ends + 1)[:-1]]
    return found


def test_every_document_is_kept_exactly_and_on_one_side(config):
    directory = prepare(config, progress=False)
    corpus = open_corpus(directory)
    found = read_documents(corpus, load(directory / "tokenizer.json"))
    expected = {*sentences(200), *AWKWARD}
    assert sorted(found["train"] + found["validation"]) == sorted(expected)
    assert 20 < len(found["validation"]) < 65  # .2 of 206, four standard deviations
    manifest = corpus.manifest
    assert manifest.dropped == {"empty": 2, "duplicate": 1, "near_duplicate": 0, "left_out": 0}
    for name in ("train", "validation"):
        split = getattr(manifest, name)
        assert split.documents == len(found[name])
        assert split.bytes == sum(len(text.encode()) for text in found[name])
        tokens = getattr(corpus, name).read(0, split.tokens)
        assert corpus.token_bytes[tokens].sum() == split.bytes
    assert manifest.dtype == "uint16"
    assert corpus.vocab_size == 300


def test_preparing_again_changes_nothing(config):
    directory = prepare(config, progress=False)
    before = {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}
    assert prepare(config, progress=False) == directory
    assert {path.name: path.stat().st_mtime_ns for path in directory.iterdir()} == before


def test_tokens_are_deterministic_and_the_name_follows_what_determines_them(config, tmp_path):
    first = prepare(config, progress=False)
    elsewhere = dataclasses.replace(config, directory=str(tmp_path / "other"))
    second = prepare(elsewhere, progress=False)
    assert first.name == second.name
    assert open_corpus(first).fingerprint == open_corpus(second).fingerprint
    assert prepare(dataclasses.replace(config, seed=1), progress=False).name != first.name
    write_jsonl(Path(config.files[0]), sentences(201))
    assert prepare(config, progress=False).name != first.name


def test_small_shards_hold_the_same_tokens(config):
    whole = open_corpus(prepare(config, progress=False))
    cut = open_corpus(prepare(dataclasses.replace(config, shard_tokens=100), progress=False))
    assert len(cut.train.shards) == -(-len(whole.train) // 100)
    assert np.array_equal(cut.train.read(0, len(cut.train)), whole.train.read(0, len(whole.train)))
    assert cut.manifest.train.documents == whole.manifest.train.documents
    assert cut.manifest.train.bytes == whole.manifest.train.bytes


def test_wide_vocabulary_uses_uint32(config, tmp_path):
    tokenizer = train(sentences(50), 300)
    tokenizer.backend.add_tokens([f"<extra {i}>" for i in range(2**16)])
    (tmp_path / "wide.json").write_text(tokenizer.to_json())
    wide = dataclasses.replace(config, tokenizer=str(tmp_path / "wide.json"), vocab_size=2**16 + 300)
    corpus = open_corpus(prepare(wide, progress=False))
    assert corpus.manifest.dtype == "uint32"
    assert corpus.manifest.train.bytes > 5000


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_every_text_has_tokens_that_give_it_back(text):
    tokenizer = test_every_text_has_tokens_that_give_it_back.tokenizer
    (ids,) = tokenizer.encode([text])
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())
    assert tokenizer.end_of_text_id not in ids


test_every_text_has_tokens_that_give_it_back.tokenizer = train(sentences(50), 300)


@given(st.lists(st.text(max_size=5), max_size=30), st.integers(0, 3), st.sampled_from(["none", "exact"]))
@settings(max_examples=100, deadline=None)
def test_split_is_by_content(texts, seed, deduplicate):
    found = list(documents(texts, None, Duplicates(deduplicate, 0.8), Tally()))
    sides: dict[str, set[float]] = {}
    for document in found:
        sides.setdefault(document.text, set()).add(split_position(document, seed))
    assert all(len(places) == 1 for places in sides.values())
    kept = [text for text in texts if text.strip()]
    if deduplicate == "exact":
        alike = [" ".join(unicodedata.normalize("NFC", text).casefold().split()) for text in kept]
        kept = [text for i, text in enumerate(kept) if alike[i] not in alike[:i]]
    assert [d.text for d in found] == kept


def test_split_takes_its_fraction_and_depends_on_the_seed():
    found = list(documents(sentences(4000), None, Duplicates("exact", 0.8), Tally()))
    sides = [[is_validation(d, DataConfig(seed=s, validation_fraction=0.1)) for d in found] for s in (0, 1)]
    assert 324 < sum(sides[0]) < 476  # 400 +- 4 standard deviations
    assert sides[0] != sides[1]


def test_a_lone_surrogate_becomes_the_replacement_character():
    (document,) = documents(["a\ud800b"], None, Duplicates("exact", 0.8), Tally())
    assert (document.text, document.size) == ("a\ufffdb", 5)


def test_max_bytes_takes_whole_documents_in_order():
    tally = Tally()
    assert [d.text for d in documents(["aaaa", "ééé", "b"], 9, Duplicates("exact", 0.8), tally)] == ["aaaa"]
    assert (tally.kept, tally.bytes, tally.capped) == (1, 4, True)
    assert [d.text for d in documents(["aaaa", "ééé", "b"], 10, Duplicates("exact", 0.8), Tally())] == ["aaaa", "ééé"]


# ------------------------------------------------------------------------------- crashes and rivals


@pytest.mark.parametrize("moment", ["write_manifest", "replace_directory"])
def test_kill_in_the_middle_leaves_no_half_corpus(config, moment):
    """Killed while it writes, a preparation leaves no corpus, and the next one starts over and succeeds."""
    code = (
        "import os, signal, sys; import data.corpus.prepare as p; from data.config import DataConfig\n"
        "def die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"p.{moment} = die\n"
        f"p.prepare(DataConfig(**{dataclasses.asdict(config)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    left = os.listdir(config.directory)
    assert any(name.endswith(".partial") for name in left)
    assert all(name.startswith(".") for name in left)
    directory = prepare(config, progress=False)
    assert open_corpus(directory).manifest.train.documents > 100
    assert sorted(os.listdir(config.directory)) == sorted([f".{directory.name}.lock", directory.name])


def test_a_failure_clears_up(config, monkeypatch):
    monkeypatch.setattr("data.corpus.prepare.write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare(config, progress=False)
    assert all(name.endswith(".lock") for name in os.listdir(config.directory))


def _prepare_and_report(config, barrier, queue):
    barrier.wait()
    started = time.time()
    directory = prepare(config, progress=False)
    queue.put((str(directory), started, (directory / "manifest.json").stat().st_mtime_ns))


def test_concurrent_callers_prepare_once(config):
    spawn = multiprocessing.get_context("spawn")
    barrier, queue = spawn.Barrier(2), spawn.Queue()
    callers = [spawn.Process(target=_prepare_and_report, args=(config, barrier, queue)) for _ in range(2)]
    for caller in callers:
        caller.start()
    (first, started_a, written_a), (second, started_b, written_b) = (queue.get(timeout=60) for _ in callers)
    for caller in callers:
        caller.join(timeout=60)
    assert first == second
    assert written_a == written_b
    assert max(started_a, started_b) * 1e9 < written_a  # both began before it was there
    open_corpus(Path(first))


def test_disk_full_is_one_sentence_and_leaves_nothing(config):
    code = (
        "import resource; from data.config import DataConfig, DataError; from data.corpus.prepare import prepare\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        f"try: prepare(DataConfig(**{dataclasses.asdict(config)!r}), progress=False)\n"
        "except DataError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert "cannot be written: File too large" in done.stdout, done.stderr
    assert all(name.endswith(".lock") for name in os.listdir(config.directory))


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"vocab_size": 256}, r"vocab_size: 256 is below 257"),
        ({"validation_fraction": 0.0}, r"validation_fraction: 0.0 is not between 0 and 1"),
        ({"max_bytes": 0}, r"max_bytes: 0 is below 1"),
        ({"source": "files"}, r"files: is required with source: files"),
        ({"source": "hub"}, r"dataset: is required with source: hub"),
        ({"source": "prepared"}, r"prepared: is required with source: prepared"),
        ({"files": ["a.txt"]}, r"files: is given but source is 'python_source'; set source: files"),
        ({"revision": "main"}, r"revision: applies to source: hub, and source is 'python_source'"),
        ({"source": "python_sorce"}, r"source: \"python_sorce\" is not one of .*; nearest is 'python_source'"),
        ({"vocabsize": 512}, r"vocabsize: unknown key; did you mean 'vocab_size'"),
    ],
)
def test_impossible_settings_are_named(change, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build(DataConfig, change, "run.yaml")


def test_settings_made_in_code_are_checked_too():
    with pytest.raises(DataError, match=r"data\.vocab_size: 3 is below 257"):
        prepare(DataConfig(vocab_size=3))


@pytest.mark.parametrize(
    ("texts", "change", "sentence"),
    [
        (["", "  "], {}, r"source 'files' holds no documents with text \(2 were empty\)"),
        (["one document of a few words"], {}, r"the corpus is one document; .*text_unit: paragraph"),
        (sentences(9), {"validation_fraction": 1e-9}, r"of 9 documents none is held out; set .*fraction: 0\.\d+ or"),
        (sentences(9), {"validation_fraction": 1 - 1e-9}, r"none is left for training; set .* below 0\.\d"),
        (sentences(99), {"vocab_size": 9000}, r"too short for 9000 tokens; it yields \d+, so set vocab_size: \d+"),
        (sentences(9), {"max_bytes": 5}, r"max_bytes: 5 is less than the first document; raise it"),
        (sentences(9), {"text_field": "titel"}, r"no field 'titel' in row 1, only 'text', 'title'; nearest is 'title'"),
        ([5, 6], {}, r"'text' in row 1 of .* is int, not text"),
        (sentences(9), {"tokenizer": "none.json"}, r"data\.tokenizer: there is no file 'none.json'"),
    ],
)
def test_unusable_text_is_one_sentence_and_leaves_nothing(config, texts, change, sentence):
    write_jsonl(Path(config.files[0]), texts)
    with pytest.raises(DataError, match=sentence) as raised:
        prepare(dataclasses.replace(config, **change), progress=False)
    assert "\n" not in str(raised.value)
    assert all(name.endswith(".lock") for name in os.listdir(config.directory))


def test_the_suggested_fraction_and_vocabulary_work(config):
    few = dataclasses.replace(config, validation_fraction=1e-9, vocab_size=257)
    write_jsonl(Path(config.files[0]), sentences(9))
    with pytest.raises(DataError) as raised:
        prepare(few, progress=False)
    fraction = float(str(raised.value).split("validation_fraction: ")[1].split(" or")[0])
    prepare(dataclasses.replace(few, validation_fraction=fraction), progress=False)
    write_jsonl(Path(config.files[0]), sentences(99))
    with pytest.raises(DataError) as raised:
        prepare(dataclasses.replace(config, vocab_size=9000), progress=False)
    size = int(str(raised.value).split("so set vocab_size: ")[1].split(" or")[0])
    prepare(dataclasses.replace(config, vocab_size=size), progress=False)


def test_unusable_directory_is_named(config, tmp_path):
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(DataError, match=r"file/files-text-\w+' cannot be written: "):
        prepare(dataclasses.replace(config, directory=str(tmp_path / "file")), progress=False)


def test_tokenizers_that_do_not_fit_are_named(config, tmp_path):
    from tokenizers import Tokenizer, models, normalizers

    path = tmp_path / "tokenizer.json"
    given = dataclasses.replace(config, tokenizer=str(path))

    path.write_text(train(sentences(99), 290).to_json())
    with pytest.raises(DataError, match=r"300 does not match .*, which has 290 tokens; set vocab_size: 290"):
        prepare(given, progress=False)
    directory = prepare(dataclasses.replace(given, vocab_size=290), progress=False)
    assert open_corpus(directory).manifest.tokenizer.trained_bytes == 0

    path.write_text("{}")
    with pytest.raises(DataError, match=r"is not a tokenizer\.json"):
        prepare(given, progress=False)

    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(path))
    with pytest.raises(DataError, match="is not byte-level"):
        prepare(given, progress=False)

    dropping = train(sentences(99), 300)
    dropping.backend.pre_tokenizer = type(dropping.backend.pre_tokenizer)(add_prefix_space=True)
    path.write_text(dropping.to_json())
    with pytest.raises(DataError, match=r"turns a document of .* bytes into tokens of"):
        prepare(given, progress=False)

    lower = train(sentences(99), 300)
    lower.backend.normalizer = normalizers.Lowercase()  # the corpus is then the normalised text
    path.write_text(lower.to_json())
    assert open_corpus(prepare(given, progress=False)).manifest.train.bytes > 1000


def test_a_prepared_corpus_is_used_as_it_is(config):
    directory = prepare(config, progress=False)
    again = DataConfig(source="prepared", prepared=str(directory), vocab_size=300)
    assert prepare(again) == directory
    with pytest.raises(DataError, match="whose vocabulary has 300 tokens; set vocab_size: 300"):
        prepare(dataclasses.replace(again, vocab_size=512))
    with pytest.raises(DataError, match="there is no prepared corpus at 'nowhere'"):
        prepare(dataclasses.replace(again, prepared="nowhere"))
