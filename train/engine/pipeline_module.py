"""The model as a DeepSpeed pipeline, made of the same layers as `model.transformer.GPT`."""

from collections.abc import Iterator
from functools import partial

from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from torch import Tensor, nn

from model.config import ModelConfig
from model.loss import next_token_loss
from model.transformer import Block, Embedding, FinalNorm, Positions, Readout, compile_blocks
from train.config import TrainConfig


def _tied_readout(embedding: Embedding, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
    # A view for the reason given in `Readout`.
    return x_BTD, embedding.weight.view_as(embedding.weight)


def _layers(config: ModelConfig) -> list[tuple[str, LayerSpec]]:
    """List the layers in order, each with its name in `GPT`."""
    layers = [("embedding", LayerSpec(Embedding, config))]
    if config.tie_embeddings:
        layers = [("embedding", TiedLayerSpec("embedding", Embedding, config, tied_weight_attr="weight"))]
    if config.positions == "learned":
        layers.append(("positions", LayerSpec(Positions, config)))
    layers += [(f"blocks.{i}", LayerSpec(Block, config)) for i in range(config.n_layer)]
    layers.append(("norm", LayerSpec(FinalNorm, config)))
    if config.tie_embeddings:
        last = TiedLayerSpec("embedding", Embedding, config, forward_fn=_tied_readout, tied_weight_attr="weight")
        return [*layers, ("embedding", last)]
    return [*layers, ("readout", LayerSpec(Readout, config))]


def build_pipeline(config: ModelConfig, stages: int, train: TrainConfig) -> PipelineModule:
    """Build this rank's stage; blocks are shared out evenly. Needs an initialised process group."""
    module = PipelineModule(
        [spec for _, spec in _layers(config)],
        num_stages=stages,
        loss_fn=partial(next_token_loss, compiled=train.compile),
        partition_method="type:Block",
        activation_checkpoint_interval=int(train.activation_checkpointing),
        checkpointable_layers=["Block"],
    )
    if config.tie_embeddings and module.stage_id > 0:
        for parameter in module.tied_modules.parameters():
            parameter.is_tied_copy = True
    if train.compile:
        compile_blocks(module)
    return module


def pipeline_parameters(module: PipelineModule, config: ModelConfig) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield this stage's parameters under their names in `GPT`."""
    names = [name for name, _ in _layers(config)]
    for name, parameter in module.named_parameters():
        first, _, rest = name.partition(".")
        yield (rest if first == "tied_modules" else f"{names[int(first)]}.{rest}"), parameter
