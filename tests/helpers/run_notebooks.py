"""the name of a notebook -> the notebook, run from top to bottom; as a program, it saves it with its outputs.

    python tests/helpers/run_notebooks.py one_rollout_by_hand one_batch_every_method

A notebook keeps the outputs of such a run, with its pictures in few colours.
"""

import base64
import io
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbclient
import nbformat
from PIL import Image
from places import ROOT


FOLDER = ROOT / "notebooks"
NAMES = sorted(file.stem for file in FOLDER.glob("*.ipynb"))
COLOURS = 48  # of a picture
LIMIT = 1200  # seconds per cell, on a machine that does other work as well


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def executed(name: str, folder: Path) -> Any:
    """The notebook with its outputs, run in this folder."""
    notebook = read(name)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": folder}}
    client = nbclient.NotebookClient(
        notebook, timeout=LIMIT, resources=resources, record_timing=False, coalesce_streams=True
    )
    client.execute()
    return notebook


def first_code(notebook: Any) -> Any:
    """The cell with the imports, which must be changed on another machine."""
    return next(cell for cell in notebook.cells if cell.cell_type == "code")


def outputs_of(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def texts_of(notebook: Any) -> list[str]:
    """The lines of the notebook's text outputs."""
    shown = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs_of(notebook)]
    return [line for text in shown for line in text.splitlines()]


def tidied(notebook: Any) -> Any:
    """The notebook without what only this run knows, and with small pictures."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    first = first_code(notebook)
    # While they are imported, other libraries print things about the machine.
    first.outputs = [output for output in first.outputs if output.get("name") != "stderr"]
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
        for output in cell.get("outputs", []):
            output.pop("metadata", None)
            if output.output_type in ("display_data", "execute_result"):
                output.metadata = {}
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = small(output.data["image/png"])
    return notebook


def small(picture: str) -> str:
    """A PNG in base64, in few colours."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB").quantize(COLOURS)
    content = io.BytesIO()
    image.save(content, "png", optimize=True)
    return base64.b64encode(content.getvalue()).decode() + "\n"


def main(names: list[str]) -> None:
    for name in names:
        with TemporaryDirectory() as folder:
            notebook = tidied(executed(name, Path(folder)))
        nbformat.validate(notebook)
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    main(sys.argv[1:])
