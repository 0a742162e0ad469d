import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from common.errors import StageError, UsageError
from export.bundle import pack, unpack
from export.lite import lite
from export.lite.graph import PRECISIONS, check_ops, convert, ops_of
from export.lite.lite import Wanted, export_lite, prove
from export.lite.quality import Text, lanes, measure, reader, samples
from export.lite.runner import LiteModel, Sampling
from pipeline.manifest import Manifest, read_manifest
from trainers import checkpoint
from trainers.model.char_rnn import CharRNN
from trainers.run import read_run
from trainers.sampling.rows import Request
from trainers.sampling.sampler import Sampler

GREEDY = Sampling(temperature=0)
EVERY = Wanted(allowed=dict.fromkeys(PRECISIONS, 10.0))  # models of a few steps on tiny texts: what they lose is chance


def load(run: Path) -> CharRNN:
    return checkpoint.load_model(read_run(run))


def greedy(run: Path, prompt: bytes, length: int = 40) -> bytes:
    """The likeliest characters after a prompt, by the checkpoint."""
    sampler = Sampler(load(run), read_run(run).vocab)
    asked = Request(*(tf.constant([x]) for x in (prompt, length, 0.0)), tf.constant([1], tf.int64))
    return sampler.generate(asked).text_bytes.numpy()[0]


def logits(run: Path, ids_T: np.ndarray) -> np.ndarray:
    """What the checkpoint expects after each id, from an empty carry."""
    model, end_id = load(run), read_run(run).vocab.end_id
    read = reader(model, end_id, len(ids_T))
    return read(tf.constant(ids_T[None].astype(np.int32)), model.initial_carry(1))[0][0].numpy()


def steps(file: LiteModel, ids_T: np.ndarray) -> np.ndarray:
    """The same by single steps of a file."""
    carry, rows = file.initial_carry(), []
    for token in ids_T.tolist():
        logits_V, carry = file.step(token, carry)
        rows.append(logits_V)
    return np.stack(rows)


def converted(run: Path, ids_T: np.ndarray, folder: Path) -> Iterator[LiteModel]:
    """A run's model in every precision, as folder/PRECISION.tflite, not measured; calibrated on these ids."""
    held, model = read_run(run), load(run)
    inputs = samples(model, held.vocab.end_id, ids_T[None].astype(np.int32))
    for precision in PRECISIONS:
        about = {"format_version": 1, "vocab": held.vocab.to_json(), "precision": precision}
        path = folder / f"{precision}.tflite"
        path.write_bytes(pack(convert(model, held.vocab.end_id, precision, inputs), about))
        yield LiteModel(path)


