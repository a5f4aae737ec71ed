"""The notebook in `examples/` runs from top to bottom, and shows what it showed when it was committed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"
FIXED = "same-everywhere"
"""The tag of cells whose outputs depend neither on the machine nor on time."""


def cells() -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def results(cell: Any) -> list[Any]:
    return [one["data"] for one in cell["outputs"] if one["output_type"] == "execute_result"]


def test_it_is_committed_with_small_outputs_that_name_no_machine() -> None:
    text = NOTEBOOK.read_text()
    assert len(text) < 60_000
    assert str(EXAMPLES.parent) not in text
    assert "/home/" not in text
    assert all(results(cell) for cell in cells()), "every cell shows something"
    assert [cell["execution_count"] for cell in cells()] == list(range(1, len(cells()) + 1)), "run once, in order"
    assert not any(one["output_type"] in ("stream", "error") for cell in cells() for one in cell["outputs"])
    assert sum(FIXED in cell["metadata"].get("tags", ()) for cell in cells()) == 2


@pytest.mark.slow
def test_it_runs_and_shows_the_same(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    folder = tmp_path / "examples"
    folder.mkdir()
    (folder / "digits").symlink_to(EXAMPLES / "digits")
    (tmp_path / "calibration").symlink_to(EXAMPLES.parent / "calibration")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    ran = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for before, now in zip(cells(), ran, strict=True):
        shown, expected = results(now), ["".join(one["text/plain"]) for one in results(before)]
        assert len(shown) == 1
        if FIXED in now.metadata.get("tags", ()):
            assert [one["text/plain"] for one in shown] == expected
    bars = [one for cell in ran for one in cell.outputs if one.output_type == "display_data"]
    assert len(bars) >= 4, "export, quantize, evaluate, tune and report show their progress"
    assert {one.data["text/html"] for one in bars} == {""}, "and leave nothing behind"
    assert (folder / "artifacts" / "digits.report.html").is_file()
