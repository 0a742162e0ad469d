"""Execute the notebooks of docs/learn and render each as a page: scripts/notebooks.py [--render] [NOTEBOOK...]

The .ipynb is the source of text and code. Executing replaces its outputs; rendering writes the .md and its pictures.
"""

import base64
import sys
import textwrap
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

LEARN = Path(__file__).parent.parent / "docs" / "learn"
TIMEOUT_S = 1800  # per cell


def execute(notebook: Any) -> None:
    """Run all cells in a new kernel, in LEARN. Raises nbclient's CellExecutionError for a cell that fails."""
    settings = {"timeout": TIMEOUT_S, "kernel_name": "python3", "coalesce_streams": True}
    NotebookClient(notebook, resources={"metadata": {"path": LEARN}}, **settings).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # its timestamps would change the file on every run
        if cell.cell_type == "code":  # TensorFlow's start-up log goes to stderr
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}


def page(notebook: Any, name: str) -> dict[str, bytes]:
    """Return the contents of the page and its pictures by path in LEARN.

    The comment on the first line of a cell becomes the alternative text of its pictures.
    """
    parts, files = [f"<!-- made from {name}.ipynb by make learn -->"], {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                picture = f"pictures/{name}-{len(files) + 1}.png"
                files[picture] = base64.b64decode(data["image/png"])
                alt = cell.source.partition("\n")[0].lstrip("# ")
                parts.append(textwrap.fill(f"![{alt}]({picture})", 100, break_long_words=False))
            elif text := output.get("text") or data.get("text/plain"):
                parts.append(f"```text\n{text.rstrip()}\n```")
    return {f"{name}.md": ("\n\n".join(parts) + "\n").encode(), **files}


def main(arguments: list[str]) -> None:
    paths = [Path(argument) for argument in arguments if argument != "--render"]
    for path in paths or sorted(LEARN.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        if "--render" not in arguments:
            print(f"executing {path}")
            execute(notebook)
            nbformat.write(notebook, path)
        for name, content in page(notebook, path.stem).items():
            (LEARN / name).parent.mkdir(exist_ok=True)
            (LEARN / name).write_bytes(content)


if __name__ == "__main__":
    main(sys.argv[1:])
