"""Settings of the data stages, checked at construction. Needs neither Beam nor TFDV."""

from typing import Any, Literal

import pydantic

from common import settings
from pipeline import splits
from pipeline.records import FEATURES
from pipeline.splits import SPLITS
from pipeline.text import RAW, ReadingRules, check_encoding
from pipeline.vocab import CODE_POINTS

OF_CHARACTERS = ("max_vocab", "min_count", "unknown")  # settings that a vocabulary of bytes does not have


@settings.settings
class IngestSettings:
    """[data]

    source: files, folders, patterns, "-" or named corpora (pipeline.sources), joined in this order.
    include, exclude: patterns for the file names in a folder.
    unit: of a token. "byte" covers every text; "char" is a Unicode code point.
    max_vocab, min_count: for char, the largest vocabulary, and how often a character must occur in train to enter it.
    unknown: for char, how to handle a character outside the vocabulary: "error", "replace" (with U+FFFD) or "skip".
    encoding, errors, newlines, bom: how to read files (pipeline.text.ReadingRules).
    documents: "none"; "line": each line is a document; "file": each file is. A document ends with a token.
    split: "contiguous": beginning, middle and end of the text; "document": each document to a split by its hash;
        "char-rnn": the beginning, middle and end of each of `streams` equal streams (its batch size).
    train, val, test: shares that sum to 1, as exact decimals; or, for "contiguous", numbers of bytes. A val or test of
        0 omits that split.
    shard_bytes: approximate bytes of text per shard, of which there may be 100,000. One worker writes a shard. Small
        shards let lanes start quickly: TensorFlow reaches a position in a file by reading everything before it.
    """

    source: list[str] = pydantic.Field(default_factory=list)
    include: list[str] = pydantic.Field(default_factory=list)
    exclude: list[str] = pydantic.Field(default_factory=list)
    unit: Literal["byte", "char"] = "byte"
    max_vocab: int | None = pydantic.Field(None, ge=1, le=CODE_POINTS)
    min_count: int = pydantic.Field(1, ge=1, le=1 << 60)
    unknown: Literal["error", "replace", "skip"] = "error"
    encoding: str = "utf-8"
    errors: Literal["strict", "replace", "skip"] = "strict"
    newlines: Literal["keep", "lf"] = "keep"
    bom: Literal["keep", "strip"] = "keep"
    documents: Literal["none", "line", "file"] = "none"
    split: Literal["contiguous", "document", "char-rnn"] = "contiguous"
    streams: int = pydantic.Field(50, ge=1, le=10_000)
    train: int | float = pydantic.Field(0.9, gt=0, le=1 << 60)
    val: int | float = pydantic.Field(0.05, ge=0, le=1 << 60)
    test: int | float = pydantic.Field(0.05, ge=0, le=1 << 60)
    shard_bytes: int = pydantic.Field(8 << 20, gt=0, le=1 << 40)

    def __post_init__(self) -> None:
        check_encoding(self.encoding)
        reading = (self.unit, self.errors, self.newlines, self.bom)
        if self.encoding == RAW and reading != ("byte", "strict", "keep", "keep"):
            raise ValueError("encoding raw requires unit byte, and cannot replace, skip or strip anything")
        if self.unit == "byte" and (self.max_vocab, self.min_count, self.unknown) != (None, 1, "error"):
            raise ValueError("max_vocab, min_count and unknown require unit char: a byte vocabulary has all bytes")
        if self.split == "document" and self.documents == "none":
            raise ValueError("split document requires documents: line or file")
        values = self.parts()
        if splits.in_bytes(values):
            if self.split != "contiguous" or any(value != int(value) for value in values.values()):
                raise ValueError("train, val and test must be shares from 0 to 1, or whole bytes of a contiguous split")
        elif (total := sum(map(splits.as_decimal, values.values()))) != 1:
            terms = " + ".join(str(value) for value in values.values())
            raise ValueError(
                f"train, val and test must sum to 1 (or be numbers of bytes), got {terms} = {float(total)}"
            )

    def parts(self) -> dict[str, int | float]:
        """Share or bytes of each split."""
        return {name: getattr(self, name) for name in SPLITS}

    def rules(self) -> ReadingRules:
        """Build the rules for reading files."""
        return ReadingRules(check_encoding(self.encoding), self.errors, self.newlines, self.bom)

    def shaping(self) -> dict[str, Any]:
        """Settings that shape the data, for the manifest. It records the sources by content instead."""
        names = settings.field_names(IngestSettings)
        values = {name: getattr(self, name) for name in names if name not in ("source", "include", "exclude")}
        return values | {"encoding": check_encoding(self.encoding)}


@settings.settings
class ValidateSettings:
    """[validate]

    min_known: share of a split's characters, 0 to 1, that must occur in train, or in the schema passed with --schema.
    max_divergence: how far the character distribution of val or test may be from train's: Jensen-Shannon, in bits,
        0 (equal) to 1 (nothing in common). Measured: two halves of 4 MB of Python source 0.002, legal English and
        Python source 0.07, English and Greek 0.8. A split of 1000 characters is some 0.06 away by chance alone.
    max_drift: likewise, how far train may be from the train split of --against.
    max_skew: likewise, how far val and test may be from the train split of --against, as if a model trained there
        were applied to them; and how far --requests may be from train.
    waive: findings to accept, by name: "char" (the feature), "val.char" (in this split) or "val.char.drift" (by this
        rule), as the report prints them. They are still reported and recorded in the stamp.
    """

    min_known: float = pydantic.Field(0.99, ge=0, le=1)
    max_divergence: float = pydantic.Field(0.25, ge=0, le=1)
    max_drift: float = pydantic.Field(0.05, ge=0, le=1)
    max_skew: float = pydantic.Field(0.1, ge=0, le=1)
    waive: list[str] = pydantic.Field(default_factory=list)

    def __post_init__(self) -> None:
        for name in self.waive:
            first, _, rest = name.partition(".")
            feature = rest.partition(".")[0] if first in (*SPLITS, "requests") else name
            if feature not in FEATURES:
                rule = "'waive' takes FEATURE, SPLIT.FEATURE or SPLIT.FEATURE.RULE"
                raise ValueError(f"{rule}, got '{name}'; splits: {', '.join(SPLITS)}; features: {', '.join(FEATURES)}")

    def as_json(self) -> dict[str, Any]:
        """Return the settings by name, for the stamp."""
        return {name: getattr(self, name) for name in settings.field_names(ValidateSettings)}
