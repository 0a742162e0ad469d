"""The LSTM of random weights that the serving benchmarks run. TensorFlow is imported only to build it."""

from typing import TYPE_CHECKING

from bench.peers import Size
from pipeline.vocab import Vocab

if TYPE_CHECKING:
    from trainers.config import RunConfig
    from trainers.model.char_rnn import CharRNN

# 100 characters: ASCII, and a few of two and three bytes.
VOCAB = Vocab("char", tuple(c.encode() for c in ["\n", *map(chr, range(32, 127)), "é", "ñ", "ü", "—"]))
WEIGHTS = "weights.npz"  # beside the model's folder, in Keras's order
SHARPER = 4.0  # times Glorot's dense kernel, so that sampled text is neither noise nor a single letter


def config_of(size: Size) -> "RunConfig":
    """The configuration of a run of this size, all else by default."""
    from trainers.config import RunConfig

    return RunConfig.from_tables({"units": size.units, "layers": size.layers}, {}, size.name)


def model_of(size: Size) -> "CharRNN":
    """Build an LSTM over VOCAB; every call gives the same weights."""
    from trainers.model.char_rnn import CharRNN

    model = CharRNN(config_of(size).model, VOCAB.size)
    model.dense.kernel.assign(SHARPER * model.dense.kernel)
    return model
