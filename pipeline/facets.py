"""TFDV's own view of statistics, Facets Overview, as one page that opens offline.

TFDV's page loads the viewer over the network. A package has it too, in the page of another tool of its makers, the
What-If Tool (witwidget): here it is taken from there.
"""

import base64
import html
import importlib.metadata
from pathlib import Path

from tensorflow_metadata.proto.v0.statistics_pb2 import DatasetFeatureStatisticsList as Statistics

# By the list of installed files: the package itself imports only in a notebook.
VIEWER = importlib.metadata.distribution("witwidget").locate_file("witwidget/static/wit_jupyter.html")
TOOL = "<wit-dashboard"  # where, at the end of the page, the other tool begins


def write_facets(path: Path, title: str, statistics: dict[str, Statistics]) -> None:
    """Writes the page, with the statistics of each split, side by side, inside."""
    together = Statistics()
    for name, split in statistics.items():
        together.datasets.add().CopyFrom(split.datasets[0])
        together.datasets[-1].name = name
    encoded = base64.b64encode(together.SerializeToString()).decode()
    viewer = Path(str(VIEWER)).read_text(encoding="utf-8").rpartition(TOOL)[0]
    page = f'{viewer}<title>{html.escape(title)}</title>\n<facets-overview proto-input="{encoded}"></facets-overview>\n'
    path.write_text(page, encoding="utf-8")
