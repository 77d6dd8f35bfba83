"""Mixtures: exact proportions from the sequence's number alone, one tokenizer, and what the record says of them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.reader import ConfigError
from data.config import ComponentConfig, DataConfig, DataError
from data.loading.batches import batch
from data.loading.mixture import SHARES, _shares, allocate, allocated, open_mixture, repetitions, training_windows
from tests.conftest import read_record, read_rows, run_ranks
from train.config import load_run
from train.sweep.expand import load_sweep


@st.composite
def shares(draw):
    weights = draw(st.lists(st.integers(0, 100), min_size=1, max_size=8).filter(any))
    return _shares(np.array(weights) / sum(weights))


@given(shares(), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_every_sequence_has_one_place_and_proportions_are_exact_at_every_moment(given, first):
    assert sum(given) == SHARES
    sequence = np.arange(first, first + 64)
    which, number = allocate(sequence, given)
    counts = allocated(first, given)
    depth = int(np.ceil(np.log2(len(given)))) if len(given) > 1 else 0
    for n, (component, place) in enumerate(zip(which.tolist(), number.tolist(), strict=True), first):
        assert place == counts[component]  # the component's own sequences are counted one by one
        counts[component] += 1
        assert counts == allocated(n + 1, given)
        for count, share in zip(counts, given, strict=True):
            assert abs(count - (n + 1) * share / SHARES) <= depth / 2


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A mixture of 3/4 `words` and 1/4 `digits`."""
    folder = tmp_path_factory.mktemp("mixture")
    texts = {
        "words": [f"document {i} is a text of words about the word {'abcdefgh'[i % 8]} and more" for i in range(200)],
        "digits": [f"{i * 7919} {i * 104729} {i**3} {i**2}" for i in range(150)],
    }
    for name, rows in texts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    return DataConfig(
        mixture={
            "words": ComponentConfig(source="files", files=(str(folder / "words.jsonl"),)),
            "digits": ComponentConfig(source="files", files=(str(folder / "digits.jsonl"),), weight=0.25),
        },
        vocab_size=300,
        validation_fraction=0.2,
        directory=str(folder / "corpora"),
    )


def reweighted(config, weight):
    digits = dataclasses.replace(config.mixture["digits"], weight=weight)
    return dataclasses.replace(config, mixture={**config.mixture, "digits": digits})


def test_batches_are_of_the_components_in_their_own_order(two):
    mixture = open_mixture(two, progress=False)
    digits, words = mixture.components
    assert (digits.name, digits.weight, words.weight) == ("digits", 0.25, 0.75)
    rows = np.concatenate([training_windows(mixture, 3, step, 8, 16) for step in range(50)])
    which, _ = allocate(np.arange(400), [c.share for c in mixture.components])
    assert np.bincount(which).tolist() == [100, 300]
    for i, component in enumerate(mixture.components):
        alone = batch(component.corpus, 3, 0, int((which == i).sum()), 16)
        assert np.array_equal(rows[which == i], alone)
    part = training_windows(mixture, 3, 5, 8, 16, slice(2, 6))
    assert np.array_equal(part, rows[42:46])
    repeated = repetitions(mixture, 16, 400 * 16)
    assert [repeated[name].unique_tokens for name in ("digits", "words")] == [
        1600,
        min(4800, repeated["words"].unique_tokens),
    ]


def test_one_component_of_weight_one_trains_as_alone(two):
    mixture = open_mixture(reweighted(two, 1.0), progress=False)
    digits = mixture.components[0].corpus
    assert np.array_equal(training_windows(mixture, 0, 7, 8, 16), batch(digits, 0, 7, 8, 16))


def test_weights_and_fractions_change_neither_tokenizer_nor_validation_set(two):
    mixtures = [open_mixture(reweighted(two, weight), progress=False) for weight in (0.25, 0.5)]
    corpora = [[c.corpus.directory for c in m.components] for m in mixtures]
    assert corpora[0] == corpora[1]
    assert mixtures[0].fingerprint != mixtures[1].fingerprint
    half = dataclasses.replace(two.mixture["words"], subsample=0.5)
    cut = open_mixture(dataclasses.replace(two, mixture={**two.mixture, "words": half}), progress=False)
    whole, words = (m.components[1].corpus.manifest for m in (mixtures[0], cut))
    assert words.tokenizer.sha256 == whole.tokenizer.sha256
    assert words.validation == whole.validation
    assert 0.3 < words.train.documents / whole.train.documents < 0.7
    assert words.dropped["left_out"] == whole.train.documents - words.train.documents


