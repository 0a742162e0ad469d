import base64
import re
from pathlib import Path

from tensorflow_metadata.proto.v0.statistics_pb2 import DatasetFeatureStatisticsList as Statistics

from pipeline.facets import write_facets


def of(examples: int, feature: str) -> Statistics:
    statistics = Statistics()
    statistics.datasets.add().num_examples = examples
    statistics.datasets[0].features.add().path.step.append(feature)
    return statistics


def test_the_page_holds_the_viewer_and_every_split(tmp_path: Path) -> None:
    write_facets(tmp_path / "facets.html", "a <b>", {"train": of(3, "char"), "val": of(2, "bytes")})
    page = (tmp_path / "facets.html").read_text(encoding="utf-8")
    (encoded,) = re.findall(r'<facets-overview proto-input="([^"]+)">', page)
    shown = Statistics.FromString(base64.b64decode(encoded))
    found = [(data.name, data.num_examples, data.features[0].path.step[0]) for data in shown.datasets]
    assert found == [("train", 3, "char"), ("val", 2, "bytes")]
    assert page.endswith("</facets-overview>\n")
    assert "<title>a &lt;b&gt;</title>" in page
    assert '<dom-module id="facets-overview"' in page  # the viewer itself
    assert "<wit-dashboard" not in page.rpartition("</dom-module>")[2]
    assert not re.search(r"""<(script|link|img)[^>]+(src|href)=["']?(https?:)?//""", page)  # nothing is fetched


def test_the_statistics_are_left_as_they_were(tmp_path: Path) -> None:
    statistics = of(3, "char")
    write_facets(tmp_path / "facets.html", "a", {"train": statistics})
    assert statistics == of(3, "char")
