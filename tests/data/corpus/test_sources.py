"""Every kind of text can be read, in a fixed order, and what cannot is named."""

import bz2
import gzip
import importlib
import json
import lzma
import os
import pkgutil
import typing

import datasets
import pandas as pd
import pytest

import data.corpus.sources
from data.config import DataConfig, DataError
from data.corpus.sources import open_source
from data.corpus.sources.files import fingerprint

TEXTS = ["first, with a comma", 'second "quoted"\nin two lines', "dritte: größer als zwölf"]


def read(*files, **keys):
    source = open_source(DataConfig(source="files", files=tuple(map(str, files)), **keys))
    return list(source.texts())


def jsonl(texts, field="text"):
    return "".join(json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(texts)).encode()


@pytest.mark.parametrize(
    ("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)]
)
def test_jsonl_plain_and_compressed(tmp_path, suffix, compress):
    path = tmp_path / f"text.jsonl{suffix}"
    path.write_bytes(compress(jsonl(TEXTS)))
    assert read(path) == TEXTS


@pytest.mark.parametrize("name", ["text.csv", "text.tsv", "text.parquet", "text.csv.gz"])
def test_tables(tmp_path, name):
    table = pd.DataFrame({"id": range(3), "body": TEXTS})
    if name.endswith("parquet"):
        table.to_parquet(tmp_path / name)
    else:
        table.to_csv(tmp_path / name, index=False, sep="\t" if ".tsv" in name else ",")
    assert read(tmp_path / name, text_field="body") == TEXTS


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("file", ["a\nb\n\nc\n", "d\n"]),
        ("paragraph", ["a\nb", "c", "d"]),
        ("line", ["a", "b", "", "c", "d"]),
    ],
)
def test_text_files_are_cut_into_the_chosen_unit(tmp_path, unit, expected):
    (tmp_path / "1.txt").write_text("a\nb\n\nc\n")
    (tmp_path / "2.txt").write_text("d\n")
    assert [text.rstrip("\n") for text in read(tmp_path / "*.txt", text_unit=unit)] == [
        text.rstrip("\n") for text in expected
    ]


def test_table_cells_that_look_like_missing_values_are_text(tmp_path):
    (tmp_path / "text.csv").write_text("text,id\nNA,1\n,2\nnull,3\n")
    assert read(tmp_path / "text.csv") == ["NA", "", "null"]


def test_a_row_without_text_is_an_empty_document(tmp_path):
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n{"text": null}\n')
    assert read(tmp_path / "text.jsonl") == ["a", ""]


