import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tiny_data import make_data

from common.console import quiet
from common.errors import StageError, UsageError
from common.settings import make
from pipeline.config import ValidateSettings
from pipeline.manifest import read_manifest, write_manifest
from pipeline.records import NUMBERS, name_of, record_batch
from pipeline.report import counts_of
from pipeline.vocab import char_vocab

with quiet(withhold=()):
    from pipeline import validate as module
    from pipeline.validate import (
        Reference,
        Rules,
        Statistics,
        check,
        distances_of,
        findings_of,
        schema_of,
        validate,
    )

ENGLISH = b"It was the best of times, it was the worst of times.\n" * 40
GREEK = "Ἄνδρα μοι ἔννεπε, Μοῦσα, πολύτροπον, ὃς μάλα πολλὰ\n".encode() * 40
MIXED = ENGLISH + "ö".encode() * 15 + b"\x01" * 5  # 20 of 2,140 characters are new: 0.93 %


def content(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "validation").iterdir()}


def divergence(first: bytes, second: bytes) -> float:
    """Compute the Jensen-Shannon divergence in bits, by definition."""
    counts = [Counter(text.decode()) for text in (first, second)]
    p, q = (np.array([n[c] / n.total() for c in sorted(counts[0] | counts[1])]) for n in counts)

    def kullback_leibler(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sum(a[a > 0] * np.log2(a[a > 0] / b[a > 0])))

    return (kullback_leibler(p, (p + q) / 2) + kullback_leibler(q, (p + q) / 2)) / 2


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Statistics]:
    """Statistics of the texts above."""
    folder = tmp_path_factory.mktemp("texts") / "data"
    manifest = make_data(folder, 10_000, train=ENGLISH, greek=GREEK, mixed=MIXED, nothing=b"")
    return module.count(folder, manifest, folder)


@pytest.fixture
def find(statistics: dict[str, Statistics]) -> Callable[..., list[tuple[str, str, bool]]]:
    """find(split, text, ...): check a text as a split, and return its findings as (name, text, waived)."""

    def find(
        split: str,
        text: str,
        schema: str = "",
        earlier: str = "",
        edit: Callable[..., None] | None = None,
        **values: object,
    ) -> list[tuple[str, str, bool]]:
        used = schema_of(statistics[schema or "train"])
        if edit:
            edit(used)
        rules = Rules(
            make(ValidateSettings, values, "test"),
            used if schema else None,
            Reference("old", "0", statistics[earlier]) if earlier else None,
        )
        splits = {"train": statistics["train"], split: statistics[text]}
        findings = findings_of(split, check(split, splits, used, rules), splits, used, rules)
        return [(finding.name, finding.text, finding.waived) for finding in findings]

    return find


def test_valid_data_is_stamped_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "RANGE_TOKENS", 1000)  # several ranges per split
    monkeypatch.setattr(module, "RECORD_CHARS", 100)
    manifest = make_data(folder, 700, train=ENGLISH, val=ENGLISH[:1500], test=ENGLISH[100:900])
    stamped = validate(folder, ValidateSettings())
    assert read_manifest(folder) == stamped == dataclasses.replace(manifest, validation=stamped.validation)
    stamp, files = stamped.validation or {}, content(folder)
    assert sorted(files) == [
        "report.html", "schema.pbtxt", "test.stats.pb", "train.stats.pb", "val.stats.pb",
    ]  # fmt: skip
    assert {name: value for name, value in stamp.items() if name not in ("when", "asked_sha256", "tools")} == {
        "result": "valid",
        "checked": {"train": len(ENGLISH), "val": 1500, "test": 800},
        "waived": {},
        "settings": {
            "min_known": 0.99,
            "max_divergence": 0.25,
            "max_drift": 0.05,
            "max_skew": 0.1,
            "waive": [],
        },
        "schema": {"sha256": files["schema.pbtxt"], "given": False},
        "against": None,
        "statistics": {name: files[f"{name}.stats.pb"] for name in ("train", "val", "test")},
    }
    capsys.readouterr()
    assert validate(folder, ValidateSettings()) == stamped
    assert content(folder) == files
    assert "is already valid for these settings" in capsys.readouterr().out


