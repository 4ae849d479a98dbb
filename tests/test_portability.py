"""What other systems lack: Windows has no fcntl and few signals, Apple's GPU has no numbers of 64 bits.

Neither system is at hand, so the package is imported without what they lack, and its source is searched.
"""

import ast
import functools
import importlib
import os
import pkgutil
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rlsd_lightning
import rlsd_lightning.cli.train
from rlsd_lightning.cli.subcommands.checkup import system_lines
from rlsd_lightning.engine import locking, signals

PACKAGE = Path(rlsd_lightning.__file__).parent
PROJECT = Path(__file__).resolve().parents[1]
FILES = sorted(PACKAGE.rglob("*.py"))
POSIX_MODULES = {"crypt", "curses", "fcntl", "grp", "nis", "posix", "pty", "pwd", "readline", "resource", "spwd"}
POSIX_MODULES |= {"syslog", "termios", "tty"}
WINDOWS_SIGNALS = {"SIGABRT", "SIGBREAK", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM"}
POSIX_FUNCTIONS = {
    *("chown", "chroot", "fork", "forkpty", "getegid", "geteuid", "getgid", "getpgid", "getpgrp", "getloadavg"),
    *("getuid", "killpg", "mkfifo", "nice", "pread", "pwrite", "sched_getaffinity", "setsid", "statvfs", "uname"),
    *("wait3", "wait4"),
}


@functools.cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def names(tree: ast.AST, module: str) -> Iterator[str]:
    """Attributes of a module that are read by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == module:
            yield node.attr


# --- Windows -------------------------------------------------------------------------------------------------------


def test_every_module_is_imported_without_what_windows_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    modules = [module.name for module in pkgutil.walk_packages([str(PACKAGE)], "rlsd_lightning.")]
    for name in modules:  # so that other libraries are imported with everything
        importlib.import_module(name)
    before = dict(sys.modules)
    try:
        for name in [name for name in sys.modules if name.partition(".")[0] == "rlsd_lightning"]:
            del sys.modules[name]
        for name in POSIX_MODULES:
            monkeypatch.setitem(sys.modules, name, None)
        for name in dir(signal):
            if re.fullmatch("SIG[A-Z0-9]+", name) and name not in WINDOWS_SIGNALS:
                monkeypatch.delattr(signal, name)
        for name in POSIX_FUNCTIONS & set(dir(os)):
            monkeypatch.delattr(os, name)
        fresh = {name: importlib.import_module(name) for name in modules}
        assert fresh["rlsd_lightning.engine.signals"].SIGNALS == (signal.SIGINT, signal.SIGTERM)
        with fresh["rlsd_lightning.engine.locking"].only_run_in(tmp_path):
            assert (tmp_path / ".lock").is_file()
    finally:
        sys.modules.clear()
        sys.modules.update(before)
    assert locking.fcntl is not None and len(signals.SIGNALS) == 3


def test_doctor_says_less_where_the_system_knows_no_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert any(line.startswith("CPU: ") and "GiB free" in line for line in system_lines())
    for name in ("sysconf", "sysconf_names"):
        monkeypatch.delattr(os, name)
    assert any(line.startswith("CPU: ") and "GiB free" not in line for line in system_lines())


def unguarded(tree: ast.Module) -> list[str]:
    """POSIX modules that are imported outside a try, anywhere in a file."""
    tried = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Try) for inner in ast.walk(node)}
    found = []
    for node in ast.walk(tree):
        if id(node) not in tried and isinstance(node, ast.Import | ast.ImportFrom):
            full = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [name for name in full if name.partition(".")[0] in POSIX_MODULES]
    return found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import fcntl", ["fcntl"]),
        ("def f():\n    from resource import getrusage", ["resource"]),
        ("try:\n    import termios\nexcept ImportError:\n    termios = None", []),
    ],
)
def test_imports_of_posix_modules_are_found(source: str, found: list[str]) -> None:
    assert unguarded(ast.parse(source)) == found


def test_nothing_is_used_that_windows_lacks() -> None:
    for file in FILES:
        source = tree(file)
        assert unguarded(source) == [], file
        signals_used = {name for name in names(source, "signal") if name.startswith("SIG")}
        assert not signals_used - WINDOWS_SIGNALS - {"SIG_DFL"}, file
        assert not set(names(source, "os")) & POSIX_FUNCTIONS, file


def without_encoding(tree: ast.Module) -> list[int]:
    """Lines in which text is read or written in the system's encoding, which on Windows is not UTF-8."""
    found = []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name)):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        foreign = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) in {"Image", "av", "os", "io"}
        binary = any(isinstance(given, ast.Constant) and "b" in str(given.value) for given in node.args)
        encoded = any(keyword.arg == "encoding" for keyword in node.keywords)
        if called in {"open", "read_text", "write_text"} and not (foreign or binary or encoded):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    ("source", "found"),
    [("path.read_text()", [1]), ("\nwith path.open('w'): ...", [2]), ("open('f', 'rb'), Image.open('f')", [])],
)
def test_text_in_the_systems_encoding_is_found(source: str, found: list[int]) -> None:
    assert without_encoding(ast.parse(source)) == found


def test_text_is_utf_8_on_every_system() -> None:
    found = {str(file): without_encoding(tree(file)) for file in FILES}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_folders_have_names_that_windows_allows() -> None:
    names = [
        (file.name, name)
        for file in sorted((PROJECT / "configs").rglob("*.yaml"))
        for name in re.findall(r"\$\{now:([^}]+)\}", file.read_text(encoding="utf-8"))
    ]
    assert names
    assert [name for name in names if re.search(r'[<>:"/\\|?*]', name[1])] == []


# --- Apple's GPU ---------------------------------------------------------------------------------------------------


def doubles(tree: ast.Module) -> list[int]:
    """Lines in which a tensor becomes float64 where it may be on a device: not after ``.cpu()`` in the same chain."""
    found = []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        wide = node.func.attr == "double" and not node.args
        if node.func.attr in {"to", "type"}:
            wide = any("float64" in ast.unparse(given) or "torch.double" in ast.unparse(given) for given in node.args)
        if wide and ".cpu()" not in ast.unparse(node.func.value):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    ("source", "found"),
    [("x.double()", [1]), ("\nx.to(torch.float64)", [2]), ("x.cpu().double()\nx.cpu().to(torch.float64)", [])],
)
def test_numbers_of_64_bits_are_found(source: str, found: list[int]) -> None:
    assert doubles(ast.parse(source)) == found


def test_no_tensor_of_64_bits_is_made_on_a_device() -> None:
    found = {str(file): doubles(tree(file)) for file in FILES}
    assert {name: lines for name, lines in found.items() if lines} == {}
