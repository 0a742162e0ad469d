import datetime
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import serving
from once import once

from pipeline.manifest import Manifest
from pipeline.vocab import char_vocab

TEXT = b"def spam(eggs):\n    return eggs * 2\n\n\n" * 10


def train_run(folder: Path, manifest: Manifest, model: dict[str, Any], total: int) -> Path:
    """Train a run for `total` steps on the data set in its sibling folder `data`."""
    import tensorflow as tf

    from pipeline.lanes import windows_per_epoch
    from trainers.config import RunConfig
    from trainers.run import Run, hold, open_run
    from trainers.training.devices import Devices
    from trainers.training.loop import Training

    train = {"lanes": 4, "window": 5, "learning_rate": 0.05, "sample": 0}
    config = RunConfig.from_tables(model, train, "test")
    data = folder.parent / "data"
    run = open_run(Run(folder, config, manifest.vocab, data, manifest.data_sha256))
    epoch_steps = windows_per_epoch(manifest.split("train").tokens, 4, 5)
    devices = Devices(tf.distribute.MirroredStrategy(["CPU:0"]), replicas=1)
    with hold(run, chief=True):
        Training(run, manifest, devices, epoch_steps, total).go()
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., Manifest]) -> Path:
    """Small run over bytes, with 2 layers of 9 units, after a few training steps."""

    def make(folder: Path) -> None:
        manifest = make_data(folder / "data", 1000, train=TEXT, val=TEXT[:100])
        train_run(folder / "tiny", manifest, {"units": 9}, total=12)

    return once(tmp_path_factory, "exported", make) / "tiny"


@pytest.fixture(scope="session")
def documents_run(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., Manifest]) -> Path:
    """Small run over characters: names, one document per line, with U+FFFD for unknown characters."""

    def make(folder: Path) -> None:
        text = "Анна\nZoë\nĐorđe\nあい\n".encode() * 10
        vocab = char_vocab(Counter(text.decode()), end="newline", replace=True)
        manifest = make_data(folder / "data", 50, vocab, train=text, val=text)
        train_run(folder / "names", manifest, {"units": 9}, total=10)

    return once(tmp_path_factory, "documents", make) / "names"


OTHERS = {
    "gru": {"cell": "gru", "units": 5, "layers": 3, "embedding": 4, "layer_norm": True},
    "rnn": {"cell": "rnn", "units": 6, "layers": 1, "embedding": 3},
    "plain gru": {"cell": "gru", "units": 7, "dropout": 0.2, "variational_dropout": True},
}


@pytest.fixture(scope="session", params=OTHERS)
def other_run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., Manifest]
) -> Path:
    """Small runs of the other cells, with embedding and norms, over an odd number of characters."""

    def make(folder: Path) -> None:
        manifest = make_data(folder / "data", 50, char_vocab(Counter(TEXT.decode())), train=TEXT, val=TEXT[:100])
        train_run(folder / request.param, manifest, OTHERS[request.param], total=5)

    return once(tmp_path_factory, f"other {request.param}", make) / request.param


@pytest.fixture(scope="session")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base path of the fake model, with versions 1 and 2."""

    def make(folder: Path) -> None:
        import fake_model

        fake_model.write(folder / "fake", 1, 2)

    return once(tmp_path_factory, "fake", make) / "fake"


@pytest.fixture(scope="session")
def server(fake: Path) -> Iterator[serving.Endpoint]:
    """Server of the fake model: TF Serving or the stand-in; pytest's last line reports which."""
    with serving.served(fake) as server:
        yield server


@pytest.fixture(scope="session")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed key and certificate for serving.test, as key.pem and cert.pem."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("pem")
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "serving.test")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("serving.test")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, *secret))
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return folder
