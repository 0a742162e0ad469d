from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow as tf

from pipeline.manifest import Manifest
from pipeline.vocab import char_vocab
from trainers import checkpoint
from trainers.config import RunConfig
from trainers.devices import Devices
from trainers.loop import Training

TEXT = b"def spam(eggs):\n    return eggs * 2\n\n\n" * 10


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., Manifest]) -> Path:
    """A small run, trained for a few steps: 2 layers of 9 units."""
    folder = tmp_path_factory.mktemp("exported")
    manifest = make_data(folder / "data", 1000, train=TEXT, val=TEXT[:100])
    config = RunConfig.from_tables({"units": 9}, {"lanes": 4, "window": 10, "learning_rate": 0.05}, "test")
    opened = checkpoint.open_run(folder / "runs" / "tiny", config, folder / "data", manifest)
    devices = Devices(tf.distribute.MirroredStrategy(["CPU:0"]), replicas=1)
    Training(opened, manifest, devices, an_epoch=10, total=12).go()
    return opened.folder


@pytest.fixture(scope="session")
def documents_run(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., Manifest]) -> Path:
    """The same of names in characters: a document is a line, and U+FFFD stands for the unknown."""
    folder = tmp_path_factory.mktemp("documents")
    text = "Анна\nZoë\nĐorđe\nあい\n".encode() * 10
    vocab = char_vocab(Counter(text.decode()), end="newline", replace=True)
    manifest = make_data(folder / "data", 50, vocab, train=text, val=text)
    config = RunConfig.from_tables({"units": 9}, {"lanes": 4, "window": 10, "learning_rate": 0.05}, "test")
    opened = checkpoint.open_run(folder / "runs" / "names", config, folder / "data", manifest)
    devices = Devices(tf.distribute.MirroredStrategy(["CPU:0"]), replicas=1)
    Training(opened, manifest, devices, an_epoch=5, total=10).go()
    return opened.folder


OTHERS = {
    "gru": {"cell": "gru", "units": 5, "layers": 3, "embedding": 4, "layer_norm": True},
    "rnn": {"cell": "rnn", "units": 6, "layers": 1, "embedding": 3},
    "plain gru": {"cell": "gru", "units": 7, "dropout": 0.2, "variational_dropout": True},
}


@pytest.fixture(scope="session", params=OTHERS)
def other_run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., Manifest]
) -> Path:
    """Runs of the other cells, with an embedding and norms, over an odd number of characters, a few steps old."""
    folder = tmp_path_factory.mktemp("others")
    vocab = char_vocab(Counter(TEXT.decode()))
    manifest = make_data(folder / "data", 50, vocab, train=TEXT, val=TEXT[:100])
    train = {"lanes": 4, "window": 7, "learning_rate": 0.05}
    config = RunConfig.from_tables(OTHERS[request.param], train, "test")
    opened = checkpoint.open_run(folder / "runs" / request.param, config, folder / "data", manifest)
    devices = Devices(tf.distribute.MirroredStrategy(["CPU:0"]), replicas=1)
    Training(opened, manifest, devices, an_epoch=10, total=5).go()
    return opened.folder