def test_a_hub_data_set_directory_is_read_by_split(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(jsonl(TEXTS, "body"))
    (tmp_path / "test.jsonl").write_bytes(jsonl(TEXTS[:1], "body"))
    keys = {"source": "hub", "dataset": str(tmp_path), "text_field": "body"}
    assert list(open_source(DataConfig(**keys)).texts()) == TEXTS
    assert list(open_source(DataConfig(**keys, split="test")).texts()) == TEXTS[:1]
    with pytest.raises(DataError, match=r"cannot be read: .*dev"):
        list(open_source(DataConfig(**keys, split="dev")).texts())


def test_hub_records_the_commit_and_reads_exactly_that(monkeypatch):
    asked = {}

    def load_dataset(dataset, /, **options):
        asked.update(options, dataset=dataset)
        return datasets.IterableDataset.from_generator(lambda: iter([{"text": "a"}]))

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("data.corpus.sources.hub._commit", lambda dataset, revision: f"commit-of-{revision}")
    source = open_source(DataConfig(source="hub", dataset="some/set", subset="en", revision="v1"))
    assert list(source.texts()) == ["a"]
    assert asked == {
        "dataset": "some/set",
        "name": "en",
        "split": "train",
        "revision": "commit-of-v1",
        "streaming": True,
    }
    assert source.details == {"commit": "commit-of-v1"}
    assert source.name == "hub-some-set"


def test_an_unreachable_hub_is_one_sentence(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", fail)
    source = open_source(DataConfig(source="hub", dataset="some/set", revision="v1"))
    with pytest.raises(DataError, match="'some/set' at revision 'v1' cannot be read from the hub: no route"):
        list(source.texts())


# ------------------------------------------------------------------------------------------ pysource


def installation(root, monkeypatch):
    """A small interpreter: a standard library with an old site-packages inside, and one installed package."""
    library, site = root / "lib", root / "venv"
    files = {
        library / "os.py": b"import sys\n",
        library / "email" / "parser.py": b"class Parser: ...\n",
        library / "latin.py": "# gr\u00f6\u00dfer\n".encode("latin-1"),
        library / "__pycache__" / "os.py": b"not source\n",
        library / "site-packages" / "old.py": b"not ours\n",
        library / "table.py": b"# generated\n" * 10_000,
        library / "notes.txt": b"not Python\n",
        site / "pkg" / "core.py": b"def f(): ...\n",
    }
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    paths = {"stdlib": str(library), "platlib": str(site), "purelib": str(site)}
    monkeypatch.setattr("sysconfig.get_paths", lambda: paths)


def test_pysource_reads_each_module_once_in_an_order_of_its_own(tmp_path, monkeypatch):
    installation(tmp_path / "one", monkeypatch)
    texts = list(open_source(DataConfig()).texts())
    assert sorted(texts) == ["class Parser: ...\n", "def f(): ...\n", "import sys\n"]
    installation(tmp_path / "elsewhere", monkeypatch)
    monkeypatch.setattr("os.walk", lambda top, walk=os.walk: reversed(list(walk(top))))
    again = [text for text in open_source(DataConfig()).texts() if not text.startswith("not ")]
    assert again == texts


def test_pysource_is_capped_by_default_and_its_name_does_not_follow_installed_packages(tmp_path, monkeypatch):
    before = open_source(DataConfig())
    installation(tmp_path, monkeypatch)
    assert open_source(DataConfig()).identity == before.identity
    assert before.max_bytes == 32_000_000
    assert open_source(DataConfig(max_bytes=10)).max_bytes == 10


# -------------------------------------------------------------------------------------------- errors


def test_missing_files_are_named_with_the_nearest(tmp_path):
    (tmp_path / "books.jsonl").write_bytes(jsonl(TEXTS))
    with pytest.raises(DataError, match=r"no file matches '.*book\.jsonl'; nearest is '.*books\.jsonl'"):
        read(tmp_path / "book.jsonl")
    with pytest.raises(DataError, match=r"there is no directory '.*nowhere'"):
        read(tmp_path / "nowhere" / "*.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("empty.jsonl", b"", r"'.*empty\.jsonl' is empty"),
        ("text.docx", b"x", r"'.*text\.docx' is of an unknown format; known are \.txt, .*\.parquet"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": ', r"'.*broken\.jsonl' cannot be read after row 0: "),
        ("latin.txt", "größer".encode("latin-1"), r"'.*latin\.txt' cannot be read after row 0: .*utf-8"),
        ("broken.parquet", b"PAR1 not really", r"'.*broken\.parquet' cannot be read"),
        ("torn.jsonl.xz", lzma.compress(jsonl(TEXTS))[:60], r"'.*torn\.jsonl\.xz' cannot be read"),
        ("field.jsonl", jsonl(TEXTS, "txet"), r"no field 'text' in row 1, only 'id', 'txet'; nearest is 'txet'"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=sentence) as raised:
        read(tmp_path / name)
    assert "\n" not in str(raised.value)


def test_one_format_at_a_time(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.jsonl").write_bytes(jsonl(TEXTS))
    with pytest.raises(DataError, match=r"several formats \(json, text\)"):
        read(tmp_path / "*")


def test_fingerprint_sees_every_byte_of_a_small_file_and_the_size_of_any(tmp_path):
    path = tmp_path / "x"
    seen = set()
    for content in (b"abc", b"abd", b"abcd", b"a" * 2**20, b"a" * 2**20 + b"b"):
        path.write_bytes(content)
        seen.add(fingerprint(path))
    assert len(seen) == 5


def test_every_source_of_the_configuration_is_a_module_that_opens_it():
    named = {*typing.get_args(typing.get_type_hints(DataConfig)["source"])} - {"prepared"}  # read as it lies
    assert named == {module.name for module in pkgutil.iter_modules(data.corpus.sources.__path__)}
    for name in named:
        assert callable(importlib.import_module(f"data.corpus.sources.{name}").open_source)
