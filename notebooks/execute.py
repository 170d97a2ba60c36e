"""Execute the notebooks in place, as they are committed: ``python notebooks/execute.py [NAME ...]``."""

import argparse
import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
STARTUP = (
    "import kaleido, plotly.io; kaleido.start_sync_server(silence_warnings=True)",  # one browser for all figures
    "plotly.io.defaults.default_width = 800",  # about as wide as a notebook
)


def execute(path: Path) -> None:
    """Run every cell; keep results and figures, and print what went to stderr (progress bars, warnings) instead."""
    notebook = nbformat.read(path, as_version=4)
    # each figure for Jupyter, where it is interactive, and as a picture for code hosts
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype+png"
    options = {"record_timing": False, "extra_arguments": [f"--IPKernelApp.exec_lines={line}" for line in STARTUP]}
    NotebookClient(notebook, timeout=None, kernel_name="python3", **options).execute(cwd=FOLDER)
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr":
                print(output["text"])
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if output.get("name") != "stderr"]
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)
    print(f"{path.name}: {path.stat().st_size // 1024} kB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="beginnings of names, e.g. 01; all by default")
    names = parser.parse_args().names
    for path in sorted(FOLDER.glob("*.ipynb")):
        if not names or path.name.startswith(tuple(names)):
            execute(path)
