"""The notebook in `examples/` runs from top to bottom, and shows what it showed when it was committed.

`python -m tests.examples.test_quickstart` runs it and writes its outputs.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.reading_html import Reading

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


def structure(data: Any) -> tuple[list[str], ...]:
    """What every machine shows of an output: the labels of its lines, the headings of its tables, its HTML elements.

    Not the measured values, nor what follows from them: rows of candidates, which were left out, and notes.
    """
    html = "".join(data.get("text/html", ""))
    page, text = Reading(html.encode()), "\n".join(re.findall("<pre[^>]*>(.*?)</pre>", html, re.DOTALL))
    headings = [cell for table in page.tables for cell in table.rows[0]]
    elements = [tag for tag in dict.fromkeys(page.tags) if tag not in ("div", "em")]
    return labels("".join(data["text/plain"])), labels(text), headings, elements


def labels(text: str) -> list[str]:
    """The beginnings of lines, as far as they are words; of a table, its columns."""
    lines = [line for line in text.splitlines() if line and not line.startswith(" ")]
    parts = [
        re.split(r"\s{2,}", line) if line.startswith("#") else [re.split(r"\s{2,}|: |[\d(]", line)[0]] for line in lines
    ]
    return [part for found in parts for part in found if part not in ("", "left out", "note")]


def test_the_structure_of_an_output_is_that_of_its_words_not_of_its_values() -> None:
    shown = {"text/plain": "chosen      a.onnx\n#  file    top-1\n1  a.onnx  99.1%\nseconds  1.5 (load 1.4)"}
    assert structure(shown)[0] == ["chosen", "#", "file", "top-1", "seconds"]
    measured = {"text/plain": "chosen      b.onnx\n#  file    top-1\n2  b.onnx  9.1%\nleft out  c\nseconds  2 (load 1)"}
    assert structure(measured) == structure(shown)
    for before, now in (("top-1", "AUROC"), ("seconds", "time"), ("chosen ", "ship ")):
        assert structure({"text/plain": shown["text/plain"].replace(before, now)}) != structure(shown)
    page = "<table><tr><th>file</th></tr><tr><td>{}</td></tr></table>"
    html = [{"text/plain": "", "text/html": page.format(name)} for name in ("a", "b")]
    assert structure(html[0]) == structure(html[1])
    assert structure({**html[0], "text/html": page.replace("file", "model")}) != structure(html[0])
    assert structure({**html[0], "text/html": page.replace("td", "th")}) != structure(html[0])


def executed(folder: Path) -> Any:
    """Run the notebook in a copy of `examples` in `folder`, and return it with its outputs."""
    import nbclient
    import nbformat

    examples = folder / "examples"
    examples.mkdir()
    (examples / "digits").symlink_to(EXAMPLES / "digits")
    (folder / "calibration").symlink_to(EXAMPLES.parent / "calibration")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(examples)}}
    return nbclient.NotebookClient(notebook, timeout=600, resources=resources, record_timing=False).execute()


@pytest.mark.slow
def test_it_runs_and_shows_the_same(tmp_path: Path) -> None:
    for needed in ("nbclient", "nbformat", "ipykernel"):
        pytest.importorskip(needed)
    ran = [cell for cell in executed(tmp_path).cells if cell.cell_type == "code"]
    for before, now in zip(cells(), ran, strict=True):
        (shown,), (expected,) = results(now), results(before)
        assert structure(shown) == structure(expected), before["source"]
        if FIXED in now.metadata.get("tags", ()):
            assert shown["text/plain"] == "".join(expected["text/plain"])
    bars = [one for cell in ran for one in cell.outputs if one.output_type == "display_data"]
    assert len(bars) >= 4, "export, quantize, evaluate, tune and report show their progress"
    assert {one.data["text/html"] for one in bars} == {""}, "and leave nothing behind"
    assert (tmp_path / "examples" / "artifacts" / "digits.report.html").is_file()


def rerun() -> None:
    """Write the outputs of a run into the notebook, without the bars that came and went."""
    import nbformat

    with tempfile.TemporaryDirectory() as folder:
        notebook = executed(Path(folder))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.output_type == "execute_result"]
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    sys.exit(rerun())
