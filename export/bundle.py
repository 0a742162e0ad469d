"""Bundle of a .tflite and its vocabulary: the flatbuffer, followed by a zip archive with one entry, vocab.json.

A runtime reads the flatbuffer and ignores the rest; any zip tool lists the archive. vocab.json holds the fields of
model.json, the precision, and the SHA-256 of the flatbuffer, because a corrupted flatbuffer can crash the runtime, and
the process with it.
"""

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

from common.errors import StageError
from common.files import parse_json

ENTRY = "vocab.json"
NEURONS = "neurons.json"  # optional, beside the bundles: the neurons that the page lists
CARD = "MODEL_CARD.md"  # optional, beside the bundles: its table is shown by the page
FORMAT_VERSION = 1


def pack(flatbuffer: bytes, about: dict[str, Any]) -> bytes:
    """Return the whole file. Equal arguments give equal bytes, on every machine and at any time."""
    value = {**about, "flatbuffer_sha256": hashlib.sha256(flatbuffer).hexdigest()}
    entry, file = zipfile.ZipInfo(ENTRY), io.BytesIO(flatbuffer)  # ZipInfo's default date is fixed: 1980
    entry.create_system = 3
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(entry, json.dumps(value, ensure_ascii=False))
    return file.getvalue()


def unpack(path: Path) -> tuple[bytes, dict[str, Any]]:
    """Return the flatbuffer and the contents of vocab.json.

    Raises StageError for a missing file, and for one that differs in any bit from what `pack` returned.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StageError(f"cannot read {path} ({error.strerror}): export it with python -m export tflite") from None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entry = archive.getinfo(ENTRY)
            about = parse_json(archive.read(entry))
        flatbuffer = content[: entry.header_offset]
        intact = content == pack(flatbuffer, about)
    except Exception as error:  # zipfile raises many kinds for a corrupted archive
        raise StageError(_corrupted(path, str(error))) from None
    if not intact:
        raise StageError(_corrupted(path, "checksum mismatch"))
    if about.get("format_version") != FORMAT_VERSION:
        version = about.get("format_version")
        raise StageError(f"{path} has format_version {version}, this program reads {FORMAT_VERSION}: export it again")
    return flatbuffer, about


def _corrupted(path: Path, reason: str) -> str:
    return f"{path} is corrupted or was not exported by this project ({reason}): copy or export it again"
