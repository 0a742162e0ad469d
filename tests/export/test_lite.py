import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from common.errors import StageError
from export.lite import export_lite, prove
from export.lite_runner import LiteModel
from trainers import checkpoint
from trainers.generate import Asked, Sampler
from trainers.model import CharRNN


@pytest.fixture(scope="module")
def devices(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("devices") / "tiny"
    export_lite(run, out, force=False)
    return out


def load(run: Path) -> CharRNN:
    return checkpoint.load_model(checkpoint.read_run(run))


def greedy(run: Path, prompt: bytes) -> bytes:
    """The 40 likeliest characters after a prompt, by the checkpoint."""
    sampler = Sampler(load(run), checkpoint.read_run(run).vocab)
    asked = Asked(*(tf.constant([x]) for x in (prompt, 40, 0.0)), tf.constant([1], tf.int64))
    return sampler.generate(asked).text_bytes.numpy()[0]


def test_the_runtime_gives_the_checkpoints_logits_and_greedy_text(run: Path, devices: Path) -> None:
    lite, text = LiteModel(devices), b"import spam\n\ndef eggs(x):\n"
    model = load(run)
    expected_TxV = model(np.frombuffer(text, np.uint8)[None], model.initial_carry(1))[0][0]
    carry = lite.initial_carry()
    for byte, expected_V in zip(text, expected_TxV, strict=True):
        logits_V, carry = lite.step(byte, carry)
        np.testing.assert_allclose(logits_V, expected_V, atol=1e-4)
    assert lite.generate(b"def ", 40, temperature=0, seed=1) == greedy(run, b"def ")


def test_every_cell_runs_on_the_runtime(other_run: Path, tmp_path: Path) -> None:
    export_lite(other_run, tmp_path / "other", force=False)
    lite = LiteModel(tmp_path / "other")
    assert lite.initial_carry().shape == load(other_run).initial_carry(1).shape
    assert lite.generate(b"def ", 40, temperature=0, seed=1) == greedy(other_run, b"def ")


def test_characters_and_documents(documents_run: Path, tmp_path: Path) -> None:
    export_lite(documents_run, tmp_path / "names", force=False)
    lite = LiteModel(tmp_path / "names")
    prompts = [b"", b"Zo", "Анна\nĐ".encode(), b"q?"]
    for prompt in prompts:
        assert lite.generate(prompt, 40, temperature=0, seed=1) == greedy(documents_run, prompt)
    texts = [lite.generate(b"", 40, 1.5, seed) for seed in range(20)]
    assert not any(b"\n" in text for text in texts)
    assert len({len(text) for text in texts}) > 1, "they end where their documents do"
    end, full = lite.vocab.end_id, np.ones_like(lite.initial_carry())
    np.testing.assert_array_equal(lite.step(end, full)[0], lite.step(end, 0 * full)[0])


def test_the_file_is_self_contained_and_of_fixed_shape(devices: Path) -> None:
    lite = LiteModel(devices)
    assert not any(op.startswith("Flex") or op in ("CUSTOM", "VAR_HANDLE") for op in lite.ops)
    assert "FULLY_CONNECTED" in lite.ops
    inputs = {name: (d["shape"].tolist(), d["dtype"]) for name, d in lite._run.get_input_details().items()}
    outputs = {name: d["shape"].tolist() for name, d in lite._run.get_output_details().items()}
    assert inputs == {"token": ([1], np.int32), "carry": ([1, 2, 2, 9], np.float32)}
    assert outputs == {"logits": [1, 256], "carry": [1, 2, 2, 9]}
    weights = 4 * (256 * 36 + 9 * 36 + 36 + 9 * 36 + 9 * 36 + 36 + 9 * 256 + 256)
    assert (devices / "model.tflite").stat().st_size > weights


def test_seeds_repeat_and_the_empty_prompt_starts_after_a_newline(devices: Path) -> None:
    lite = LiteModel(devices)
    one, same, other = (lite.generate(b"a", 30, 1.0, seed) for seed in (1, 1, 2))
    assert one == same != other
    assert lite.generate(b"", 30, 1.0, 1) == lite.generate(b"\n", 30, 1.0, 1)


def test_a_file_of_another_model_is_not_passed(run: Path, devices: Path) -> None:
    other = load(run)
    other.dense.bias.assign_add(0.001 * tf.one_hot(7, 256))
    with pytest.raises(StageError, match=r"the written \.tflite's logits differ by 0\.001"):
        prove(devices, other)


def test_a_full_folder_is_refused_and_the_same_model_is_not_made_again(
    run: Path, devices: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_lite(run, devices, force=False)
    assert "is already made from" in capsys.readouterr().err
    about = devices / "model.json"
    whole = about.read_text()
    about.write_text(json.dumps({**json.loads(whole), "step": 1}))
    with pytest.raises(StageError, match=r"tiny is full: another model lies there; give another --out or --force$"):
        export_lite(run, devices, force=False)
    about.write_text(whole)


@pytest.mark.parametrize("broken", ["nothing", "no model", "half a model"])
def test_what_is_no_model_is_refused(devices: Path, tmp_path: Path, broken: str) -> None:
    if broken != "nothing":
        (tmp_path / "model.json").write_text((devices / "model.json").read_text())
    if broken == "half a model":
        whole = (devices / "model.tflite").read_bytes()
        (tmp_path / "model.tflite").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StageError, match=r"holds no whole \.tflite model"):
        LiteModel(tmp_path)
