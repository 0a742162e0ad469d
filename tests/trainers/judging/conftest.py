from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.files import write_json
from pipeline.manifest import Manifest
from pipeline.vocab import Vocab

STEP = 40


@pytest.fixture(scope="session")
def saved_run(make_data: Callable[..., Manifest]) -> Callable[..., Path]:
    """saved_run(folder, vocab, train=text, ...): write a data set and an untrained run with a single checkpoint.

    The weights are random, except that the bias of the logits matches the symbol frequencies in train.
    """
    import keras
    import tiny_run

    from trainers.checkpoint import State
    from trainers.run import Run

    def make(folder: Path, vocab: Vocab | None = None, **texts: bytes) -> Path:
        manifest = make_data(folder / "data", 1000, vocab, **texts)
        run = Run(folder / "run", tiny_run.tiny_config(), manifest.vocab, folder / "data", manifest.data_sha256)
        write_json(run.folder / "run.json", run.to_json())
        model, counts_V = run.build(), np.bincount(manifest.vocab.encode(texts["train"]), minlength=manifest.vocab.size)
        model.dense.bias.assign(np.log(counts_V + 0.001))
        State(model, keras.optimizers.SGD(), run.config.train.lanes).save(run, STEP, 1.0)
        return run.folder

    return make
