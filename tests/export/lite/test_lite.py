import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from crash import damaged
from unmeasured import unmeasured

from common.errors import StageError, UsageError
from common.files import load_json, read_json, write_json, write_record
from export import checksums
from export.bundle import pack, unpack
from export.lite import lite
from export.lite.graph import PRECISIONS, RUNTIMES, check_ops, convert, op_names
from export.lite.lite import LiteSettings, export_lite, prove
from export.lite.quality import HeldOutText, lanes, measure, reader
from export.lite.runner import LiteModel, Sampling
from pipeline.manifest import Manifest, read_manifest
from trainers import checkpoint
from trainers.config import RunConfig
from trainers.model.char_rnn import CharRNN
from trainers.run import read_run
from trainers.sampling.rows import Request
from trainers.sampling.sampler import Sampler

GREEDY = Sampling(temperature=0)
FLOAT32 = LiteSettings(("float32",), {"float32": 0.01})

# Largest difference from the checkpoint's logits in models of 5 to 9 units.
TOLERANCE = {"float32": 1e-5, "float16": 0.005, "int8-dynamic": 0.1}
QUANTISED = [pytest.param(name, marks=pytest.mark.slow) for name in PRECISIONS[1:]]


def load(run: Path) -> CharRNN:
    return checkpoint.load_model(read_run(run))


def greedy(run: Path, prompts: list[bytes], length: int = 40) -> list[bytes]:
    """Generate greedy continuations with the checkpoint."""
    sampler, rows = Sampler(load(run), read_run(run).vocab), len(prompts)
    columns = (tf.constant(prompts), tf.fill([rows], length), tf.zeros([rows]), tf.ones([rows], tf.int64))
    return sampler.generate(Request(*columns)).text_bytes.numpy().tolist()


def logits(run: Path, ids_T: np.ndarray) -> np.ndarray:
    """Compute the checkpoint's logits after each id, from a carry of zeros."""
    model, end_id = load(run), read_run(run).vocab.end_id
    read = reader(model, end_id, len(ids_T))
    return read(tf.constant(ids_T[None].astype(np.int32)), model.initial_carry(1))[0][0].numpy()


def steps(file: LiteModel, ids_T: np.ndarray) -> np.ndarray:
    """Compute the file's logits after each id, from a carry of zeros."""
    carry, rows = file.initial_carry(), []
    for token in ids_T.tolist():
        logits_V, carry = file.step(token, carry)
        rows.append(logits_V)
    return np.stack(rows)


@pytest.fixture(name="unmeasured")
def without_measurements(monkeypatch: pytest.MonkeyPatch, devices: Path) -> Iterator[None]:
    """Reuse the float32 file of `devices` instead of converting the model, skip measurements, and report no loss."""
    whole = {"float32": unpack(devices / "float32.tflite")[0]}
    monkeypatch.setattr(lite, "convert", lambda model, end_id, name: whole.get(name) or convert(model, end_id, name))
    with unmeasured():
        yield


@pytest.mark.parametrize("precision", PRECISIONS)
def test_runtime_matches_logits_and_greedy_text_of_the_checkpoint(run: Path, devices: Path, precision: str) -> None:
    file, text = LiteModel(devices / f"{precision}.tflite"), b"import spam\n\ndef eggs(x):\n"
    ids_T = np.frombuffer(text, np.uint8)
    np.testing.assert_allclose(steps(file, ids_T), logits(run, ids_T), atol=TOLERANCE[precision])
    np.testing.assert_array_equal(file.read(ids_T, file.initial_carry())[0], steps(file, ids_T)[-1])
    if precision == "float32":
        assert [file.generate(b"def ", 40, GREEDY)] == greedy(run, [b"def "])


@pytest.mark.parametrize("other_run", ["gru", "rnn", pytest.param("plain gru", marks=pytest.mark.slow)], indirect=True)
@pytest.mark.parametrize("precision", ["float32", *QUANTISED])
def test_all_cells_run_on_the_runtime(other_run: Path, lite_file: Callable[..., Path], precision: str) -> None:
    file, vocab = LiteModel(lite_file(other_run, precision)), read_run(other_run).vocab
    ids_T = vocab.encode(b"return eggs * 2\n\n\ndef spam(eggs):\n")
    assert file.initial_carry().shape == load(other_run).initial_carry(1).shape
    np.testing.assert_allclose(steps(file, ids_T), logits(other_run, ids_T), atol=TOLERANCE[precision])
    if precision == "float32":
        assert [file.generate(b"def ", 40, GREEDY)] == greedy(other_run, [b"def "])