def test_statistics_match_reference_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RANGE_TOKENS", 61)  # cuts within characters
    random = np.random.default_rng(5)
    parts = [*map(str.encode, "ab é𝄞€\n\t\x1b19"), b"\xff", b"\n\n", "、".encode()]
    texts = {
        name: b"".join(parts[i] for i in random.integers(len(parts), size=n))
        for name, n in (("train", 900), ("val", 77))
    }
    manifest = make_data(folder, 97, **texts)
    monkeypatch.setattr(module, "RECORD_CHARS", 13)
    counted = module.count(folder, manifest, folder)
    for name, text in texts.items():
        (dataset,) = counted[name].datasets
        starts = range(0, len(text), 61)
        ranges = [module.read_text(folder, manifest, manifest.splits[name], start, start + 61) for start in starts]
        batches = [record_batch(part, 13).to_pydict() for part in ranges if part]
        features = {feature.path.step[0]: feature for feature in dataset.features}
        assert set(features) == {"char", *NUMBERS}
        assert dataset.num_examples == sum(len(batch["char"]) for batch in batches)
        char = features["char"].string_stats
        counts = Counter(name_of(ord(c)) for c in text.decode(errors="surrogateescape"))
        assert {bucket.label: bucket.sample_count for bucket in char.rank_histogram.buckets} == counts
        assert (char.unique, char.common_stats.tot_num_values) == (len(counts), counts.total())
        assert char.top_values[0].frequency == max(counts.values())
        for feature in NUMBERS:
            values = np.array([value for batch in batches for (value,) in batch[feature]], np.float64)
            number = features[feature].num_stats
            assert number.common_stats.num_non_missing == len(values)
            assert (number.min, number.max, number.num_zeros) == (values.min(), values.max(), sum(values == 0))
            assert (number.mean, number.std_dev) == pytest.approx((values.mean(), values.std()), abs=1e-6)


@pytest.mark.slow
def test_large_vocabulary_is_counted_exactly(folder: Path) -> None:
    text = "".join(chr(code) for code in range(0x4E00, 0x4E00 + 20_000)).encode()
    manifest = make_data(folder, 1 << 20, train=text + "一".encode())
    (dataset,) = module.count(folder, manifest, folder)["train"].datasets
    (char,) = [feature.string_stats for feature in dataset.features if feature.path.step[0] == "char"]
    assert (char.unique, len(char.rank_histogram.buckets)) == (20_000, 20_000)
    assert Counter(bucket.sample_count for bucket in char.rank_histogram.buckets) == {1: 19_999, 2: 1}


def test_character_tokens_are_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RANGE_TOKENS", 4)
    text = "né\n一二三a\n"
    vocab = char_vocab(Counter(text), end="token")
    ids = np.append(vocab.encode(text.encode()), vocab.end_id)
    make_data(folder, 5, vocab, train=np.tile(ids, 3))
    stamp = validate(folder, ValidateSettings()).validation or {}
    assert stamp["checked"] == {"train": 27}
    statistics = module.tfdv.load_stats_binary(str(folder / "validation/train.stats.pb"))
    assert counts_of(statistics) == {name_of(ord(c)): 3 * n for c, n in Counter(text).items()}


