"""The documentation: links lead somewhere, commands are understood, examples run, tables are those of the figures."""

import json
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from support.command import train

from rlsd_lightning.cli.literal import as_typed

PROJECT = Path(__file__).resolve().parents[1]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
GUIDE = [page for page in PAGES if page.name not in ("README.md", "index.md")]
"""Pages that GitHub's readers find from README; index.md is the site's first page."""
LINK = re.compile(r"\]\(([^)\s]+)\)")
RUN = re.compile(r"^(?:rlsd|python train\.py|srun rlsd) (?!evaluate|study)(?:(?:app|calibrate|doctor)\b ?)?(.*)$")
SHELL = re.compile(r"\$\w+|--\S+|FOLDER|RUN")
"""What only a shell or a reader fills in."""

by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def without_code(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@by_name
def test_links_lead_somewhere(page: Path):
    for target in LINK.findall(without_code(page)):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_links_are_found():
    assert any(LINK.findall(without_code(page)) for page in PAGES)


def commands(page: Path) -> Iterator[list[str]]:
    """Arguments of the runs that a page shows."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            found = RUN.match(line.strip())
            if found and not SHELL.search(found[1]):
                yield shlex.split(found[1], comments=True)


@by_name
def test_commands_are_understood(page: Path):
    for arguments in commands(page):
        # a sweep's first value stands for all
        swept = "-m" in arguments
        overrides = [re.sub(r",.*", "", item) if swept else item for item in arguments if item != "-m"]
        overrides = [item for item in overrides if not item.startswith(("resume=", "hydra", "prior.prompt="))]
        with initialize_config_dir(str(PROJECT / "configs"), version_base="1.3"):
            assert compose("train", as_typed(overrides)).num_particles > 0, arguments


def test_commands_are_found():
    assert len([arguments for page in PAGES for arguments in commands(page)]) > 20


@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.name)
def test_a_page_says_its_purpose_first(page: Path):
    title, empty, first, *_ = page.read_text().splitlines()
    assert title.startswith("# ") and not empty and first.startswith("This page "), first


def test_readme_takes_two_screens_and_names_every_page():
    text = (PROJECT / "README.md").read_text()
    assert len(text.splitlines()) <= 110
    assert {f"docs/{page.name}" for page in GUIDE} <= set(LINK.findall(text))


def test_the_operator_of_the_documentation_runs(tmp_path: Path, tiny_prior_folder: Path, monkeypatch):
    page = PROJECT / "docs" / "tasks.md"
    (source,) = blocks(page, "python")
    (tmp_path / "my_operator.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    (arguments,) = [arguments for arguments in commands(page) if any("my_operator" in item for item in arguments)]
    run = tmp_path / "run"
    small = [f"prior.pretrained={tiny_prior_folder}", "num_steps=2", "num_particles=2", f"output_dir={run}"]
    code, printed = train(*arguments, *small)
    assert code == 0, printed
    assert 0 < json.loads((run / "000" / "metrics.json").read_text())["residual"] < 0.1


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/getting_started.md"])
def test_the_python_example_runs(page: str, tmp_path: Path, monkeypatch):
    (source,) = blocks(PROJECT / page, "python")
    monkeypatch.chdir(tmp_path)
    assert "truth=truth)" in source
    script = tmp_path / "example.py"
    script.write_text(source.replace("truth=truth)", "truth=truth, num_steps=2, num_particles=2)"))
    runpy.run_path(str(script))
    assert (tmp_path / "out" / "metrics.json").is_file()
