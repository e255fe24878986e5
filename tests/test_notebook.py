"""The notebook runs as it stands, on a pair that is there already."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "examples" / "quickstart.ipynb"


@pytest.fixture
def executed(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("STUDENT", str(folders["student"]))
    monkeypatch.setenv("TEACHER", str(folders["teacher"]))
    monkeypatch.setenv("STEPS", "2")
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parent.parent))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
    return notebook


def test_the_notebook_runs_and_leaves_what_it_names(executed, tmp_path):
    outputs = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1, "the curve"
    printed = "".join(output["text"] for output in outputs if output.output_type == "stream")
    (run,) = (tmp_path / "runs").iterdir()
    assert f"page:    runs/{run.name}/report.html\n" in printed
    assert (run / "report.html").is_file()
    assert (run / "step-2" / "model.safetensors").is_file()
    assert printed.count("before:") >= 3


def test_the_notebook_is_valid_and_small_and_tells_nothing_of_the_machine_it_was_run_on():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.get("name") == "stderr" or output.output_type == "error"]
    assert "site-packages" not in str(outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs), "it shows what it gave"
    assert NOTEBOOK.stat().st_size < 150_000