def test_different_script_is_invalid_and_removes_the_stamp(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = make_data(folder, 10_000, train=ENGLISH, val=GREEK)
    write_manifest(folder, dataclasses.replace(manifest, validation={"asked_sha256": "of other settings"}))
    with pytest.raises(StageError) as error:
        validate(folder, ValidateSettings())
    report = folder / "validation/report.html"
    assert str(error.value) == f"{folder} is not valid (val.char.unknown, val.char.divergence): see {report}"
    assert read_manifest(folder).validation is None
    counts = Counter(c for c in GREEK.decode() if c not in ENGLISH.decode())
    frequent = sorted(counts, key=lambda c: (-counts[c], c))[:5]
    examples = ", ".join(f"'{c}' ({counts[c]})" for c in frequent)
    message = f"{len(counts)} characters missing from train, {counts.total() / len(GREEK.decode()):.3%} of the text"
    unknown, divergent = capsys.readouterr().err.splitlines()
    assert unknown == f"val: char: {message}: {examples}, ..."
    distance = f"{divergence(ENGLISH, GREEK):.4f}"
    assert divergent == f"val: char: the characters are {distance} bits (Jensen-Shannon) from train, the limit is 0.25"
    assert "Not valid: 2 findings" in report.read_text(encoding="utf-8")

    stamped = validate(folder, ValidateSettings(waive=["val.char.unknown", "val.char.divergence"])).validation
    assert stamped is not None
    assert stamped["waived"] == {
        "val.char.unknown": unknown.removeprefix("val: char: "),
        "val.char.divergence": divergent.removeprefix("val: char: "),
    }
    assert capsys.readouterr().err.splitlines() == [f"waived: {unknown}", f"waived: {divergent}"]


def test_limits_are_configurable(find: Callable[..., list[tuple[str, str, bool]]]) -> None:
    assert find("val", "mixed") == []
    message = "2 characters missing from train, 0.935% of the text: 'ö' (15), '\\x01' (5)"
    assert find("val", "mixed", min_known=0.995) == [("val.char.unknown", message, False)]
    distance = f"{divergence(ENGLISH, MIXED):.4f}"
    message = f"the characters are {distance} bits (Jensen-Shannon) from train, the limit is 0.001"
    assert find("test", "mixed", max_divergence=0.001) == [("test.char.divergence", message, False)]


@pytest.mark.parametrize(
    ("waive", "waived"),
    [
        ([], [False, False]),
        (["char"], [True, True]),
        (["val.char"], [True, True]),
        (["test.char", "lines", "val.lines"], [False, False]),
        (["val.char.divergence"], [False, True]),
    ],
)
def test_waived_findings(
    find: Callable[..., list[tuple[str, str, bool]]], waive: list[str], waived: list[bool]
) -> None:
    assert [(name, is_waived) for name, _, is_waived in find("val", "greek", waive=waive)] == [
        ("val.char.unknown", waived[0]),
        ("val.char.divergence", waived[1]),
    ]


@pytest.mark.parametrize("name", ["", "val", "dev.char", "val.chars", "characters.val"])
def test_unknown_waiver_raises(name: str) -> None:
    with pytest.raises(
        UsageError, match=rf"'waive' takes FEATURE, .*, got '{name}'; splits: train, val, test; features: "
    ):
        make(ValidateSettings, {"waive": [name]}, "test")


def test_drift_and_skew_against_earlier_data(find: Callable[..., list[tuple[str, str, bool]]]) -> None:
    assert find("train", "train", earlier="mixed") == []
    assert find("val", "train", earlier="mixed") == []
    far, near = f"{divergence(ENGLISH, GREEK):.4f}", f"{divergence(ENGLISH, MIXED):.4f}"
    message = f"the characters are {far} bits (Jensen-Shannon) from the train of old, the limit is "
    assert find("train", "train", earlier="greek") == [("train.char.drift", message + "0.05", False)]
    assert find("val", "train", earlier="greek") == [("val.char.skew", message + "0.1", False)]
    assert find("val", "train", earlier="greek", max_skew=0.99) == []
    assert find("train", "train", earlier="greek", max_drift=0.99) == []
    message = f"the characters are {near} bits (Jensen-Shannon) from the train of old, the limit is 0.001"
    assert find("train", "train", earlier="mixed", max_drift=0.001) == [("train.char.drift", message, False)]


def test_given_schema_applies_to_all_splits(find: Callable[..., list[tuple[str, str, bool]]]) -> None:
    ((name, message, _),) = find("train", "train", schema="greek")
    assert name == "train.char.unknown"
    assert message == (
        "14 characters missing from the schema, 75.472% of the text: "
        "'t' (320), 's' (240), 'e' (200), 'i' (120), 'o' (120), ..."
    )
    assert find("train", "train", schema="mixed") == []


def test_edited_schema_is_enforced(find: Callable[..., list[tuple[str, str, bool]]]) -> None:
    def edit(schema: module.Schema) -> None:
        for feature in schema.feature:
            if feature.name == "char":
                feature.distribution_constraints.min_domain_mass = 1
                feature.drift_comparator.jensen_shannon_divergence.threshold = 0.001
            if feature.name == "longest_line":
                feature.int_domain.max = 50
        schema.feature.add(name="wor\x1bds", type=1).presence.min_count = 1

    findings = find("val", "mixed", schema="train", edit=edit, min_known=0.5)
    names = [name for name, _, _ in findings]
    assert names == [
        "val.char.unknown",
        "val.char.divergence",
        "val.longest_line.int_type_big_int",
        "val.wor\ufffdds.schema_missing_column",
    ]
    assert all(message.isprintable() for _, message, _ in findings)


def test_empty_split_is_a_finding(find: Callable[..., list[tuple[str, str, bool]]]) -> None:
    assert find("test", "nothing") == [("test.char.empty", "the split contains no text", False)]


def test_distances_match_definition(statistics: dict[str, Statistics]) -> None:
    schema = schema_of(statistics["train"])
    rules = Rules(ValidateSettings(), None, Reference("old", "0", statistics["mixed"]))
    splits = {"train": statistics["train"], "val": statistics["greek"]}
    distances = distances_of(check("val", splits, schema, rules))
    assert distances == {
        "drift": (pytest.approx(divergence(GREEK, ENGLISH), abs=1e-6), 0.25),
        "skew": (pytest.approx(divergence(GREEK, MIXED), abs=1e-6), 0.1),
    }
    assert distances_of(check("train", splits, schema, Rules(ValidateSettings(), None, None))) == {}


def test_comparison_with_earlier_data_and_its_schema(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, schema = tmp_path / "old", tmp_path / "old/validation/schema.pbtxt"
    make_data(old, 10_000, train=ENGLISH)
    make_data(folder, 10_000, train=ENGLISH[:1060], val=ENGLISH[:900])
    with pytest.raises(
        StageError, match=rf"{old} has no validated statistics: run python -m pipeline validate {old} --force$"
    ):
        validate(folder, ValidateSettings(), against=old)
    validate(old, ValidateSettings())
    # An edited schema is used unchanged, except for comments.
    schema.write_text("# reviewed\n" + schema.read_text(encoding="utf-8").replace('value: "I"', ""), encoding="utf-8")
    settings = ValidateSettings(min_known=0.9)
    stamp = validate(folder, settings, schema=schema, against=old).validation or {}
    assert stamp["against"] == {"name": "old", "data_sha256": read_manifest(old).data_sha256}
    assert stamp["schema"] == {"sha256": content(folder)["schema.pbtxt"], "given": True}
    parsed = [
        text_format.Parse(path.read_text(encoding="utf-8"), module.Schema())
        for path in (schema, folder / "validation/schema.pbtxt")
    ]
    assert parsed[0] == parsed[1]
    assert ">old: drift of train, skew of the others, bits<" in (folder / "validation/report.html").read_text("utf-8")

    with pytest.raises(StageError, match=rf"not the schema inferred from train: pass --schema {schema} to use it, or"):
        validate(old, ValidateSettings())
    assert schema.read_text().startswith("# reviewed\n")
    capsys.readouterr()
    assert validate(folder, settings, schema=schema, against=old).validation == stamp
    assert "is already valid" in capsys.readouterr().out
    train = old / "validation/train.stats.pb"
    train.write_bytes(train.read_bytes()[:-1])
    with pytest.raises(StageError, match="has no validated statistics"):
        validate(folder, settings, against=old)


def test_hash_depends_on_rules_and_data(tmp_path: Path, statistics: dict[str, Statistics]) -> None:
    data, other_data = (make_data(tmp_path / name, 100, train=name.encode()) for name in ("one", "other"))
    schema, earlier = schema_of(statistics["train"]), Reference("old", "0", statistics["mixed"])
    hashes = [
        Rules(ValidateSettings(), None, None).sha256_with(data),
        Rules(ValidateSettings(), None, None).sha256_with(other_data),
        Rules(ValidateSettings(waive=["char"]), None, None).sha256_with(data),
        Rules(ValidateSettings(), schema, None).sha256_with(data),
        Rules(ValidateSettings(), schema_of(statistics["mixed"]), None).sha256_with(data),
        Rules(ValidateSettings(), None, earlier).sha256_with(data),
        Rules(ValidateSettings(), None, dataclasses.replace(earlier, data_sha256="1")).sha256_with(data),
    ]
    assert len(set(hashes)) == len(hashes)
    renamed = dataclasses.replace(earlier, name="new")
    assert Rules(ValidateSettings(), None, renamed).sha256_with(data) == hashes[5]


def test_comparison_with_itself_raises(tmp_path: Path, folder: Path) -> None:
    for path in (folder, tmp_path / "copy"):
        make_data(path, 100, train=b"abc")
    for path in (folder, tmp_path / "copy"):
        with pytest.raises(UsageError, match=rf"--against takes a different data set: {path} has the same data as"):
            validate(folder, ValidateSettings(), against=path)
    with pytest.raises(StageError, match="does not exist: create it"):
        validate(folder, ValidateSettings(), against=tmp_path / "none")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "no_such: No such file or directory"),
        (b"\xff", "is invalid: 'utf-8' codec can't decode byte 0xff"),
        (b"\x1b[31m", "is invalid: 1:1 : '\ufffd"),
        (b"feature {\n  nam: 5\n}", "is invalid: 2:3 : .* has no field named"),
        (b"", "has no feature 'char'"),
        (b"feature { name: 'char' type: BYTES }", "lists no characters: its feature 'char' has no domain"),
    ],
)
def test_invalid_schema_raises(tmp_path: Path, folder: Path, data: bytes | None, reason: str) -> None:
    make_data(folder, 100, train=b"abc")
    path = tmp_path / "no_such"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UsageError, match=rf"--schema takes a schema written by validate, .*{reason}") as error:
        validate(folder, ValidateSettings(), schema=path)
    assert str(error.value).isprintable()


