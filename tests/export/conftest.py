import datetime
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import serving
from once import once

from pipeline.manifest import Manifest
from pipeline.vocab import char_vocab

TEXT = b"def spam(eggs):\n    return eggs * 2\n\n\n" * 10


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., Manifest]) -> Path:
    """Small run over bytes, with 2 layers of 9 units."""
    import tiny_run

    def make(folder: Path) -> None:
        manifest = make_data(folder / "data", 1000, train=TEXT, val=TEXT[:100])
        tiny_run.random_run(folder / "tiny", manifest, TEXT, 12, {"units": 9})

    return once(tmp_path_factory, "exported", make) / "tiny"


@pytest.fixture(scope="session")
def documents_run(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., Manifest]) -> Path:
    """Small run over characters: names, one document per line, with U+FFFD for unknown characters."""
    import tiny_run

    def make(folder: Path) -> None:
        text = "Анна\nZoë\nĐorđe\nあい\n".encode() * 10
        vocab = char_vocab(Counter(text.decode()), end="newline", replace=True)
        manifest = make_data(folder / "data", 50, vocab, train=text, val=text)
        tiny_run.random_run(folder / "names", manifest, text, 10, {"units": 9})

    return once(tmp_path_factory, "documents", make) / "names"


OTHERS = {
    "gru": {"cell": "gru", "units": 5, "layers": 3, "embedding": 4, "layer_norm": True},
    "rnn": {"cell": "rnn", "units": 6, "layers": 1, "embedding": 3},
    "plain gru": {"cell": "gru", "units": 7, "dropout": 0.2},
}


@pytest.fixture(scope="session", params=OTHERS)
def other_run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., Manifest]
) -> Path:
    """Small runs of the other cells, with embedding and norms, over an odd number of characters."""
    import tiny_run

    def make(folder: Path) -> None:
        manifest = make_data(folder / "data", 50, char_vocab(Counter(TEXT.decode())), train=TEXT, val=TEXT[:100])
        tiny_run.random_run(folder / request.param, manifest, TEXT, 5, OTHERS[request.param])

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
    """Self-signed key and certificate for serving.test, as key.pem and cert.pem."""
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
