"""A run of any topology and precision becomes one fp32 file, and a model that transformers computes alike."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.cli import Status
from configs.reader import build
from data.corpus import tokenizer as tokenizers
from data.corpus.shards import open_corpus
from data.loading.batches import validation_windows
from model.config import ModelConfig, expand_model
from model.huggingface import NoCounterpart, architecture, huggingface_config, huggingface_weights
from model.transformer import GPT
from scripts.export import LEFT_OUT, main
from tests.conftest import read_record, run_ranks
from train.config import load_run

TP2 = "--parallel.tensor_parallel=2"
LOGITS = 1e-4
"""Largest difference of a logit in fp32; logits here are of order 1 to 10."""

COMPLETEP = {"parametrization": "completep", "base_d_model": 16, "base_d_head": 2, "base_n_layer": 1}


def model_config(**keys: Any) -> ModelConfig:
    tree = {"n_layer": 2, "d_model": 32, "n_head": 4, "vocab_size": 97, "context_length": 24, **keys}
    return build(ModelConfig, tree, "test", expand=expand_model)


def random_model(config: ModelConfig) -> GPT:
    """A model in which every parameter matters: norms away from 1, biases from 0, matrices large."""
    generator = torch.Generator().manual_seed(3)
    model = GPT(config)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        parameter.data = 1 + 0.3 * values if is_norm else 0.2 * values
    return model


@torch.no_grad()
def largest_difference(model: GPT, directory: Path) -> float:
    """Largest difference between our logits and those of transformers on random tokens of the whole context."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(5)
    tokens_BT = torch.randint(model.config.vocab_size, (3, model.config.context_length), generator=generator)
    ours = model.logits(tokens_BT)
    assert ours.std() > 0.01
    return (ours - theirs(tokens_BT).logits).abs().max().item()