@pytest.mark.slow
def test_schema_ignores_record_sizes_in_train(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECORD_CHARS", 10)
    # In train every record has 10 characters and at most one newline; other records are valid too.
    make_data(folder, 10_000, train=b"abcdefghi\nabcdefgihj", val=b"\na\nbcdefghij\nabcd", test=b"abcdefghi\n")
    assert validate(folder, ValidateSettings(max_divergence=1.0)).validation is not None


@pytest.mark.slow
def test_data_set_with_only_train_is_valid(folder: Path) -> None:
    make_data(folder, 10_000, train=b"ab")
    assert validate(folder, ValidateSettings()).validation is not None


def test_empty_train_raises(folder: Path) -> None:
    make_data(folder, 10_000, train=b"")
    with pytest.raises(StageError, match=r"the split 'train' of .* is empty: run ingest again with more text"):
        validate(folder, ValidateSettings())
    assert not (folder / "validation").exists()


def test_missing_data_set_raises(folder: Path) -> None:
    with pytest.raises(StageError, match="does not exist: create it"):
        validate(folder, ValidateSettings())


def test_corrupted_data_is_not_stamped(folder: Path) -> None:
    make_data(folder, 1000, train=b"abc\n" * 100, val=b"abc\n" * 20)
    shard = next(folder.glob("val-*"))
    shard.write_bytes(b"#" + shard.read_bytes()[1:])
    with pytest.raises(StageError, match=r"the shard .*val-00000-of-00001.tokens is corrupted: run ingest again"):
        validate(folder, ValidateSettings())
    assert read_manifest(folder).validation is None
