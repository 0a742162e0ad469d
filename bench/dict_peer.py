"""Ingest as popular scripts do: read a corpus whole, map its characters through a Python dict, write ids.

    python bench/dict_peer.py FILE OUT

Does the work of `ingest --unit char`: a vocabulary, contiguous 90/5/5 splits, two bytes per token.
"""

import sys
from pathlib import Path

import numpy as np

source, out = Path(sys.argv[1]), Path(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)
text = source.read_bytes().decode()
ids = {character: index for index, character in enumerate(sorted(set(text)))}
first, second = int(len(text) * 0.9), int(len(text) * 0.95)
for name, part in (("train", text[:first]), ("val", text[first:second]), ("test", text[second:])):
    np.array([ids[character] for character in part], dtype=np.uint16).tofile(out / f"{name}.bin")
