"""Which part of the package may import what."""

import ast
import sys
from pathlib import Path

import rlsd_lightning

PACKAGE = Path(rlsd_lightning.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
CLI = PACKAGE / "cli"
FLOORS = (
    {"cli"},
    {"app"},
    {"solving", "reconstructor"},
    {"engine"},
    {"results"},
    {"evaluation"},
    {"methods", "repulsion"},
    {"features", "uncertainty", "identity", "checks", "data"},
    {"operators"},
    {"priors"},
    {"distributed"},
    {"measurement", "images", "reading", "errors", "timesteps", "resources", "signatures"},
    {"functional"},
)
"""Rooms (files and folders of the package) from top to bottom; a room imports rooms of its own floor and below."""


def imported(source: str) -> set[str]:
    """Full names of the modules that a source imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what is imported"
            names.add(node.module)
    return names


def roots(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def name_of(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


def files_in(folder: str) -> list[Path]:
    files = [file for file in FILES if file.is_relative_to(PACKAGE / folder)]
    assert len(files) > 2, f"{folder} has moved"
    return files


def test_imports_inside_functions_are_seen():
    source = "import a.b\ndef f():\n    from c.d import e\n    import g as h\n"
    assert imported(source) == {"a.b", "c.d", "g"}


def test_nothing_knows_of_hydra():
    # settings are explicit keyword arguments; cli is the only user
    for file in FILES:
        if CLI not in file.parents:
            names = imported(file.read_text())
            assert "rlsd_lightning.cli.settings" not in names, file
            assert not roots(names) & {"hydra", "omegaconf"}, file


def test_pure_functions_need_torch_and_numpy_only():
    for file in files_in("functional"):
        names = imported(file.read_text())
        own = {name for name in names if name.startswith("rlsd_lightning.functional.")}
        assert roots(names - own) <= {"torch", "numpy", *sys.stdlib_module_names}, file


def reach(file: Path, seen: set[Path]) -> set[str]:
    """What a file imports, by itself and by files of this package that it imports."""
    if file in seen:
        return set()
    seen.add(file)
    names = imported(file.read_text())
    for name in sorted(names):
        if name.startswith("rlsd_lightning."):
            path = PACKAGE.joinpath(*name.split(".")[1:])
            names = names | reach(
                path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py", seen
            )
    return names


def test_priors_do_not_know_of_lightning():
    for file in files_in("priors"):
        assert not roots(reach(file, set())) & {"lightning", "pytorch_lightning", "lightning_fabric"}, file


def room_of(file: Path) -> str:
    """The file or folder of the package that a file belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor_of(room: str) -> int:
    (floor,) = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    return floor


IN_ROOMS = [file for file in FILES if file != PACKAGE / "__init__.py"]


def test_a_room_imports_only_its_own_floor_and_those_below():
    for file in IN_ROOMS:
        own = [name.split(".") for name in imported(file.read_text()) if name.split(".")[0] == "rlsd_lightning"]
        assert all(len(name) > 1 for name in own), f"{file}: the package itself imports every room"
        assert {name[1] for name in own if floor_of(name[1]) < floor_of(room_of(file))} == set(), file


def test_floors_are_of_rooms_that_exist():
    assert {room_of(file) for file in IN_ROOMS} == set.union(*FLOORS)


def test_a_folder_can_be_surveyed():
    for folder in {file.parent for file in FILES}:
        entries = [entry.name for entry in folder.iterdir() if entry.name != "__pycache__"]
        assert len(entries) <= (26 if folder == PACKAGE else 10), folder


def test_files_and_functions_are_short():
    # a function counts from the first statement after its docstring to its end
    long = {}
    for file in FILES:
        source = file.read_text()
        assert len(source.splitlines()) <= 300, file
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[ast.get_docstring(node) is not None :]
                lines = node.end_lineno - body[0].lineno + 1 if body else 0
                long |= {(name_of(file), node.name): lines} if lines > 40 else {}
    assert long == {}


def test_no_public_name_is_a_module_too():
    # importing the module anywhere would put it in the name's place
    assert set(rlsd_lightning.__all__) & {room_of(file) for file in IN_ROOMS} == set()
