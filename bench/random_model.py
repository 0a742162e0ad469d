"""LSTM with random weights for the serving benchmarks. Imports TensorFlow only to build it."""

from typing import TYPE_CHECKING

from bench.peers import Size
from pipeline.vocab import Vocab

if TYPE_CHECKING:
    from trainers.config import RunConfig
    from trainers.model.char_rnn import CharRNN

# 100 characters: ASCII, plus some of two and three bytes.
VOCAB = Vocab("char", tuple(c.encode() for c in ["\n", *map(chr, range(32, 127)), "é", "ñ", "ü", "—"]))
WEIGHTS = "weights.npz"  # next to the model's folder, in Keras's order
SHARPER = 4.0  # scales Glorot's dense kernel so that samples are neither noise nor one repeated letter


def config_of(size: Size) -> "RunConfig":
    """Return the default configuration at this size."""
    from trainers.config import RunConfig

    return RunConfig.from_tables({"units": size.units, "layers": size.layers}, {}, size.name)


def model_of(size: Size) -> "CharRNN":
    """Build an LSTM over VOCAB with the same weights on every call."""
    from trainers.model.char_rnn import CharRNN

    model = CharRNN(config_of(size).model, VOCAB.size)
    model.dense.kernel.assign(SHARPER * model.dense.kernel)
    return model
