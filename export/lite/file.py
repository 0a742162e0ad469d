"""A .tflite that is enough to run a model: the flatbuffer, and behind it a zip archive of one entry, vocab.json.

A runtime reads the flatbuffer and passes over what follows; anything that unpacks zip archives shows the rest.
vocab.json says what model.json says of the model, the precision, and the SHA-256 of the flatbuffer: a damaged one could
take the runtime down, and the process with it.
"""

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

from common.errors import StageError

ABOUT = "vocab.json"
NEURONS = "neurons.json"  # beside the files, where a person has written it: the page shows it
FORMAT_VERSION = 1


def seal(flatbuffer: bytes, about: dict[str, Any]) -> bytes:
    """The whole file. The same flatbuffer and words, the same bytes."""
    value = {**about, "flatbuffer_sha256": hashlib.sha256(flatbuffer).hexdigest()}
    return flatbuffer + _archive(value, len(flatbuffer))


def unseal(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The flatbuffer and what vocab.json says.

    Raises StageError for a file that is not there, and for one that is not, to the last bit, as it was sealed.
    """
    try:
        whole = path.read_bytes()
    except OSError as error:
        raise StageError(f"{path} cannot be read ({error.strerror}): make it with python -m export tflite") from None
    try:
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            entry = archive.getinfo(ABOUT)
            about = json.loads(archive.read(entry))
        flatbuffer = whole[: entry.header_offset]
        found = hashlib.sha256(flatbuffer).hexdigest()
        sound = about["flatbuffer_sha256"] == found and whole[len(flatbuffer) :] == _archive(about, len(flatbuffer))
    except Exception as error:  # whatever a damaged archive leads zipfile to
        raise StageError(_damaged(path, str(error))) from None
    if not sound:
        raise StageError(_damaged(path, "its bytes do not fit their checksum"))
    if about.get("format_version") != FORMAT_VERSION:
        came = about.get("format_version")
        raise StageError(f"{path} has format_version {came}, this program reads {FORMAT_VERSION}: export it again")
    return flatbuffer, about


class _Behind(io.BytesIO):
    """A file whose first bytes lie elsewhere."""

    def __init__(self, before: int):
        super().__init__()
        self.before = before

    def tell(self) -> int:
        return super().tell() + self.before

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return super().seek(offset - self.before, whence)


def _archive(value: dict[str, Any], before: int) -> bytes:
    """The archive that stands behind so many bytes; the same wherever and whenever it is made."""
    entry, file = zipfile.ZipInfo(ABOUT), _Behind(before)  # of the year 1980
    entry.create_system = 3
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(entry, json.dumps(value, ensure_ascii=False))
    return file.getvalue()


def _damaged(path: Path, what: str) -> str:
    return f"{path} is damaged, or no .tflite of this project ({what}): copy it again, or make it anew"