# ---------------------------------------------------------------------------------- the same function


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        pytest.param({"style": "gpt2"}, "GPT2LMHeadModel", id="gpt2"),
        pytest.param({"style": "gpt2", "tie_embeddings": False, "d_ff": 40}, "GPT2LMHeadModel", id="gpt2-untied"),
        pytest.param({"style": "gpt2", "bias": False}, "GPT2LMHeadModel", id="gpt2-no-bias"),
        pytest.param({"style": "modern", "rope_theta": 500.0}, "Qwen3ForCausalLM", id="modern"),
        pytest.param(
            {"style": "modern", "tie_embeddings": False, "norm_eps": 0.01}, "Qwen3ForCausalLM", id="modern-untied"
        ),
        pytest.param({"style": "modern", "qk_norm": False}, "LlamaForCausalLM", id="llama"),
        pytest.param(
            {"style": "modern", "qk_norm": False, "bias": True, "tie_embeddings": False},
            "LlamaForCausalLM",
            id="llama-bias",
        ),
        pytest.param({"style": "gpt2", **COMPLETEP}, "GPT2LMHeadModel", id="gpt2-completep"),
        pytest.param({"style": "modern", **COMPLETEP}, "Qwen3ForCausalLM", id="modern-completep"),
        pytest.param({"style": "modern", "qk_norm": False, **COMPLETEP}, "LlamaForCausalLM", id="llama-completep"),
    ],
)
def test_transformers_gives_the_same_logits(keys: dict[str, Any], name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    config = model_config(**keys)
    model = random_model(config)
    described = huggingface_config(config, end_of_text_id=0)
    assert described["architectures"] == [name]
    (tmp_path / "config.json").write_text(json.dumps(described))
    save_file(huggingface_weights(config, model.state_dict()), tmp_path / "model.safetensors", {"format": "pt"})
    assert largest_difference(model, tmp_path) < LOGITS
    # The comparison notices a single weight: of the first key projection, whose effect on a logit is indirect.
    model.blocks[0].attention.qkv.weight.data[config.d_model, 0] += 0.1
    assert largest_difference(model, tmp_path) > LOGITS


@pytest.mark.parametrize(
    ("keys", "conflict", "nearest"),
    [
        ({"style": "gpt2", "mlp": "swiglu"}, ["mlp=swiglu", "positions=learned"], "mlp=gelu (GPT2LMHeadModel)"),
        ({"style": "gpt2", "qk_norm": True}, ["qk_norm=true"], "qk_norm=false (GPT2LMHeadModel)"),
        ({"style": "modern", "bias": True}, ["qk_norm=true", "bias=true"], "qk_norm=false (LlamaForCausalLM)"),
        ({"style": "modern", "norm": "layernorm"}, ["norm=layernorm"], "norm=rmsnorm (Qwen3ForCausalLM)"),
        ({"style": "modern", "positions": "learned", "qk_norm": False}, ["learned"], "rope (LlamaForCausalLM)"),
    ],
)
def test_blocks_without_counterpart_are_refused(keys: dict[str, Any], conflict: list[str], nearest: str) -> None:
    config = model_config(**keys)
    with pytest.raises(NoCounterpart) as caught:
        architecture(config)
    message = str(caught.value)
    assert all(f"{word}" in message.split("nearest")[0] for word in conflict)
    assert message.split("nearest is ")[1].endswith(nearest)
    assert "\n" not in message
    # What it calls nearest is accepted.
    key, value = message.split("nearest is model.")[1].split(" ")[0].split("=")
    fixed = {"true": True, "false": False}.get(value, value)
    assert architecture(model_config(**keys | {key: fixed})).name in nearest


# ------------------------------------------------------------------------------------------ real runs


def train(small_run: Path, run_dir: Path, world_size: int, *overrides: str) -> Path:
    """A short run with checkpoints at steps 4 and 8."""
    run_ranks(world_size, small_run, run_dir, "--train.steps=8", "--checkpoint.interval=4", *overrides)
    return run_dir


@torch.no_grad()
def validation_loss(model: GPT, run_dir: Path) -> list[float]:
    """The run's validation loss and its standard error in nats per token, computed by the plain model."""
    run = load_run(run_dir / "config.yaml")
    corpus = open_corpus(Path(run.data.directory) / read_record(run_dir)["corpus"])
    windows = validation_windows(corpus, run.train.sequence_length, run.eval.tokens)
    windows_NT = torch.from_numpy(windows[:])
    losses_N = model.eval()(windows_NT[:, :-1], windows_NT[:, 1:])
    return [losses_N.mean().item(), losses_N.std().item() / len(losses_N) ** 0.5]


def load_plain(out: Path) -> GPT:
    model = GPT(load_run(out / "plain/config.yaml").model)
    model.load_state_dict(load_file(out / "plain/model.safetensors"))
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "overrides", "tolerance"),
    [
        pytest.param(1, ["--model.style=gpt2", "--model.tie_embeddings=false"], 1e-5, id="plain-untied"),
        pytest.param(2, ["--precision=bf16", "--parallel.zero_stage=2"], 2e-2, id="bf16-zero2-dp2"),
        pytest.param(
            2,
            ["--parallel.zero_stage=3", "--parallel.tensor_parallel=2", "--model.qk_norm=false"],
            1e-5,
            id="zero3-tp2",
        ),
        pytest.param(2, ["--precision=bf16", "--parallel.pipeline_stages=2"], 2e-2, id="bf16-pp2"),
    ],
)
def test_export_is_the_trained_model(
    world_size: int, overrides: list[str], tolerance: float, small_run: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    run_dir, out = train(small_run, tmp_path / "run", world_size, *overrides), tmp_path / "out"
    assert main([str(run_dir), "--out", str(out)]) == 0
    record, model = read_record(run_dir), load_plain(out)
    assert sum(parameter.numel() for parameter in model.parameters()) == record["N"]
    measured = [record["val_loss"], record["val_loss_stderr"]]
    assert measured == pytest.approx(validation_loss(model, run_dir), abs=tolerance, rel=0)
    if record["precision"] == "bf16":  # the masters, not bf16 weights made wider
        weights = load_file(out / "plain/model.safetensors").values()
        assert not any(torch.equal(weight, weight.bfloat16().float()) for weight in weights if weight.ndim == 2)
    assert largest_difference(model, out) < LOGITS

    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    ours = tokenizers.load(out / "tokenizer.json")
    text = "Grüße, 1234  words\n"
    assert tokenizer(text)["input_ids"] == ours.encode([text])[0]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token_id == ours.end_of_text_id


@pytest.fixture(scope="module")
def mixed_run(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bf16 run of blocks that transformers does not have."""
    run_dir = tmp_path_factory.mktemp("mixed") / "run"
    return train(small_run, run_dir, 1, "--model.style=gpt2", "--model.mlp=swiglu", "--precision=bf16")


@pytest.fixture
def copied(mixed_run: Path, tmp_path: Path) -> Path:
    """A copy of that run to damage."""
    return shutil.copytree(mixed_run, tmp_path / "run")


@pytest.mark.slow
class TestMixedRun:
    def test_plain_file_is_written_without_counterpart(
        self, mixed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        assert main([str(mixed_run), "--out", str(out)]) == LEFT_OUT
        complaint = capsys.readouterr().err
        assert "model.mlp=swiglu" in complaint
        assert "model.mlp=gelu" in complaint
        assert complaint.count("\n") == 1
        assert abs(validation_loss(load_plain(out), mixed_run)[0] - read_record(mixed_run)["val_loss"]) < 2e-2
        assert not (out / "config.json").exists()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]

    def test_steps(self, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        main([str(copied), "--out", str(tmp_path / "four"), "--step", "4"])
        main([str(copied), "--out", str(tmp_path / "eight")])
        assert "step 4," in (said := capsys.readouterr().out)
        assert "step 8," in said
        four, eight = (load_plain(tmp_path / name).state_dict() for name in ("four", "eight"))
        assert not torch.equal(four["embedding.weight"], eight["embedding.weight"])

        victim = next(copied.glob("checkpoints/step-00000008/state-*.safetensors"))
        victim.write_bytes(victim.read_bytes()[:-1])
        main([str(copied), "--out", str(tmp_path / "newest")])
        said = capsys.readouterr()
        assert victim.name in said.err
        assert "step 4," in said.out

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["{run}", "--out", "{new}", "--step", "5"], "there are those of 4, 8"),
            (["{run}", "--out", "{run}"], "exists already"),
            (["{run}/checkpoints", "--out", "{new}"], "not the directory of a run"),
        ],
    )
    def test_mistakes(
        self, arguments: list[str], says: str, mixed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        filled = [word.format(run=mixed_run, new=tmp_path / "new") for word in arguments]
        assert main(filled) == Status.USER_ERROR
        complaint = capsys.readouterr().err
        assert says in complaint
        assert complaint.count("\n") == 1
        assert not list(tmp_path.iterdir())

    def test_weights_go_without_the_corpus(
        self, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = (copied / "config.yaml").read_text().splitlines()
        gone = [f"  directory: {tmp_path / 'gone'}" if line.startswith("  directory:") else line for line in config]
        (copied / "config.yaml").write_text("\n".join(gone))
        assert main([str(copied), "--out", str(tmp_path / "out")]) == LEFT_OUT
        assert "no tokenizer was written" in capsys.readouterr().err
        assert load_plain(tmp_path / "out").config.mlp == "swiglu"

    def test_other_model_is_named(self, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        config = (copied / "config.yaml").read_text()
        (copied / "config.yaml").write_text(config.replace("n_layer: 2", "n_layer: 3"))
        assert main([str(copied), "--out", str(tmp_path / "out")]) == Status.USER_ERROR
        assert "there is no 'blocks.2." in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
