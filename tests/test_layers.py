"""The package's architecture: a module imports only from layers above its own, and nothing imports in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "mwork_lens"
LAYERS = (
    *("store", "statistics", "text", "settings", "model", "neurons", "measures", "detection", "lens", "effects"),
    *("generation", "tasks", "tuning", "bench", "plots", "report", "experiments", "cli"),
)
"""From top to bottom; ``__init__``, ``__main__`` and ``public`` see all of them."""


def modules() -> dict[str, Path]:
    """Every module by its dotted name within the package; a folder's ``__init__`` bears the folder's name."""
    names = {path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    return {name.removesuffix("__init__").rstrip("."): path for path, name in names.items()}


def imports(name: str, path: Path) -> set[str]:
    """The package's own modules that a module imports anywhere, also within functions."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    targets: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            source = ".".join(part for part in base if part)
            submodules = {f"{source}.{alias.name}".lstrip(".") for alias in node.names}
            targets |= {module if module in ALL else source for module in submodules}
    return targets & ALL.keys()


ALL = modules()
IMPORTS = {name: imports(name, path) for name, path in ALL.items() if name and path.name != "public.py"}


def layer(module: str) -> str:
    return module.split(".")[0]


def test_every_module_is_in_a_layer():
    assert {layer(name) for name in IMPORTS} - {"__main__"} == set(LAYERS)


def test_modules_import_only_from_layers_above():
    wrong = [
        f"{name} imports {target}"
        for name, targets in IMPORTS.items()
        for target in targets
        if layer(name) in LAYERS and layer(target) in LAYERS[LAYERS.index(layer(name)) + 1 :]
    ]
    assert not wrong


def test_no_module_imports_in_a_circle():
    within = {
        name: {target for target in targets if ALL[target].name != "__init__.py" or layer(target) != layer(name)}
        for name, targets in IMPORTS.items()
    }
    TopologicalSorter(within).prepare()


def test_the_top_of_the_package_fits_on_a_screen():
    entries = [path for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "py.typed")]
    assert len(entries) <= 22
