"""Page of two small models, and the expected results from their checkpoints."""

import codecs
import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from javascript import CHROMIUM, node

from pipeline.manifest import Manifest
from pipeline.vocab import char_vocab

PROSE = "The café said “no”, and the naïve cat said nothing; 那是猫. Then it slept.\n".encode() * 40
ODD = "names: 50% of #1, ä?"  # a folder name that needs quoting
NAMES = "Анна\nZoë\nĐorđe\nあい\n".encode() * 40


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for screenshots and figures: WEB_TESTS_OUT, or a temporary one."""
    folder = Path(os.environ.get("WEB_TESTS_OUT") or tmp_path_factory.mktemp("web") / "out")
    folder.mkdir(parents=True, exist_ok=True)
    return folder.absolute()


def trained(folder: Path, manifest: Manifest, model: dict[str, Any], **train: Any) -> Path:
    import tensorflow as tf

    from pipeline.lanes import windows_per_epoch
    from trainers.config import RunConfig
    from trainers.run import Run, hold, open_run
    from trainers.training.devices import Devices
    from trainers.training.loop import Training

    train |= {"lanes": 8, "window": 25, "learning_rate": 0.02, "sample": 0, "precision": "float32"}
    config = RunConfig.from_tables(model, train, "test")
    run = open_run(Run(folder, config, manifest.vocab, folder.parent / "data", manifest.data_sha256))
    epoch_steps = windows_per_epoch(manifest.split("train").tokens, train["lanes"], train["window"])
    devices = Devices(tf.distribute.MirroredStrategy(["CPU:0"]), replicas=1)
    with hold(run, chief=True):
        Training(run, manifest, devices, epoch_steps, 150).go()
    return folder


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., Manifest]) -> dict[str, Path]:
    """Runs: prose, an LSTM over bytes with some multi-byte characters; names, a GRU over characters with documents."""
    node()
    if not CHROMIUM:
        pytest.skip("Chromium is missing, the page is not tested (apt install chromium)")
    folder = tmp_path_factory.mktemp("models")
    prose = make_data(folder / "prose" / "data", 5000, train=PROSE, val=PROSE[:300])
    vocab = char_vocab(Counter(NAMES.decode()), end="newline", replace=True)
    names = make_data(folder / "names" / "data", 5000, vocab, train=NAMES, val=NAMES[:300])
    return {
        "prose": trained(folder / "prose" / "run", prose, {"units": 24, "layers": 2}, snapshots=[0, 50]),
        "names": trained(folder / "names" / "run", names, {"cell": "gru", "units": 16, "layers": 1}),
    }


@pytest.fixture(scope="session")
def site(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from unmeasured import unmeasured

    from export.lite.lite import LiteSettings, export_lite
    from export.web import build as page

    folder = tmp_path_factory.mktemp("site")
    prose, names = (folder / "devices" / name for name in ("prose", ODD))
    settings = LiteSettings(("float32", "int8-dynamic"))
    with unmeasured():
        export_lite(runs["prose"], prose, settings, data=None, force=False)
        export_lite(runs["names"], names, LiteSettings(("float32",)), data=None, force=False)
    about = {"neurons": [{"layer": 1, "unit": 3, "about": "the length of a name"}]}
    (names / "neurons.json").write_text(json.dumps(about))
    (names / "MODEL_CARD.md").write_text("| | |\n|---|---|\n| licence of the text | public domain |\n")
    page.export_page([prose, names], folder / "page", force=False)
    return folder / "page"


@contextlib.contextmanager
def serving(site: Path) -> Iterator[str]:
    """Serve a page, and yield its address."""
    program = "import sys; from pathlib import Path; from export.web.build import serve; serve(Path(sys.argv[1]), 0)"
    with subprocess.Popen([sys.executable, "-c", program, str(site)], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        yield server.stdout.readline().split()[0]
        server.terminate()


@pytest.fixture(scope="session")
def serving_page() -> Callable[[Path], contextlib.AbstractContextManager[str]]:
    return serving


@pytest.fixture(scope="session")
def served(site: Path) -> Iterator[str]:
    """Address of the served page."""
    with serving(site) as url:
        yield url


@pytest.fixture(scope="session")
def cases(runs: dict[str, Path], site: Path, served: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts and activity of the checkpoints, to compare with the page."""
    from trainers import checkpoint
    from trainers.run import read_run
    from trainers.sampling.batch import Start, draw
    from trainers.sampling.sampler import Sampler

    def written(name: str, prompt: str, length: int, *starts: tuple[int, float], **options: Any) -> list[str]:
        """Draw texts for these seeds and temperatures."""
        run = read_run(runs[name])
        sampler = Sampler(checkpoint.load_model(run), run.vocab, frozen=True)
        texts = draw(sampler, [Start(prompt.encode(), *start) for start in starts], length, **options)
        return [prompt + text.text.decode(errors="replace") for text in texts]

    greedy, long = written("prose", "The ", 500, (1, 0.0), (2**53 - 1, 1.0))
    options = {"top_k": 12, "top_p": 0.9}
    (sampled,) = written("prose", "The ", 300, (77, 1.1), **options)
    value = {
        "url": served,
        "site": str(site),
        "odd": ODD,
        "greedy": {"prompt": "The ", "text": greedy},
        "sampled": {"options": options | {"temperature": 1.1, "seed": 77}, "text": sampled},
        "long": long,
        "names": written("names", "", 40, *((seed, 1.0) for seed in range(4))),
        **inside(runs["prose"], "The café said “no”"),
        "training": [trained_until(site / "models" / "prose" / folder) for folder in ("step-0", "step-50", "")],
    }
    path = tmp_path_factory.mktemp("cases") / "page.json"
    path.write_text(json.dumps(value))
    return path