def test_prepared_components_must_share_a_tokenizer(two, tmp_path):
    words = open_mixture(two, progress=False).components[1].corpus.directory
    other = dataclasses.replace(
        two, mixture={}, source="files", files=two.mixture["digits"].files, directory=str(tmp_path)
    )
    digits = open_mixture(other, progress=False).components[0].corpus.directory
    parts = {
        "words": ComponentConfig(source="prepared", prepared=str(words), weight=0.5),
        "digits": ComponentConfig(source="prepared", prepared=str(digits)),
    }
    with pytest.raises(DataError, match="'digits' and 'words' are tokenised differently"):
        open_mixture(dataclasses.replace(two, mixture=parts), progress=False)


RUN = """
model: {style: modern, n_layer: 1, d_model: 16, n_head: 2}
data:
  vocab_size: 300
  validation_fraction: 0.2
  directory: "DIRECTORY"
  mixture:
    words: {source: files, files: ["WORDS"]}
    digits: {source: files, files: ["DIGITS"], weight: 0.25}
train: {sequence_length: 16, global_batch_size: 8, micro_batch_size: 4, steps: 12}
optimizer: {lr: 0.01}
eval: {tokens: 300, interval: 6}
wandb: {mode: disabled}
"""


@pytest.fixture
def run_file(two, tmp_path):
    names = {"DIRECTORY": two.directory} | {n.upper(): c.files[0] for n, c in two.mixture.items()}
    text = RUN
    for word, value in names.items():
        text = text.replace(word, value)
    (tmp_path / "run.yaml").write_text(text)
    return tmp_path / "run.yaml"


def test_a_run_records_every_component(run_file, tmp_path):
    rows = run_ranks(2, run_file, tmp_path / "run")
    record = read_record(tmp_path / "run")
    losses = record["val_loss_by_component"]
    assert record["val_loss"] == pytest.approx(0.25 * losses["digits"] + 0.75 * losses["words"])
    assert rows[-1]["val_loss_by_component"] == losses
    assert record["weight_by_component"] == {"digits": 0.25, "words": 0.75}
    assert record["unique_tokens"] == sum(record["unique_tokens_by_component"].values()) == 12 * 8 * 16
    assert record["bits_per_byte_by_component"].keys() == losses.keys()
    rows = run_ranks(1, run_file, tmp_path / "alone")
    assert read_rows(tmp_path / "run")[-1]["loss"] == pytest.approx(rows[-1]["loss"], rel=1e-5)
    assert 0 < rows[-1]["val_loss_stderr"] == pytest.approx(record["val_loss_stderr"], rel=1e-4)


def test_weights_are_axes_of_a_sweep(run_file, tmp_path):
    (tmp_path / "sweep.yaml").write_text(
        "name: mix\nbase: run.yaml\naxes: {data.mixture.digits.weight: [0.1, 0.25, 1.0], train.steps: [3]}\n"
    )
    runs = load_sweep(tmp_path / "sweep.yaml").runs
    assert [run.config.data.weights["words"] for run in runs] == pytest.approx([0.9, 0.75, 0])
    assert [run.name.rsplit("-", 1)[-1] for run in runs] == ["digits0.1", "384tok", "digits1"]


def test_tokenizers_are_axes_of_a_sweep_and_bring_their_sizes(run_file, tmp_path):
    paths = []
    for size in (280, 300):
        (tokenizer,) = Path(load_run(run_file).data.directory).glob("tokenizer-*.json")
        tree = json.loads(tokenizer.read_text())
        tree["model"]["vocab"] = {token: i for token, i in tree["model"]["vocab"].items() if i < size}
        paths.append(tmp_path / f"bpe{size}.json")
        paths[-1].write_text(json.dumps(tree))
    sweep = (
        f"name: t\nbase: run.yaml\nrun: {{data.vocab_size: null}}\naxes: {{data.tokenizer: [{paths[0]}, {paths[1]}]}}"
    )
    (tmp_path / "sweep.yaml").write_text(sweep)
    runs = load_sweep(tmp_path / "sweep.yaml").runs
    assert [(run.config.data.vocab_size, run.config.model.vocab_size) for run in runs] == [(280, 280), (300, 300)]
    with pytest.raises(ConfigError, match=r"data\.vocab_size: null takes the size of data\.tokenizer"):
        load_run(run_file, ["--data.vocab_size=null"])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("--data.mixture.words.weight=0.5", "data.mixture: the weights sum to 0.75, not to 1; leave one out"),
        ("--data.mixture.digits.weight=null", "words and digits have no weight; only one may be left out"),
        ("--data.mixture.digits.weight=1.5", "data.mixture.digits.weight: 1.5 is not between 0 and 1"),
        ("--data.mixture.digits.wieght=1", "wieght: unknown key; did you mean 'weight'?"),
        ("--data.mixture.digits.files=[]", "data.mixture.digits.files: is required with source: files"),
        ("--data.max_bytes=100", "data.max_bytes: is given beside a mixture; give it to the components"),
    ],
)
def test_mistakes_in_a_mixture_are_named(run_file, override, sentence):
    with pytest.raises(ConfigError) as error:
        load_run(Path(run_file), [override])
    assert sentence in str(error.value)
