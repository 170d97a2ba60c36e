"""The committed notebooks are executed and clean, and run through with small settings."""

import ast
import json
import re
from pathlib import Path

import plotly.io
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
        "languages": ["en", "fr"], "passages": 6, "depths": [2, 16], "max_tokens": 24, "every": 60, "directions": 4,
        "prompts": [PROMPT], "new_tokens": 4,
    },
    "05_enhancement": {"others": ["en"], "passages": 5, "steps": 1, "batch_size": 2, "max_tokens": 24},
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
@pytest.mark.filterwarnings("ignore")  # so little text is warned of
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_through_with_small_settings(path, tmp_path, monkeypatch, shared_demo, unchecked):
    """Cell by cell in this process, so that all share one model; reports run theirs in kernels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plotly.io.renderers, "default", "plotly_mimetype")
    namespace: dict[str, object] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            run_cell("".join(cell["source"]), namespace)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert SMALL[path.stem].keys() <= namespace.keys()
            namespace |= SMALL[path.stem]


def run_cell(source, namespace):
    """Run a cell, and make what its last expression shows."""
    *statements, last = ast.parse(source).body
    if not isinstance(last, ast.Expr):
        statements.append(last)
    exec(compile(ast.Module(statements, []), "notebook", "exec"), namespace)
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), "notebook", "eval"), namespace)
        for show in ("_repr_mimebundle_", "_repr_html_", "__repr__"):
            getattr(value, show, lambda: None)()