@pytest.mark.parametrize("precision", ["float32", *QUANTISED])
def test_documents_start_from_zero_states(documents_run: Path, lite_file: Callable[..., Path], precision: str) -> None:
    file = LiteModel(lite_file(documents_run, precision))
    ids_T = file.vocab.encode("Анна\nZoë\nĐorđe\nあい\n?".encode())
    end, ones = file.vocab.end_id, np.ones_like(file.initial_carry())
    np.testing.assert_array_equal(file.step(end, ones)[0], file.step(end, 0 * ones)[0])
    np.testing.assert_allclose(steps(file, ids_T), logits(documents_run, ids_T), atol=TOLERANCE[precision])
    np.testing.assert_array_equal(file.read(ids_T, ones)[0], steps(file, ids_T)[-1])


def test_texts_end_with_their_documents(documents_run: Path, lite_file: Callable[..., Path]) -> None:
    file = LiteModel(lite_file(documents_run))
    prompts = [b"", b"Zo", "Анна\nĐ".encode(), b"q?"]
    assert [file.generate(prompt, 40, GREEDY) for prompt in prompts] == greedy(documents_run, prompts)
    texts = [file.generate(b"", 40, Sampling(1.5, seed)) for seed in range(20)]
    assert not any(b"\n" in text for text in texts)
    assert len({len(text) for text in texts}) > 1


def test_files_are_self_contained_with_fixed_shapes(devices: Path) -> None:
    for precision in PRECISIONS:
        step = LiteModel(devices / f"{precision}.tflite")._step
        inputs, outputs = (
            {name: (tensor["shape"].tolist(), tensor["dtype"]) for name, tensor in details.items()}
            for details in (step.get_input_details(), step.get_output_details())
        )
        carry = ([1, 2, 2, 9], np.float32)
        assert inputs == {"token": ([1], np.int32), "carry": carry}
        assert outputs == {"logits": ([1, 256], np.float32), "carry": carry}
        flatbuffer, about = unpack(devices / f"{precision}.tflite")
        assert "FULLY_CONNECTED" in op_names(flatbuffer)
        assert about["precision"] == precision


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_of_a_resized_batch_match_single_rows(devices: Path, precision: str) -> None:
    path, tokens = devices / f"{precision}.tflite", [100, 10, 255]
    file, batched = LiteModel(path), Interpreter(model_content=unpack(path)[0])
    carries = [file.step(token, file.initial_carry())[1] for token in (1, 2, 3)]
    single = [file.step(token, carry) for token, carry in zip(tokens, carries, strict=True)]
    for detail in batched.get_input_details():
        batched.resize_tensor_input(detail["index"], [len(tokens), *detail["shape"][1:]])
    run = batched.get_signature_runner("step")
    outputs = run(token=np.int32(tokens), carry=np.concatenate(carries))
    np.testing.assert_allclose(outputs["logits"], [logits_V for logits_V, _ in single], atol=1e-5)
    np.testing.assert_allclose(outputs["carry"], np.concatenate([carry for _, carry in single]), atol=1e-5)


def test_file_stores_weights_once() -> None:
    # Wide enough for the weights to dominate the size.
    model = CharRNN(RunConfig.from_tables({"units": 256, "layers": 1}, {}, "test").model, 64)
    count = model.count_params()
    for precision, width in zip(PRECISIONS, (4, 2, 1), strict=True):
        size = len(convert(model, None, precision))
        assert width * count < size < width * count + 60_000 < 2 * width * count, precision