@pytest.fixture(scope="module")
def devices(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("devices") / "tiny"
    export_lite(run, out, EVERY, data=None, force=False)
    return out


# What a file gives differs from the checkpoint's logits by at most so much, in models of 5 to 9 units.
NEAR = {"float32": 1e-5, "float16": 0.005, "int8-dynamic": 0.1, "int8-full": 0.2}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_runtime_gives_the_checkpoints_logits_and_greedy_text(run: Path, devices: Path, precision: str) -> None:
    file, text = LiteModel(devices / f"{precision}.tflite"), b"import spam\n\ndef eggs(x):\n"
    ids_T = np.frombuffer(text, np.uint8)
    np.testing.assert_allclose(steps(file, ids_T), logits(run, ids_T), atol=NEAR[precision])
    if precision == "float32":
        assert file.generate(b"def ", 40, GREEDY) == greedy(run, b"def ")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_prefill_is_16_steps_at_once(devices: Path, precision: str) -> None:
    file, ids_T = LiteModel(devices / f"{precision}.tflite"), np.arange(40, 40 + 37)
    carry = file.initial_carry()
    for token in ids_T.tolist():
        logits_V, carry = file.step(token, carry)
    at_once_V, after = file.read(ids_T, file.initial_carry())  # 16, 16, 5
    np.testing.assert_array_equal(at_once_V, logits_V)
    np.testing.assert_array_equal(after, carry)
    assert np.abs(carry).max() > 0.01


def test_every_cell_runs_on_the_runtime(other_run: Path, tmp_path: Path) -> None:
    model, vocab = load(other_run), read_run(other_run).vocab
    ids_T = vocab.encode(b"return eggs * 2\n\n\ndef spam(eggs):\n")
    expected_TxV = logits(other_run, ids_T)
    for file in converted(other_run, ids_T, tmp_path):
        assert file.initial_carry().shape == model.initial_carry(1).shape
        np.testing.assert_allclose(steps(file, ids_T), expected_TxV, atol=NEAR[file.about["precision"]])
        np.testing.assert_array_equal(file.read(ids_T, file.initial_carry())[0], steps(file, ids_T)[-1])
    file = LiteModel(tmp_path / "float32.tflite")
    assert file.generate(b"def ", 40, GREEDY) == greedy(other_run, b"def ")


def test_characters_and_documents(documents_run: Path, tmp_path: Path) -> None:
    text = "Анна\nZoë\nĐorđe\nあい\n?".encode()
    ids_T = read_run(documents_run).vocab.encode(text)
    expected_TxV = logits(documents_run, ids_T)
    for file in converted(documents_run, ids_T, tmp_path):
        end, full = file.vocab.end_id, np.ones_like(file.initial_carry())
        np.testing.assert_array_equal(file.step(end, full)[0], file.step(end, 0 * full)[0])
        np.testing.assert_allclose(steps(file, ids_T), expected_TxV, atol=NEAR[file.about["precision"]])
        np.testing.assert_array_equal(file.read(ids_T, full)[0], steps(file, ids_T)[-1])  # an end is among the first 16
    file = LiteModel(tmp_path / "float32.tflite")
    for prompt in (b"", b"Zo", "Анна\nĐ".encode(), b"q?"):
        assert file.generate(prompt, 40, GREEDY) == greedy(documents_run, prompt)
    texts = [file.generate(b"", 40, Sampling(1.5, seed)) for seed in range(20)]
    assert not any(b"\n" in text for text in texts)
    assert len({len(text) for text in texts}) > 1, "they end where their documents do"


def test_the_files_are_self_contained_and_of_fixed_shape(devices: Path) -> None:
    for precision in PRECISIONS:
        file = LiteModel(devices / f"{precision}.tflite")
        step, prefill = file._step, file._prefill
        shapes = [
            {name: (one["shape"].tolist(), one["dtype"]) for name, one in details.items()}
            for details in (step.get_input_details(), step.get_output_details(), prefill.get_input_details())
        ]
        carry = ([1, 2, 2, 9], np.float32)
        assert shapes[0] == {"token": ([1], np.int32), "carry": carry}
        assert shapes[1] == {"logits": ([1, 256], np.float32), "carry": carry}
        assert shapes[2] == {"tokens": ([16], np.int32), "carry": carry}
        assert file._interpreter.get_input_details()[0]["shape"].tolist() == [1], "step is the primary subgraph"
        flatbuffer, about = unpack(devices / f"{precision}.tflite")
        assert {"FULLY_CONNECTED", "WHILE"} <= ops_of(flatbuffer)
        assert about["precision"] == precision


def test_weights_lie_in_a_file_once(tmp_path: Path) -> None:
    # Wide enough that what is not weights hardly counts.
    model = CharRNN(checkpoint.RunConfig.from_tables({"units": 256, "layers": 1}, {}, "test").model, 64)
    count = model.count_params()
    rng = np.random.default_rng(0)
    carries = rng.uniform(-1, 1, (4, *model.initial_carry(1).shape)).astype(np.float32)
    samples = [{"token": np.array([i], np.int32), "carry": carry} for i, carry in enumerate(carries)]
    for precision, bytes_each in zip(PRECISIONS, (4, 2, 1, 1), strict=True):
        size = len(convert(model, None, precision, samples))
        assert bytes_each * count < size < bytes_each * count + 60_000 < 2 * bytes_each * count, precision


def test_what_is_said_of_the_files(run: Path, devices: Path) -> None:
    said, report = (json.loads((devices / name).read_text()) for name in ("model.json", "report.json"))
    _, about = unpack(devices / "int8-full.tflite")
    files = said.pop("files")
    assert {**said, "precision": "int8-full"}.items() <= about.items()
    assert (said["run"], said["vocab"]["unit"]) == ("tiny", "byte")
    assert list(files) == list(report["files"]) == list(PRECISIONS)
    for name, one in files.items():
        path = devices / one["file"]
        assert path.stat().st_size == one["size"] == report["files"][name]["bytes"]
        assert one["sha256"] == lite.sha256_file(path)
        measured = report["files"][name]
        assert measured["bits"] - report["checkpoint_bits"] == pytest.approx(measured["lost_bits"], abs=1e-9)
        assert 0 < measured["us_a_step"] < 1e5
        assert 0 < measured["peak_bytes"] < 1e9
    assert report["text"] == {"split": "val", "characters": 99}
    assert report["calibration"] == {"split": "val", "characters": 100}
    told = "there is no test split: int8-full is measured on the split of which 100 fixed its scales"
    assert lite.table(devices, report, "byte").caption == told
    assert lite.table(devices, {**report, "text": {"split": "test", "characters": 99}}, "byte").caption is None
    float32 = report["files"]["float32"]
    found = [float32[name] for name in ("lost_bits", "kl_bits", "greedy_agreement")]
    np.testing.assert_allclose(found, [0, 0, 1], atol=1e-6)


def test_bits_are_those_of_the_text(run: Path, devices: Path) -> None:
    manifest = read_manifest(run.parent / "data")
    text = lanes(run.parent / "data", manifest, "train", 3, 50)
    assert (text.ids_BxT.shape, text.characters) == ((3, 51), 150)
    expected = []
    for ids_T in text.ids_BxT:
        log_p_TxV = tf.nn.log_softmax(logits(run, ids_T[:-1]).astype(np.float64)).numpy()
        expected.append(-log_p_TxV[np.arange(50), ids_T[1:]] / np.log(2))
    own, each = measure(load(run), {"float32": LiteModel(devices / "float32.tflite")}, text)
    assert own == pytest.approx(np.mean(expected), abs=1e-6) == pytest.approx(each["float32"].bits, abs=1e-6)


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


# Refusals


def test_a_file_of_another_model_is_not_passed(run: Path, devices: Path) -> None:
    other = load(run)
    other.dense.bias.assign_add(0.001 * tf.one_hot(7, 256))
    with pytest.raises(StageError, match=r"the written float32\.tflite's logits differ by 0\.001"):
        prove(devices / "float32.tflite", other)


def test_a_carry_of_prefill_and_a_number_that_are_not_the_steps_are_not_passed(
    run: Path, devices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, read, window = LiteModel.step, LiteModel.read, 16

    def other_carry(self: LiteModel, ids: Any, carry: Any) -> Any:
        assert len(ids) > window
        logits_V, after = read(self, ids, carry)
        return logits_V, after + 0.001

    def no_number(self: LiteModel, token: int, carry: Any) -> Any:
        logits_V, after = step(self, token, carry)
        return (logits_V * np.nan if not carry.any() else logits_V), after

    with monkeypatch.context() as patched, pytest.raises(StageError, match="leaves another carry than its steps do"):
        patched.setattr(LiteModel, "read", other_carry)
        prove(devices / "float32.tflite", load(run))
    for precision in ("float32", "int8-full"):
        with monkeypatch.context() as patched, pytest.raises(StageError, match="logits differ by nan"):
            patched.setattr(LiteModel, "step", no_number)  # the first alone
            prove(devices / f"{precision}.tflite", load(run))


def test_what_loses_too_much_is_refused_and_nothing_is_left(run: Path, tmp_path: Path) -> None:
    strict = Wanted(("float32", "int8-dynamic"), {"int8-dynamic": -1.0})
    message = (
        r"^int8-dynamic loses -?0\.\d{4} bits a character on held-out text, at most -1 is allowed: leave it out "
        r"\(--precision float32\), or say --allow int8-dynamic=\S+$"
    )
    with pytest.raises(StageError, match=message):
        export_lite(run, tmp_path / "out", strict, data=None, force=False)
    assert list(tmp_path.iterdir()) == []


def test_the_limits_are_those_that_are_told(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lite.LIMITS == {"float32": 0.0001, "float16": 0.001, "int8-dynamic": 0.02, "int8-full": 0.05}
    monkeypatch.setitem(lite.LIMITS, "float32", -1.0)
    with pytest.raises(StageError, match="at most -1 is allowed: say --allow float32="):
        export_lite(run, tmp_path / "out", Wanted(("float32",)), data=None, force=False)
    loose = Wanted(("float32",), {"float32": 0.01})
    export_lite(run, tmp_path / "out", loose, data=None, force=False)
    (tmp_path / "out" / "neurons.json").write_text("a person's own")
    export_lite(run, tmp_path / "out", loose, data=None, force=True)
    assert (tmp_path / "out" / "neurons.json").read_text() == "a person's own"


def test_what_was_found_in_the_run_comes_along(run: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(run, folder)
    weights = checkpoint.weights_sha256(checkpoint.best(read_run(folder)))

    def exported(text: str | None, force: bool = False) -> str | None:
        """What lies beside the files, where this lies in the run."""
        (folder / "neurons.json").unlink(missing_ok=True)
        if text is not None:
            (folder / "neurons.json").write_text(text)
        export_lite(folder, out, Wanted(("float32",), {"float32": 0.01}), data=run.parent / "data", force=force)
        return (out / "neurons.json").read_text() if (out / "neurons.json").exists() else None

    found, newer, older = (
        json.dumps({"weights_sha256": w, "neurons": n}) for w, n in ((weights, []), (weights, [1]), ("", []))
    )
    assert exported(older) is None, "it was found in other weights"
    assert exported(found) == found, "the files were there already"
    assert exported(newer, force=True) == newer
    assert exported(None, force=True) is None
    (out / "neurons.json").write_text("[]")
    assert exported(found) == "[]", "a person's own"


def test_a_file_that_gives_no_number_is_refused(run: Path, tmp_path: Path) -> None:
    broken, vocab = load(run), read_run(run).vocab
    broken.dense.bias.assign(np.where(np.arange(256) == 7, np.nan, 0))
    about = json.dumps({"format_version": 1, "vocab": vocab.to_json()})
    (tmp_path / "a.tflite").write_bytes(pack(convert(broken, None, "float32", []), json.loads(about)))
    text = Text("val", np.arange(20, dtype=np.int32)[None])
    with pytest.raises(StageError, match=r"the float32 \.tflite gives what is no number"):
        measure(load(run), {"float32": LiteModel(tmp_path / "a.tflite")}, text)


def _converted(function: Any, *specs: tf.TensorSpec, ops: list[Any]) -> bytes:
    module = tf.Module()
    module.held = tf.Variable(np.ones(4, np.float32))
    traced = tf.function(lambda x: function(module, x), autograph=False).get_concrete_function(*specs)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced], module)
    converter.target_spec.supported_ops = ops
    converter.experimental_enable_resource_variables = True
    return converter.convert()


def test_ops_that_a_runtime_may_not_have_are_refused() -> None:
    builtin, select = tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS
    spec = tf.TensorSpec([4], tf.float32)
    flex = _converted(lambda _, x: tf.linalg.cholesky(tf.reshape(x, [2, 2])), spec, ops=[builtin, select])
    with pytest.raises(StageError, match=r"the float32 \.tflite needs more than stateless builtin ops: FlexCholesky$"):
        check_ops(flex, "float32")
    held = _converted(lambda module, x: module.held.assign_add(x), spec, ops=[builtin])
    with pytest.raises(StageError, match=r"builtin ops: ASSIGN_VARIABLE, READ_VARIABLE, VAR_HANDLE$"):
        check_ops(held, "float32")
    check_ops(_converted(lambda _, x: x + 1, spec, ops=[builtin]), "float32")


def test_a_full_folder_is_refused_and_the_same_model_is_not_made_again(
    run: Path, devices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_lite(run, devices, EVERY, data=None, force=False)
    export_lite(run, devices, Wanted(("int8-dynamic",)), data=None, force=False)
    assert capsys.readouterr().err.count("is already made from") == 2
    about = devices / "model.json"
    whole = json.loads(about.read_text())
    other = shutil.copytree(devices, tmp_path / "other")
    (other / "float16.tflite").write_bytes(b"half of it")
    with pytest.raises(StageError, match=r"other/float16\.tflite is damaged: give --force to make all anew, or"):
        export_lite(run, other, EVERY, data=None, force=False)
    (other / "float16.tflite").unlink()
    with pytest.raises(StageError, match=r"other/float16\.tflite is gone: give --force to make all anew, or another"):
        export_lite(run, other, EVERY, data=None, force=False)
    (other / "model.json").write_text(json.dumps({**whole, "step": 1}))
    with pytest.raises(StageError, match=r"other already holds a different model: pass another --out or --force$"):
        export_lite(run, other, EVERY, data=None, force=False)
    (other / "model.json").write_text(json.dumps({**whole, "files": {"float16": whole["files"]["float16"]}}))
    with pytest.raises(StageError, match=r"other has float16, not float32: give --force to make all anew, or another"):
        export_lite(run, other, EVERY, data=None, force=False)


def test_without_its_data_nothing_is_made(run: Path, tmp_path: Path, make_data: Callable[..., Manifest]) -> None:
    with pytest.raises(StageError, match="pass its folder with --data"):
        export_lite(run, tmp_path / "out", EVERY, tmp_path / "gone", force=False)
    make_data(tmp_path / "other", 100, train=b"other", val=b"other")
    with pytest.raises(StageError, match=r"is not the training data of"):
        export_lite(run, tmp_path / "out", EVERY, tmp_path / "other", force=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((("float64",),), "no precision is called 'float64'; there are: float32, float16, int8-dynamic, int8-full"),
        (((),), "at least one precision"),
        ((("float32",), {"int4": 1.0}), "no precision is called 'int4'"),
        ((("float32",), {"float16": 1.0}), "--allow float16: it is not among the precisions that are made"),
    ],
)
def test_precisions_are_checked_first(values: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Wanted(*values)
