"""Page in a real browser, and its modules in Node.js; each JavaScript test is one pytest test."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from javascript import names, results, settle

from pipeline.vocab import byte_vocab, char_vocab
from trainers.sampling import draw

HERE = Path(__file__).parent


def uniforms() -> list[dict[str, Any]]:
    """Return random numbers from several positions."""
    seeds, firsts = np.meshgrid([0, 1, 77, 2**32 + 5, 2**53 - 1], [0, 1, 6, 10_001])
    seeds, firsts = seeds.ravel(), firsts.ravel()
    numbers = draw.uniforms(tf.constant(seeds), tf.constant(firsts), tf.ones(len(seeds)), tf.constant(5)).numpy().T
    columns = zip(seeds.tolist(), firsts.tolist(), numbers.tolist(), strict=True)
    return [{"seed": seed, "first": first, "numbers": row} for seed, first, row in columns]


def draws() -> list[dict[str, Any]]:
    """Return draws from logits under varied settings."""
    chance, cases = np.random.default_rng(), []
    for _ in range(300):
        V = int(chance.integers(1, 90))
        logits = (3 * chance.normal(size=V)).astype(np.float32)
        temperature = float(chance.choice([0.0, 1e-4, 0.3, 1.0, 2.0]))
        top_k, top_p = int(chance.choice([0, 1, 3, 200])), float(chance.choice([0.05, 0.6, 0.95, 1.0]))
        uniform = np.float32(chance.random() if temperature >= draw.GREEDY else 0)
        scaled = tf.constant(logits[None]) * draw.sharpness(tf.constant([temperature]))[:, None]
        narrowed = draw.narrowed(scaled, tf.constant([top_k]), tf.constant([top_p]))
        cases.append(
            {
                "logits": logits.tolist(),
                "sampling": {"temperature": temperature, "topK": top_k, "topP": top_p},
                "uniform": float(uniform),
                "probabilities": tf.nn.softmax(narrowed)[0].numpy().tolist(),
                "id": int(draw.choose(narrowed, tf.constant([[uniform]]), draw.cumulation(V))[0]),
            }
        )
    return cases


def vocabs() -> list[dict[str, Any]]:
    """Return texts and invalid bytes, encoded to ids and decoded again."""
    chance, cases = np.random.default_rng(), []
    text = "naïve “café” 那是猫 \U0001f431\ufffd\n"
    known = char_vocab(Counter("nave cfé\n"), replace=True)
    for vocab in (
        byte_vocab(),
        byte_vocab("newline"),
        byte_vocab("token"),
        known,
        char_vocab(Counter(text), end="token"),
    ):
        written = [index for index, symbol in enumerate(vocab.symbols) if symbol]
        ids = chance.choice(written, 300).tolist()
        if vocab.unit == "byte":  # like a model that has half learnt UTF-8
            cut = list(text.encode() * 20)
            ids += [byte for byte in cut if chance.random() < 0.9]
        ids += [vocab.size - 1] * (len(written) < vocab.size)  # the end of the document
        cases.append(
            {
                "vocab": vocab.to_json(),
                "text": text,
                "prompt": vocab.prompt_ids(text.encode()).tolist(),
                "empty": vocab.prompt_ids(b"").tolist(),
                "ids": ids,
                "decoded": vocab.decode(ids).decode(errors="replace"),
            }
        )
    return cases


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory, out: Path, request: pytest.FixtureRequest) -> dict[str, str]:
    path = tmp_path_factory.mktemp("units") / "cases.json"
    path.write_text(json.dumps({"uniforms": uniforms(), "draws": draws(), "vocabs": vocabs()}))
    return results(HERE / "units.test.mjs", path, out, request)


@pytest.fixture(scope="module")
def browsed(cases: Path, out: Path, request: pytest.FixtureRequest) -> dict[str, str]:
    return results(HERE / "page.test.mjs", cases, out, request)


@pytest.mark.parametrize("name", names(HERE / "units.test.mjs"))
def test_module(units: dict[str, str], name: str) -> None:
    settle(units, name)


@pytest.mark.parametrize("name", names(HERE / "page.test.mjs"))
def test_page(browsed: dict[str, str], name: str) -> None:
    settle(browsed, name)
