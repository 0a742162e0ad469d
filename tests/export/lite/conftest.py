from collections.abc import Callable
from pathlib import Path

import pytest
from once import once


@pytest.fixture(scope="session")
def devices(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export of `run` in all precisions, without loss limits: after a few training steps its loss is arbitrary."""
    from export.lite.graph import PRECISIONS
    from export.lite.lite import LiteSettings, export_lite

    settings = LiteSettings(allowed=dict.fromkeys(PRECISIONS, 10.0))
    folder = once(tmp_path_factory, "devices", lambda folder: export_lite(run, folder / "tiny", settings, None, False))
    return folder / "tiny"


@pytest.fixture(scope="session")
def lite_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """lite_file(run, precision="float32"): convert a run's model to a .tflite, without measurements."""
    from export.bundle import pack
    from export.lite.graph import convert
    from trainers import checkpoint
    from trainers.run import read_run

    def make(folder: Path, precision: str = "float32") -> Path:
        def write(out: Path) -> None:
            run = read_run(folder)
            flatbuffer = convert(checkpoint.load_model(run), run.vocab.end_id, precision)
            about = {"format_version": 1, "vocab": run.vocab.to_json(), "precision": precision}
            (out / f"{precision}.tflite").write_bytes(pack(flatbuffer, about))

        return once(tmp_path_factory, f"{folder.name} {precision}", write) / f"{precision}.tflite"

    return make
