"""Runs docs/tour.ipynb, without Jupyter: `python tests/tour.py` writes into it what its cells print and draw.

`test_tour.py` runs it too, so that it goes on working, and asks whether what stands there is of these cells.
"""

import base64
import contextlib
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

NOTEBOOK = Path(__file__).parents[1] / "docs/tour.ipynb"


def read(path: Path = NOTEBOOK) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def digest(notebook: dict[str, Any]) -> str:
    """Of all code cells: the outputs are theirs."""
    return hashlib.sha256(json.dumps([cell["source"] for cell in code_cells(notebook)]).encode()).hexdigest()


def execute(notebook: dict[str, Any]) -> None:
    """Runs all code cells in one namespace, and puts what each prints and draws in place of its outputs."""
    variables = {"__name__": "__main__"}
    plt.close("all")
    for number, cell in enumerate(code_cells(notebook), 1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, code cell {number}", "exec"), variables)
        cell["execution_count"], cell["outputs"] = number, []
        if printed.getvalue():
            text = printed.getvalue().splitlines(keepends=True)
            cell["outputs"].append({"name": "stdout", "output_type": "stream", "text": text})
        for figure in plt.get_fignums():
            cell["outputs"].append(picture(plt.figure(figure)))
        plt.close("all")
    notebook["metadata"]["outputs_of"] = digest(notebook)


def picture(figure: plt.Figure) -> dict[str, Any]:
    """An output that shows it. Without Matplotlib's version, which alone would change the file."""
    file = io.BytesIO()
    figure.savefig(file, dpi=72, bbox_inches="tight", metadata={"Software": None})
    data = {"image/png": base64.b64encode(file.getvalue()).decode()}
    return {"data": data, "metadata": {}, "output_type": "display_data"}


def main() -> None:
    notebook = read()
    execute(notebook)
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