def trained_until(folder: Path) -> dict[str, Any]:
    """Return the step of an int8 file and, from the Python runner, a text of seed 3 and temperature 0.9, tanh(c) of
    layer 2's third unit at each of its ASCII characters, and the probability of each next id."""
    from export.lite.runner import LiteModel, Sampling

    model, temperature = LiteModel(folder / "int8-dynamic.tflite"), 0.9
    text = b"The " + model.generate(b"The ", 60, Sampling(temperature, seed=3))
    held, carry = [], model.initial_carry()
    for byte, token in zip(text, model.vocab.encode(text).tolist(), strict=True):
        logits_V, carry = model.step(token, carry)
        if byte < 128:
            held.append([chr(byte), float(np.tanh(carry[0, 1, 1, 2]))])
    p_V = np.exp((logits_V - logits_V.max()) / temperature, dtype=np.float64)
    shown = codecs.getincrementaldecoder("utf-8")("replace").decode(text)  # without an incomplete character at the end
    return {"step": model.about["step"], "text": shown, "held": held, "next": (p_V / p_V.sum()).tolist()}


def inside(folder: Path, text: str) -> dict[str, Any]:
    """Return the checkpoint's tanh(c) [ids, layers, units], probabilities [ids, symbols] and steps along a text."""
    import tensorflow as tf

    from trainers import checkpoint
    from trainers.run import read_run

    run = read_run(folder)
    model = checkpoint.load_model(run)
    ids = run.vocab.prompt_ids(text.encode()).tolist()
    logits_1xTxV, _, values = model.internals(np.array([ids]), model.initial_carry(1))
    gates = {
        gate: np.stack([values[f"lstm_{layer}/{gate}"][0] for layer in range(model.config.layers)], 1)
        for gate in ("h", "c", "forget", "output", "input", "candidate")
    }
    gates["added"] = gates.pop("input") * gates.pop("candidate")
    return {
        "text": text,
        "ids": ids,
        "held": np.tanh(gates["c"]).tolist(),
        "expected": tf.nn.softmax(logits_1xTxV[0]).numpy().tolist(),
        "steps": {"logits": logits_1xTxV[0].numpy().tolist()}
        | {gate: x_TxLxH.tolist() for gate, x_TxLxH in gates.items()},
    }
