"""The committed notebooks are executed and clean, and run through with small settings."""

import json
import os
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PROMPT = "La capitale de la France est"
SMALL = {
    "01_quickstart": {"languages": ["en", "fr"], "passages": 6, "prompts": [PROMPT], "new_tokens": 4},
    "02_language_ratio": {
        "languages": ["en", "fr"], "passages": 5, "every": 40, "directions": 8, "layers": [0, 9, 18], "shown": "fr",
        "probes": 2,
    },
    "03_language_neurons": {"languages": ["en", "fr"], "passages": 6, "few": 2, "cards": 2, "sample": 6},
    "04_mwork": {
        "languages": ["en", "fr"], "passages": 6, "every": 60, "directions": 4, "prompts": [PROMPT], "new_tokens": 4,
    },
    "05_enhancement": {"others": ["en"], "passages": 5, "steps": 1, "batch_size": 2},
    "06_hooks_in_your_research": {"new_tokens": 4},
}  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebooks_are_executed_and_clean(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert any("parameters" in cell["metadata"].get("tags", ()) for cell in cells)
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    figures = [output["data"] for output in outputs if "application/vnd.plotly.v1+json" in output.get("data", {})]
    assert figures
    assert all("image/png" in data for data in figures)
    assert not any("execution" in cell["metadata"] or "papermill" in cell["metadata"] for cell in notebook["cells"])
    text = json.dumps([{k: v for k, v in o.get("data", {}).items() if k != "image/png"} for o in outputs])
    assert not re.search(r"/(work|home|root|tmp|usr)/|Warning|Traceback", text)
    assert path.stat().st_size < 1_000_000


@pytest.mark.demo
@pytest.mark.filterwarnings("ignore")  # of what runs kernels: sockets, event loops
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_through_with_small_settings(path, tmp_path, monkeypatch):
    import papermill

    monkeypatch.setenv("PLOTLY_RENDERER", "plotly_mimetype")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]))
    given = {"kernel_name": "python3", "progress_bar": False, "cwd": tmp_path}
    papermill.execute_notebook(path, tmp_path / "out.ipynb", SMALL[path.stem], **given)