def test_reports_describe_the_files(run: Path, devices: Path) -> None:
    model, report = (json.loads((devices / name).read_text()) for name in ("model.json", "report.json"))
    _, about = unpack(devices / "int8-dynamic.tflite")
    files = model.pop("files")
    assert {**model, "precision": "int8-dynamic"}.items() <= about.items()
    assert (model["run"], model["vocab"]["unit"]) == ("tiny", "byte")
    assert list(files) == list(report["files"]) == list(PRECISIONS)
    for name, entry in files.items():
        path = devices / entry["file"]
        assert path.stat().st_size == entry["size"] == report["files"][name]["bytes"]
        assert entry["sha256"] == lite.sha256_file(path)
        figures_of_file = report["files"][name]
        assert figures_of_file["bits"] - report["checkpoint_bits"] == pytest.approx(
            figures_of_file["lost_bits"], abs=1e-9
        )
        assert 0 < figures_of_file["us_a_step"] < 1e5
        assert 0 < figures_of_file["peak_bytes"] < 1e9
    assert report["text"] == {"split": "val", "characters": 99}
    float32 = report["files"]["float32"]
    figures = [float32[name] for name in ("lost_bits", "kl_bits", "greedy_agreement")]
    np.testing.assert_allclose(figures, [0, 0, 1], atol=1e-6)


def test_bits_match_the_checkpoint(run: Path, devices: Path) -> None:
    manifest = read_manifest(run.parent / "data")
    text = lanes(run.parent / "data", manifest, "train", 3, 50)
    assert (text.ids_BxT.shape, text.characters) == ((3, 51), 150)
    expected = []
    for ids_T in text.ids_BxT:
        log_p_TxV = tf.nn.log_softmax(logits(run, ids_T[:-1]).astype(np.float64)).numpy()
        expected.append(-log_p_TxV[np.arange(50), ids_T[1:]] / np.log(2))
    bits, qualities = measure(load(run), {"float32": LiteModel(devices / "float32.tflite")}, text)
    assert bits == pytest.approx(np.mean(expected), abs=1e-6) == pytest.approx(qualities["float32"].bits, abs=1e-6)


