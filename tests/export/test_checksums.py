"""Checksums of an export's files, and the command that compares the files with them."""

import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from crash import damaged

from common.errors import StageError
from export import checksums
from export.__main__ import cli


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    (folder / "variables").mkdir(parents=True)
    (folder / "model.json").write_text('{"step": 7}\n')
    (folder / "variables" / "ä b").write_bytes(bytes(range(256)))
    (folder / "neurons.json").write_text("[]")
    checksums.write(folder, leave_out=["neurons.json"])
    return folder


def test_any_damage_is_detected(export: Path) -> None:
    for path in damaged(export, "neurons.json"):
        (problem,) = checksums.problems(export)
        assert problem.startswith(f"{path} is ")
        with pytest.raises(StageError, match=r" is (corrupted|missing): export it again with --force$"):
            checksums.check(export)
    (export / "neurons.json").write_text("[1]")
    (export / "CNAME").write_text("a file of the user")
    assert checksums.problems(export) == []


def test_any_damage_to_the_record_is_detected(export: Path) -> None:
    record = export / checksums.FILE
    whole = record.read_bytes()
    for index in range(len(whole)):
        for content in (whole[:index], whole[:index] + bytes([whole[index] ^ 1]) + whole[index + 1 :]):
            record.write_bytes(content)
            assert checksums.problems(export) == [f"{record} is corrupted"]


def test_sha256sum_reads_the_record(export: Path) -> None:
    command = ["sha256sum", "--strict", "--quiet", "-c", checksums.FILE]
    subprocess.run(command, cwd=export, check=True)
    (export / "model.json").write_text("{}")
    assert subprocess.run(command, cwd=export, check=False, capture_output=True).returncode == 1


def test_verify_prints_one_line_per_file(export: Path, tmp_path: Path) -> None:
    def verify(*folders: Path) -> tuple[int, list[str]]:
        result = CliRunner().invoke(cli, ["verify", *map(str, folders)])
        return result.exit_code, result.stdout.splitlines()

    assert verify(export) == (0, [f"{export} is intact"])
    served = tmp_path / "served"
    for version in ("1", "2"):
        shutil.copytree(export, served / version)
    (served / "models.config").write_text("a")
    checksums.write(served, ["models.config"])
    assert verify(served, export) == (0, [f"{served} is intact", f"{export} is intact"])
    (served / "models.config").unlink()
    (served / "2" / "model.json").write_text("")
    (served / "1" / checksums.FILE).unlink()
    problems = ["models.config is missing", "1/SHA256SUMS is missing", "2/model.json is corrupted"]
    assert verify(served) == (1, [f"{served}/{problem}" for problem in problems])
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(StageError, match=r"has no SHA256SUMS: pass the folder of an export, or export it again"):
            checksums.verify(folder)
