"""A prepared corpus can be trusted: damage to any file is found and named before it is read."""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.config import DataConfig, DataError
from data.corpus.prepare import prepare
from data.corpus.shards import open_corpus, read_manifest
from data.loading.batches import batch

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A prepared corpus with several shards of 500 tokens."""
    root = tmp_path_factory.mktemp("corpus")
    texts = [f"Document {i} says that {i * i} is the square of {i}." for i in range(100)]
    (root / "text.txt").write_text("\n".join(texts))
    config = DataConfig(
        source="files",
        files=(str(root / "text.txt"),),
        text_unit="line",
        vocab_size=290,
        validation_fraction=0.2,
        shard_tokens=500,
        directory=str(root / "corpora"),
    )
    return prepare(config, progress=False)


@pytest.fixture
def directory(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / pristine.name))


FILES = ["train-00000.bin", "train-00002.bin", "validation-00000.bin", "token_bytes.bin", "tokenizer.json"]


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_found_and_the_file_named(directory, name):
    content = bytearray((directory / name).read_bytes())
    content[len(content) // 2] ^= 1
    (directory / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}' is damaged: its checksum differs .* prepare it again"):
        open_corpus(directory)
    open_corpus(directory, verify=False)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_short_and_missing_files_are_named_even_without_checksums(directory, name, verify):
    content = (directory / name).read_bytes()
    (directory / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"{name}' is damaged: it has [\d,]+ bytes and should have [\d,]+"):
        open_corpus(directory, verify=verify)
    (directory / name).unlink()
    with pytest.raises(DataError, match=rf"{name}' is missing"):
        open_corpus(directory, verify=verify)


def test_a_file_damaged_after_it_was_verified_is_found_again(directory):
    open_corpus(directory)
    path = directory / "train-00000.bin"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataError, match=r"train-00000\.bin' is damaged"):
        open_corpus(directory)


def test_a_directory_without_a_manifest_is_no_corpus(directory):
    (directory / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"has no manifest\.json, so it is not a whole corpus"):
        open_corpus(directory)
    with pytest.raises(DataError, match="there is no prepared corpus at"):
        open_corpus(directory / "nowhere")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda tree: tree.update(schema=99), "has schema 99 and this version reads 1"),
        (lambda tree: tree["train"].update(tokens=7), "was changed after it was written"),
        (lambda tree: tree.pop("dtype"), "was changed after it was written"),
    ],
)
def test_an_edited_manifest_is_refused(directory, change, sentence):
    tree = json.loads((directory / "manifest.json").read_text())
    change(tree)
    (directory / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=sentence):
        open_corpus(directory)


def signed(tree):
    """The manifest with its hash made right, as somebody who means harm would."""
    from data.files import tree_hash

    tree.pop("sha256", None)
    return json.dumps({**tree, "sha256": tree_hash(tree)})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda tree: tree["train"].update(tokens=7), r"train\.tokens: is not the sum over the shards"),
        (lambda tree: tree["train"]["shards"][0].update(file="../../secret"), "is not the name of a file"),
        (lambda tree: tree["tokenizer"].update(end_of_text_id=290), "end_of_text_id: is not in the vocabulary"),
        (lambda tree: tree["tokenizer"].update(vocab_size=70000), "'uint16' cannot hold 70000 tokens"),
        (lambda tree: tree["tokenizer"].update(vocab_size=291), "does not match the vocabulary"),
        (lambda tree: tree.update(files=[]), r"files: must list tokenizer\.json and token_bytes\.bin"),
        (lambda tree: tree.update(more=1), "more: unknown key"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(directory, change, sentence):
    tree = json.loads((directory / "manifest.json").read_text())
    change(tree)
    (directory / "manifest.json").write_text(signed(tree))
    with pytest.raises(DataError, match=sentence):
        open_corpus(directory)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(data=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_manifest_whatever_it_says_raises_anything_else(directory, pristine, data):
    tree = json.loads((pristine / "manifest.json").read_text())
    node, key = tree, data.draw(st.sampled_from(sorted(tree)))
    while isinstance(node[key], dict) and node[key] and data.draw(st.booleans()):
        node = node[key]
        key = data.draw(st.sampled_from(sorted(node)))
    node[key] = data.draw(JSON)
    (directory / "manifest.json").write_text(signed(tree))
    with contextlib.suppress(DataError):
        open_corpus(directory)


@given(st.binary(max_size=100))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_noise_is_no_manifest(directory, noise):
    (directory / "manifest.json").write_bytes(noise)
    with pytest.raises(DataError):
        read_manifest(directory)


def test_a_prepared_corpus_is_read_with_numpy_alone(pristine):
    """A training node needs neither the text nor the libraries that prepared it."""
    code = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("datasets", "tokenizers", "pyarrow", "pandas", "torch", "huggingface_hub"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
from data.corpus.shards import open_corpus
from data.loading.batches import batch
from data.config import DataConfig, DataError
from data.corpus.prepare import prepare
directory = prepare(DataConfig(source="prepared", prepared={str(pristine)!r}, vocab_size=290))
print(int(batch(open_corpus(directory), 0, 5, 4, 32).sum()))
try:
    prepare(DataConfig(source="files", files=(__file__,), directory={str(pristine.parent / "blocked")!r}))
except DataError as error:
    print(error)
"""
    script = pristine.parent / "read.txt"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    total, sentence = done.stdout.splitlines()
    assert int(total) == batch(open_corpus(pristine), 0, 5, 4, 32).sum()
    assert sentence.startswith("reading files needs the 'datasets' library")
