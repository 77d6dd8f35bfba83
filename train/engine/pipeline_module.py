"""The model as a DeepSpeed pipeline, made of the same layers as `model.transformer.GPT`."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from torch import Tensor, nn

from model.config import ModelConfig
from model.loss import next_token_loss, sequence_losses
from model.transformer import Block, Embedding, FinalNorm, Positions, Readout, compile_blocks
from train.config import TrainConfig


def _tied_readout(embedding: Embedding, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
    # A view for the reason given in `Readout`.
    return x_BTD, embedding.weight.view_as(embedding.weight)


class PipelineLoss:
    """The loss at the end of a pipeline, as that of `GPT`.

    DeepSpeed hands out the mean alone of what is returned here: the losses of sequences are kept until they are taken.
    """

    def __init__(self, compiled: bool) -> None:
        self.compiled = compiled
        self._evaluated: list[Tensor] = []

    def __call__(self, states: tuple[Tensor, Tensor], targets_BT: Tensor) -> Tensor:
        """Return the mean over the micro-batch in nats per position."""
        if torch.is_grad_enabled():
            return next_token_loss(states, targets_BT, self.compiled)
        self._evaluated.append(sequence_losses(states, targets_BT, self.compiled))
        return self._evaluated[-1].mean().float()

    def take(self) -> list[Tensor]:
        """Return the losses (B,) of every micro-batch evaluated since the last time; none but on the last stage."""
        evaluated, self._evaluated = self._evaluated, []
        return evaluated


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


class GPTPipeline(PipelineModule):
    """This process's stage of the model; blocks are shared out evenly. Needs an initialised process group."""

    def __init__(self, config: ModelConfig, stages: int, train: TrainConfig) -> None:
        """Build the stage; of `train` the recomputation of blocks and their compilation count."""
        layers = _layers(config)
        super().__init__(
            [spec for _, spec in layers],
            num_stages=stages,
            loss_fn=PipelineLoss(train.compile),
            partition_method="type:Block",
            activation_checkpoint_interval=int(train.activation_checkpointing),
            checkpointable_layers=["Block"],
        )
        self._layer_names = [name for name, _ in layers]
        if config.tie_embeddings and self.stage_id > 0:
            for parameter in self.tied_modules.parameters():
                parameter.is_tied_copy = True
        if train.compile:
            compile_blocks(self)

    @property
    def stages(self) -> dist.ProcessGroup:
        """The processes that hold the stages of this one's replica."""
        return self._grid.get_pipe_parallel_group()

    def parameters_of_gpt(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield this stage's parameters under their names in `GPT`."""
        for name, parameter in self.named_parameters():
            first, _, rest = name.partition(".")
            yield (rest if first == "tied_modules" else f"{self._layer_names[int(first)]}.{rest}"), parameter
