"""docs/tour.ipynb: it runs, each step of it draws, and what it shows is what its cells made."""

import re

import pytest
import torch

import tour
from conftest import ROOT


@pytest.fixture(scope="module")
def fresh() -> dict:
    """The notebook, run here and now. Its cells hold asserts of their own."""
    notebook = tour.read()
    with torch.random.fork_rng():
        tour.execute(notebook)
    return notebook


def kinds(cell: dict) -> list[str]:
    return [output["output_type"] for output in cell["outputs"]]


def test_each_step_runs_and_draws_a_picture(fresh):
    cells = tour.code_cells(fresh)
    assert len(cells) >= 7 and all(kinds(cell).count("display_data") == 1 for cell in cells)


def test_what_the_notebook_shows_is_of_its_cells(fresh):
    shown = tour.read()
    assert shown["metadata"].get("outputs_of") == tour.digest(shown), (
        "run `python tests/tour.py`, and commit the notebook"
    )
    assert [kinds(cell) for cell in tour.code_cells(shown)] == [kinds(cell) for cell in tour.code_cells(fresh)]


def test_links_of_the_notebook_lead_somewhere():
    text = "".join(line for cell in tour.read()["cells"] if cell["cell_type"] == "markdown" for line in cell["source"])
    targets = re.findall(r"\]\((?!https://)([^)#]+)", text)
    assert targets and all((ROOT / "docs" / target).is_file() for target in targets)