@pytest.mark.parametrize(
    ("tokens", "count", "length", "shape"), [(1000, 5, 100, (5, 101)), (250, 5, 100, (2, 101)), (40, 5, 100, (1, 40))]
)
def test_short_splits_have_fewer_or_shorter_lanes(
    make_data: Callable[..., Manifest], tmp_path: Path, tokens: int, count: int, length: int, shape: tuple[int, int]
) -> None:
    ids = np.arange(tokens) % 251
    text = lanes(tmp_path / "data", make_data(tmp_path / "data", 64, val=ids), "val", count, length)
    assert text.ids_BxT.shape == shape
    B, T = shape
    first = [(tokens - T) * lane // max(B - 1, 1) for lane in range(B)]
    np.testing.assert_array_equal(text.ids_BxT, np.stack([ids[start : start + T] for start in first]))


# Rejections


def test_file_with_different_weights_is_rejected(run: Path, devices: Path) -> None:
    other = load(run)
    other.dense.bias.assign_add(0.001 * tf.one_hot(7, 256))
    with pytest.raises(StageError, match=r"the written float32\.tflite's logits differ by 0\.001"):
        prove(devices / "float32.tflite", other)


@pytest.mark.parametrize("precision", ["float32", "int8-dynamic"])
def test_single_nan_is_rejected(run: Path, devices: Path, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = LiteModel.step

    def nan_first(self: LiteModel, token: int, carry: Any) -> Any:
        logits_V, after = step(self, token, carry)
        return (logits_V * np.nan if not carry.any() else logits_V), after

    monkeypatch.setattr(LiteModel, "step", nan_first)
    with pytest.raises(StageError, match="logits differ by nan"):
        prove(devices / f"{precision}.tflite", load(run))


@pytest.mark.usefixtures("unmeasured")
def test_loss_above_the_limit_is_rejected_and_leaves_no_folder(
    run: Path, devices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lite, "convert", lambda model, end_id, name: unpack(devices / f"{name}.tflite")[0])
    strict = LiteSettings(("float32", "int8-dynamic"), {"int8-dynamic": -1.0})
    message = (
        r"^int8-dynamic loses -?0\.\d{4} bits per character on held-out text; the limit is -1: leave it out with "
        r"--precision float32, or raise the limit with --allow int8-dynamic=\S+$"
    )
    with pytest.raises(StageError, match=message):
        export_lite(run, tmp_path / "out", strict, data=None, force=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unmeasured")
def test_default_limits_apply_unless_overridden(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lite.LIMITS == {"float32": 0.0001, "float16": 0.001, "int8-dynamic": 0.02}
    monkeypatch.setitem(lite.LIMITS, "float32", -1.0)
    with pytest.raises(StageError, match="the limit is -1: raise the limit with --allow float32="):
        export_lite(run, tmp_path / "out", LiteSettings(("float32",)), data=None, force=False)
    export_lite(run, tmp_path / "out", FLOAT32, data=None, force=False)
    (tmp_path / "out" / "neurons.json").write_text("[]")
    export_lite(run, tmp_path / "out", FLOAT32, data=None, force=True)
    assert (tmp_path / "out" / "neurons.json").read_text() == "[]"


@pytest.mark.usefixtures("unmeasured")
def test_neurons_are_copied_if_they_match_the_weights(run: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(run, folder)
    weights = checkpoint.weights_sha256(checkpoint.best(read_run(folder)))

    def exported(text: str | None, force: bool = False) -> str | None:
        """Export with `text` as the run's neurons.json, and return the exported neurons.json."""
        (folder / "neurons.json").unlink(missing_ok=True)
        if text is not None:
            (folder / "neurons.json").write_text(text)
        export_lite(folder, out, FLOAT32, data=run.parent / "data", force=force)
        return (out / "neurons.json").read_text() if (out / "neurons.json").exists() else None

    current, newer, stale = (
        json.dumps({"weights_sha256": w, "neurons": n}) for w, n in ((weights, []), (weights, [1]), ("", []))
    )
    assert exported(stale) is None, "stale neurons are not copied"
    assert exported(current) == current, "copied even if the models are up to date"
    assert exported(newer, force=True) == newer
    assert exported(None, force=True) is None
    (out / "neurons.json").write_text("[]")
    assert exported(current) == "[]", "a list written by the user is kept"


@pytest.mark.usefixtures("unmeasured")
def test_a_card_is_kept_if_it_describes_the_same_weights(run: Path, tmp_path: Path) -> None:
    folder, out = shutil.copytree(run, tmp_path / "run"), tmp_path / "out"
    export_lite(folder, out, FLOAT32, data=run.parent / "data", force=False)
    (out / "MODEL_CARD.md").write_text("| licence | public domain |\n")
    export_lite(folder, out, FLOAT32, data=run.parent / "data", force=True)
    assert (out / "MODEL_CARD.md").read_text() == "| licence | public domain |\n"
    assert checksums.verify(out) == []
    write_json(out / "model.json", read_json(out / "model.json") | {"weights_sha256": "of others"})
    export_lite(folder, out, FLOAT32, data=run.parent / "data", force=True)
    assert not (out / "MODEL_CARD.md").exists()


@pytest.mark.usefixtures("unmeasured")
def test_a_keras_model_is_not_replaced(run: Path, tmp_path: Path) -> None:
    for name in ("model.json", "model.keras"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(StageError, match=r"exists and is not a device model \(it has no report.json\)"):
        export_lite(run, tmp_path, FLOAT32, data=None, force=True)


@pytest.mark.usefixtures("unmeasured")
def test_snapshots_are_exported_beside_the_best_checkpoint(run: Path, tmp_path: Path) -> None:
    folder, out = shutil.copytree(run, tmp_path / "run"), tmp_path / "out"
    value = load_json(folder / "run.json")
    value["config"]["train"]["snapshots"] = [0, 7, 12]
    write_record(folder / "run.json", value)
    loaded_run = read_run(folder)
    checkpoint.TrainState(loaded_run.build(), keras.optimizers.SGD(), 4).save(loaded_run, 0, val_nats=2.0)
    for force in (False, True):
        export_lite(folder, out, FLOAT32, data=run.parent / "data", force=force)
    assert [path.name for path in out.glob("step-*")] == ["step-0"], "7 has no checkpoint, 12 is the best"
    untrained = checkpoint.load_model(loaded_run, checkpoint.choose(loaded_run, "0"))
    file = LiteModel(out / "step-0" / "int8-dynamic.tflite")
    ids_T = np.frombuffer(b"import spam\n\ndef eggs(x):\n", np.uint8)
    expected_TxV = untrained(tf.constant(ids_T[None], tf.int32), untrained.initial_carry(1))[0][0].numpy()
    np.testing.assert_allclose(steps(file, ids_T), expected_TxV, atol=TOLERANCE["int8-dynamic"])
    listed = [json.loads((folder / "model.json").read_text()) for folder in (out, out / "step-0")]
    assert [(about["step"], list(about["files"])) for about in listed] == [(12, ["float32"]), (0, ["int8-dynamic"])]
    (out / "step-0" / "model.json").write_text("{}")
    assert checksums.verify(out) == [f"{out / 'step-0' / 'model.json'} is corrupted"]


@pytest.mark.usefixtures("unmeasured")
def test_any_damage_to_the_list_of_neurons_is_detected(run: Path, tmp_path: Path) -> None:
    folder, out = shutil.copytree(run, tmp_path / "run"), tmp_path / "out"
    weights = checkpoint.weights_sha256(checkpoint.best(read_run(folder)))
    write_record(
        folder / "neurons.json", {"weights_sha256": weights, "neurons": [{"layer": 1, "unit": 2, "about": ""}]}
    )
    export_lite(folder, out, FLOAT32, data=run.parent / "data", force=False)
    assert checksums.verify(out) == []
    whole = (out / "neurons.json").read_bytes()
    start = whole.index(b'"neurons"') + 2
    for damage in (whole[:start] + b"?" + whole[start + 1 :], whole[:-9], whole.replace(b"2", b"3")):
        (out / "neurons.json").write_bytes(damage)
        assert checksums.verify(out) == [f"{out / 'neurons.json'} is corrupted"]
        for force, fix in ((False, "rebuild all with --force"), (True, "correct or remove it")):
            with pytest.raises(StageError, match=rf"neurons\.json is corrupted.*: {fix}"):
                export_lite(folder, out, FLOAT32, data=run.parent / "data", force=force)


STEP = """
import sys
import numpy as np
try:
    from tflite_runtime.interpreter import Interpreter
except ImportError:
    from ai_edge_litert.interpreter import Interpreter

path, ids_path, logits_path = sys.argv[1:]
step = Interpreter(path).get_signature_runner("step")
carry, rows = np.zeros(step.get_input_details()["carry"]["shape"], np.float32), []
for token in np.load(ids_path):
    outputs = step(token=np.array([token], np.int32), carry=carry)
    carry = outputs["carry"]
    rows.append(outputs["logits"][0])
np.save(logits_path, rows)
"""
PACKAGES = {
    "TensorFlow Lite 2.14": ["tflite-runtime==2.14.0", "numpy<2"],
    "LiteRT 1.0": ["ai-edge-litert==1.0.1", "numpy<2"],
}


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("runtime", PACKAGES)
def test_oldest_runtimes_run_the_files(run: Path, devices: Path, runtime: str, tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    install = [python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *PACKAGES[runtime]]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if "No matching distribution" in done.stderr:
        pytest.skip(f"{PACKAGES[runtime][0]} has no package for this Python")
    assert done.returncode == 0, done.stderr
    ids_T = np.frombuffer(b"import spam\n\ndef eggs(x):\n", np.uint8)
    np.save(tmp_path / "ids.npy", ids_T)
    for precision in PRECISIONS:
        arguments = [
            str(path) for path in (devices / f"{precision}.tflite", tmp_path / "ids.npy", tmp_path / "out.npy")
        ]
        done = subprocess.run([python, "-c", STEP, *arguments], capture_output=True, text=True, check=False)
        if RUNTIMES[precision] == "LiteRT 1.0" and runtime != "LiteRT 1.0":
            assert "FULLY_CONNECTED" in done.stderr
            continue
        assert done.returncode == 0, done.stderr
        np.testing.assert_allclose(np.load(tmp_path / "out.npy"), logits(run, ids_T), atol=TOLERANCE[precision])
    report = json.loads((devices / "report.json").read_text())
    assert {name: file["oldest_runtime"] for name, file in report["files"].items()} == RUNTIMES


def test_nan_on_held_out_text_is_rejected(run: Path, tmp_path: Path) -> None:
    invalid, vocab = load(run), read_run(run).vocab
    invalid.dense.bias.assign(np.where(np.arange(256) == 7, np.nan, 0))
    about = {"format_version": 1, "vocab": vocab.to_json()}
    (tmp_path / "a.tflite").write_bytes(pack(convert(invalid, None, "float32"), about))
    text = HeldOutText("val", np.arange(20, dtype=np.int32)[None])
    with pytest.raises(StageError, match=r"the float32 \.tflite produced NaN or infinity"):
        measure(load(run), {"float32": LiteModel(tmp_path / "a.tflite")}, text)


def _convert_function(function: Any, *specs: tf.TensorSpec, ops: list[Any]) -> bytes:
    module = tf.Module()
    module.variable = tf.Variable(np.ones(4, np.float32))
    traced = tf.function(lambda x: function(module, x), autograph=False).get_concrete_function(*specs)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced], module)
    converter.target_spec.supported_ops = ops
    converter.experimental_enable_resource_variables = True
    return converter.convert()


def test_ops_other_than_stateless_builtins_are_rejected() -> None:
    builtin, select = tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS
    spec = tf.TensorSpec([4], tf.float32)
    flex = _convert_function(lambda _, x: tf.linalg.cholesky(tf.reshape(x, [2, 2])), spec, ops=[builtin, select])
    with pytest.raises(StageError, match=r"the float32 \.tflite needs more than stateless builtin ops: FlexCholesky$"):
        check_ops(flex, "float32")
    stateful = _convert_function(lambda module, x: module.variable.assign_add(x), spec, ops=[builtin])
    with pytest.raises(StageError, match=r"builtin ops: ASSIGN_VARIABLE, READ_VARIABLE, VAR_HANDLE$"):
        check_ops(stateful, "float32")
    check_ops(_convert_function(lambda _, x: x + 1, spec, ops=[builtin]), "float32")


def test_same_model_is_kept_and_different_model_is_rejected(
    run: Path, devices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_lite(run, devices, LiteSettings(), data=None, force=False)
    export_lite(run, devices, LiteSettings(("int8-dynamic",)), data=None, force=False)
    assert capsys.readouterr().err.count("is up to date with") == 2
    about = devices / "model.json"
    complete = json.loads(about.read_text())
    for path in damaged(devices, "neurons.json"):
        with pytest.raises(
            StageError, match=rf"{path.name} is (corrupted|missing): rebuild all with|has no {path.name}\)"
        ):
            export_lite(run, devices, LiteSettings(), data=None, force=False)
    other = shutil.copytree(devices, tmp_path / "other")
    (other / "float16.tflite").write_bytes(b"half of it")
    with pytest.raises(StageError, match=r"other/float16\.tflite is corrupted: rebuild all with --force, or"):
        export_lite(run, other, LiteSettings(), data=None, force=False)
    (other / "float16.tflite").unlink()
    with pytest.raises(
        StageError, match=r"other/float16\.tflite is missing: rebuild all with --force, or pass another"
    ):
        export_lite(run, other, LiteSettings(), data=None, force=False)
    (other / "model.json").write_text(json.dumps({**complete, "step": 1}))
    checksums.write(other)
    with pytest.raises(StageError, match=r"other already holds a different model: pass another --out or --force$"):
        export_lite(run, other, LiteSettings(), data=None, force=False)
    (other / "model.json").write_text(json.dumps({**complete, "files": {"float16": complete["files"]["float16"]}}))
    with pytest.raises(StageError, match=r"other has float16, not float32: rebuild all with --force, or pass another"):
        export_lite(run, other, LiteSettings(), data=None, force=False)


def test_missing_or_different_data_set_is_rejected(
    run: Path, tmp_path: Path, make_data: Callable[..., Manifest]
) -> None:
    with pytest.raises(StageError, match="pass its folder with --data"):
        export_lite(run, tmp_path / "out", FLOAT32, tmp_path / "gone", force=False)
    make_data(tmp_path / "other", 100, train=b"other", val=b"other")
    with pytest.raises(StageError, match=r"is not the training data of"):
        export_lite(run, tmp_path / "out", FLOAT32, tmp_path / "other", force=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((("float64",),), "unknown precision 'float64': valid ones are float32, float16, int8-dynamic"),
        (((),), "--precision needs at least one of float32"),
        ((("float32",), {"int4": 1.0}), "unknown precision 'int4'"),
        ((("float32",), {"float16": 1.0}), "--allow float16: add float16 to --precision"),
    ],
)
def test_invalid_settings_raise(values: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LiteSettings(*values)
