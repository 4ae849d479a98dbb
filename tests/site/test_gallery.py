"""The gallery: each example stands alone, uses public names only, and runs in an empty folder as script and notebook."""

import ast
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import rlsd_lightning

PROJECT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((PROJECT / "examples" / "gallery").glob("plot_*.py"))
REFERENCE = "".join(file.read_text(encoding="utf-8") for file in (PROJECT / "docs" / "reference").glob("*.rst"))
INSTALLED = {"rlsd_lightning", "torch", "lightning", "deepinv", "numpy", "PIL", "matplotlib", "safetensors"}
"""What a script may import beside Python's own modules: the package and its dependencies."""

by_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)


def imports(tree: ast.AST) -> list[tuple[str, list[str]]]:
    """Modules with the names that are imported from them."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module, [alias.name for alias in node.names]))
    return found


def scripts(source: str) -> list[ast.Module]:
    """An example, and the script that it writes, if it writes one."""
    tree = ast.parse(source)
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [tree, *(ast.parse(text) for text in texts if "\nfrom rlsd_lightning import" in text)]


def is_public(module: str, name: str) -> bool:
    """Whether a name is one of the package's own, or in the reference with its module."""
    if module == "rlsd_lightning":
        return name in rlsd_lightning.__all__
    whole = re.search(rf"automodule:: {re.escape(module)}\n   :members:(.*)\n", REFERENCE)
    listed = name in re.split(r"\W+", whole[1]) or not whole[1].strip() if whole else False
    return name in import_module(module).__all__ and (listed or f":: {module}.{name}\n" in REFERENCE)


@pytest.mark.parametrize(
    ("module", "name", "public"),
    [
        ("rlsd_lightning", "solve", True),
        ("rlsd_lightning.data", "load_measured", True),
        ("rlsd_lightning.functional.schedules", "add_noise", True),
        ("rlsd_lightning", "solve_together", False),
        ("rlsd_lightning.data", "unobserved", False),
        ("rlsd_lightning.images", "Notes", False),
    ],
)
def test_public_names_are_those_of_the_reference(module: str, name: str, public: bool) -> None:
    assert is_public(module, name) == public


def test_nine_subjects_are_there() -> None:
    assert len(EXAMPLES) >= 9


@by_example
def test_an_example_stands_alone(example: Path) -> None:
    source = example.read_text(encoding="utf-8")
    for tree in scripts(source):
        for module, names in imports(tree):
            root = module.partition(".")[0]
            assert root in INSTALLED | sys.stdlib_module_names, module
            if root == "rlsd_lightning":
                assert [name for name in names if not is_public(module, name)] == [], module
    assert "../" not in source and "data/" not in source, "an example must not need the repository"


@by_example
def test_an_example_is_a_page(example: Path) -> None:
    title, line, empty, first, *_ = ast.get_docstring(ast.parse(example.read_text(encoding="utf-8"))).splitlines()
    assert line == "=" * len(title) and not empty and first
    assert "plt.show()" in example.read_text(encoding="utf-8")


def environment() -> dict[str, str]:
    """Variables of a process that finds the package from anywhere, and shows no window."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), *sys.path]), "MPLBACKEND": "agg"}


@pytest.mark.slow
@by_example
def test_a_script_runs_in_an_empty_folder(example: Path, tmp_path: Path) -> None:
    script = tmp_path / example.name
    script.write_bytes(example.read_bytes())
    done = subprocess.run(
        [sys.executable, script.name], check=False, cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@by_example
def test_a_notebook_runs_as_it_is(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = pytest.importorskip("sphinx_gallery.notebook").python_to_jupyter_cli
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    script = tmp_path / example.name
    script.write_bytes(example.read_bytes())
    convert([str(script)])
    script.unlink()
    content = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    nbclient.NotebookClient(content, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [
        output for cell in content.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert pictures
