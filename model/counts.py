"""Exact parameter and FLOP counts, from the configuration alone.

Kaplan et al. 2020 (arXiv 2001.08361) count N without embeddings, Hoffmann et al. 2022 (arXiv 2203.15556) with them;
Pearce & Song 2024 (arXiv 2406.12907) trace most of the disagreement between their laws to this. So every count is
kept, and the fitter chooses.
"""

from dataclasses import dataclass

from model.config import ModelConfig


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters by group; each parameter is in exactly one group."""

    embedding: int
    positions: int
    attention: int
    mlp: int
    norms: int
    readout: int
    """The output projection; 0 when it is tied to the embedding."""
    readout_matrix: int
    """Entries of the matrix that makes the logits, tied or not. Not a group: tied, it is `embedding` again."""

    @property
    def total(self) -> int:
        """N as Hoffmann et al. count it: every parameter once."""
        return self.embedding + self.positions + self.non_embedding + self.readout

    @property
    def non_embedding(self) -> int:
        """N as Kaplan et al. count it: without token and position embeddings and the output projection."""
        return self.attention + self.mlp + self.norms

    @property
    def with_head(self) -> int:
        """Non-embedding parameters plus the matrix that makes the logits."""
        return self.non_embedding + self.readout_matrix


def count_parameters(config: ModelConfig) -> ParameterCounts:
    """Count the parameters of `GPT(config)`."""
    d, f, layers, bias = config.d_model, config.d_ff, config.n_layer, int(config.bias)
    up = f * (2 if config.mlp == "swiglu" else 1)
    norm = d * (2 if config.bias and config.norm == "layernorm" else 1)
    return ParameterCounts(
        embedding=config.vocab_size * d,
        positions=config.context_length * d if config.positions == "learned" else 0,
        attention=layers * (4 * d * d + 4 * d * bias),
        mlp=layers * (d * up + up * bias + f * d + d * bias),
        norms=(2 * layers + 1) * norm + layers * (2 * config.d_head if config.qk_norm else 0),
        readout=0 if config.tie_embeddings else config.vocab_size * d,
        readout_matrix=config.vocab_size * d,
    )


def training_flops_per_token(config: ModelConfig, sequence_length: int) -> int:
    """FLOPs to train on one token: forward once, backward twice as much.

    Counted: two per multiply-add of every matrix product, that is the weights of the blocks, the output projection,
    and the two attention products over all `sequence_length` keys (12 n_layer d_model T per token; the causal mask
    is not discounted, as in Hoffmann et al., appendix F, and Chowdhery et al. 2022 (arXiv 2204.02311), appendix B).
    Not counted: embedding look-ups, normalisations, biases, activations, the optimizer.
    """
    d, f = config.d_model, config.d_ff
    matrices = 4 * d * d + d * f * (3 if config.mlp == "swiglu" else 2)
    attention = 2 * d * sequence_length
    forward = 2 * (config.n_layer * (matrices + attention) + config.vocab_size * d)
    return 3 * forward
