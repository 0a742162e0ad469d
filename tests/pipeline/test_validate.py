import dataclasses
import hashlib
from pathlib import Path

import pytest
from tiny_data import make_data

from common.console import hushed
from common.errors import StageError
from pipeline.manifest import read_manifest, write_manifest

with hushed():
    from pipeline import validate as module
    from pipeline.validate import ValidateSettings, validate

ENGLISH = b"It was the best of times, it was the worst of times.\n" * 40
GREEK = "Ἄνδρα μοι ἔννεπε, Μοῦσα, πολύτροπον, ὃς μάλα πολλὰ\n".encode() * 40


def content(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "validation").iterdir()}


def test_a_good_text_is_stamped_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "RANGE_TOKENS", 1000)  # several ranges a split
    manifest = make_data(folder, 700, train=ENGLISH, val=ENGLISH[:1500], test=ENGLISH[100:900])
    stamped = validate(folder, ValidateSettings(chunk_chars=100))
    assert read_manifest(folder) == stamped == dataclasses.replace(manifest, validation=stamped.validation)
    assert stamped.validation is not None
    assert stamped.validation["result"] == "valid"
    assert stamped.validation["checked"] == {"train": len(ENGLISH), "val": 1500, "test": 800}
    assert stamped.validation["settings"] == {"chunk_chars": 100, "min_known": 0.99, "max_divergence": 0.25}
    names = ["report.html", "schema.pbtxt", "test.stats.pb", "train.stats.pb", "val.stats.pb"]
    assert sorted(content(folder)) == names

    before = content(folder)
    capsys.readouterr()
    assert validate(folder, ValidateSettings(chunk_chars=100)) == stamped
    assert content(folder) == before
    assert "is already valid under these settings" in capsys.readouterr().out


def test_every_character_is_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RANGE_TOKENS", 7)  # cuts within characters
    text = "ab é𝄞\n".encode() * 9 + b"\xff"
    manifest = make_data(folder, 5, train=text)
    (folder / "out").mkdir()
    statistics = module.count(folder, manifest, 3, folder / "out")
    (char,) = [f for f in statistics["train"].datasets[0].features if f.path.step[0] == "char"]
    came = {bucket.label: bucket.sample_count for bucket in char.string_stats.rank_histogram.buckets}
    assert came == {"a": 9, "b": 9, "<space>": 9, "é": 9, "𝄞": 9, "\\n": 9, "<0xff>": 1}


def test_another_script_is_refused_and_the_stamp_taken_away(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = make_data(folder, 10_000, train=ENGLISH, val=GREEK, test=ENGLISH[:800])
    write_manifest(folder, dataclasses.replace(manifest, validation={"asked_sha256": "of other settings"}))
    with pytest.raises(StageError) as error:
        validate(folder, ValidateSettings())
    report = folder / "validation/report.html"
    assert str(error.value) == f"{folder} is not valid (char of val, char of val): see {report}"
    assert read_manifest(folder).validation is None
    unknown, divergence = capsys.readouterr().err.splitlines()
    assert unknown.startswith("val: char: Examples contain values missing from the schema:")
    assert divergence.startswith("val: char: The approximate Jensen-Shannon divergence between current and previous is")
    assert "Not valid: 2 findings" in report.read_text(encoding="utf-8")


def test_settings_say_how_much_is_let_through(folder: Path) -> None:
    mixed = ENGLISH + "ö".encode() * 20  # 20 of 2140 characters: 0.93 %
    make_data(folder, 10_000, train=ENGLISH, val=mixed)
    assert validate(folder, ValidateSettings()).validation is not None
    with pytest.raises(StageError, match=r"is not valid \(char of val\)"):
        validate(folder, ValidateSettings(min_known=0.995))


def test_accidents_of_train_are_no_rules(folder: Path) -> None:
    # In train every record has 10 characters and one newline or none: other records are no less valid.
    make_data(folder, 10_000, train=b"abcdefghi\nabcdefgihj", val=b"\na\nbcdefghij\nabcd", test=b"abcdefghi\n")
    assert validate(folder, ValidateSettings(chunk_chars=10, max_divergence=1.0)).validation is not None


def test_a_data_set_of_train_alone(folder: Path) -> None:
    make_data(folder, 10_000, train=b"ab")
    assert validate(folder, ValidateSettings()).validation is not None


def test_no_data_set(folder: Path) -> None:
    with pytest.raises(StageError, match="there is no data set"):
        validate(folder, ValidateSettings())


def test_damaged_data_is_not_stamped(folder: Path) -> None:
    make_data(folder, 1000, train=b"abc\n" * 100, val=b"abc\n" * 20)
    shard = next(folder.glob("val-*"))
    shard.write_bytes(b"#" + shard.read_bytes()[1:])
    with pytest.raises(StageError, match=r"the shard .*val-00000-of-00001.tokens is damaged: run ingest again"):
        validate(folder, ValidateSettings())
    assert read_manifest(folder).validation is None
