"""The front's container image: its application runs with only the packages of its requirements.txt."""

import importlib.metadata
import io
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from fake_model import text_of
from serving import Endpoint

from export.serve import front_image, package

ROOT = Path(__file__).parents[3]
PIN = re.compile(r"^([A-Za-z0-9_.-]+)==(\S+)", re.MULTILINE)


def link(name: str, folder: Path) -> None:
    """Link a package's files, and no others, into a folder."""
    for file in importlib.metadata.files(name) or []:
        if file.parts[0] != ".." and "__pycache__" not in file.parts:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).symlink_to(file.locate())


@pytest.fixture(scope="module")
def url(server: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a front of the server under test, run from the image's files."""
    folder = tmp_path_factory.mktemp("image")
    for name, content in front_image.front_files().items():
        (folder / name).write_bytes(content)
    for name, _ in PIN.findall((folder / "requirements.txt").read_text()):
        link(name, folder / "packages")
    program = (
        f"import runpy, sys; sys.path.append('{folder}/packages')\n"
        f"runpy.run_path('{folder}/front.pyz', run_name='__main__')"
    )
    command = [sys.executable, "-I", "-S", "-c", program, "--target", server.target, "--model", server.model]
    command += ["--label", "stable", "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        line = process.stderr.readline()
        assert line.startswith("serving fake at http://127.0.0.1:"), line + process.stderr.read()
        yield line.split()[3]
        process.terminate()


def test_the_application_answers_without_tensorflow(url: str) -> None:
    row = {"prompt": "ab", "length": 9, "temperature": 0.5, "seed": 3}
    answer = requests.post(f"{url}/v1/models/fake:predict", json={"instances": [row]}, timeout=30).json()
    assert answer["predictions"][0]["text"] == text_of(3, b"ab", 9).decode()
    body = {"model": "fake", "prompt": "ab", "max_tokens": 9, "seed": 3}
    answer = requests.post(f"{url}/v1/completions", json=body, timeout=30).json()
    assert answer["choices"][0]["text"] == text_of(3, b"ab", 9).decode()


def test_the_images_health_check_passes(url: str) -> None:
    check = package.front_check().replace("http://127.0.0.1:8080", url)
    assert url in check
    subprocess.run([sys.executable, "-I", "-S", "-c", check], check=True)
    failing = subprocess.run([sys.executable, "-I", "-S", "-c", check.replace("healthz", "x")], capture_output=True)
    assert failing.returncode == 1


def test_the_requirements_match_the_lock() -> None:
    cut, lock = front_image.requirements(), (ROOT / "requirements.lock").read_text()
    assert set(PIN.findall(cut)) <= set(PIN.findall(lock))
    names = {name for name, _ in PIN.findall(cut)}
    assert {*front_image.PACKAGES, "anyio", "h11"} <= names  # and their dependencies
    assert not names & {"tensorflow", "keras", "tensorflow-serving-api", "requests"}
    for entry in re.split(r"\n(?=\S)", cut)[1:]:
        assert "--hash=sha256:" in entry


def test_the_application_contains_the_front_and_little_else() -> None:
    names = zipfile.ZipFile(io.BytesIO(front_image.application())).namelist()
    ours = {name for name in names if not name.startswith("tensorflow")}
    assert {"__main__.py", "export/front/app.py", "export/client/protos.py", "common/console.py"} <= ours
    assert {Path(name).parts[0] for name in names} == {
        "__main__.py",
        "common",
        "export",
        "tensorflow",
        "tensorflow_serving",
    }
    assert all(name.endswith(("_pb2.py", "_pb2_grpc.py", "__init__.py")) for name in set(names) - ours)
    assert len(front_image.application()) < 200_000


def test_the_image_runs_as_nobody() -> None:
    lines = front_image.DOCKERFILE.splitlines()
    assert re.fullmatch(r"FROM python:3\.\d+\.\d+-slim-\w+", lines[1])
    assert {"USER 65534:65534", 'ENTRYPOINT ["python", "-I", "/front/front.pyz"]'} <= set(lines)


def test_the_tag_follows_the_contents() -> None:
    files = front_image.front_files()
    assert front_image.tag(files) == front_image.tag(front_image.front_files())
    assert front_image.tag(files) != front_image.tag(files | {"front.pyz": b""})
