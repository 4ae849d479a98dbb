"""The built site: links inside it lead somewhere, and pages need no other host.

``RLSD_SITE=build/site`` names a site that is built already; otherwise one is built here, without running the gallery.
"""

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = pytest.mark.xdist_group("site")  # which is built once

PROJECT = Path(__file__).resolve().parents[2]
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src"}
"""Attributes with what a browser fetches along with a page."""


class Page(HTMLParser):
    """Links, loaded files and anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.add(found["href"])
        if found.get(LOADED.get(tag, "")):
            self.loaded.add(found[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "RLSD_SITE" in os.environ:
        return (PROJECT / os.environ["RLSD_SITE"]).resolve()
    pytest.importorskip("sphinx_gallery")
    folder = tmp_path_factory.mktemp("site")
    options = ["-q", "-W", "-D", "plot_gallery=0", "-d", str(folder / "doctrees")]
    subprocess.run([sys.executable, "-m", "sphinx", *options, "docs", str(folder / "html")], cwd=PROJECT, check=True)
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    found = {file: Page(file.read_text(encoding="utf-8")) for file in site.rglob("*.html")}
    assert len(found) > 40, site
    return found


def broken(pages: dict[Path, Page]) -> list[str]:
    """Links inside a site whose page or anchor is missing.

    From a source's page, viewcode links to names of a module by one prefix, so only the page has to be there.
    """
    wrong = []
    for file, page in pages.items():
        for link in page.links | page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            has_anchors = target in pages and "_modules" not in file.parts
            anchors = pages[target].anchors if has_anchors else {unquote(parts.fragment)}
            if not target.exists() or (parts.fragment and unquote(parts.fragment) not in anchors):
                wrong.append(f"{file.name}: {link}")
    return wrong


def test_broken_links_are_found(tmp_path: Path) -> None:
    text = '<a href="#here" id="here"></a><a href="#gone"></a><img src="gone.png"><a href="b.html#gone"></a><a href="c.html"></a>'
    for name in ("a.html", "b.html"):
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = broken({file: Page(text) for file in (tmp_path / "a.html", tmp_path / "b.html")})
    assert sorted(found) == sorted(
        f"{page}.html: {link}" for page in "ab" for link in ("#gone", "gone.png", "b.html#gone", "c.html")
    )


def test_links_lead_somewhere(pages: dict[Path, Page]) -> None:
    assert broken(pages) == []


def test_text_is_not_taken_for_a_type(site: Path) -> None:
    text = (site / "reference" / "priors.html").read_text(encoding="utf-8")
    assert "folder, file or name on the hub, beside which its calibration is kept; None: no checkpoint." in text


def test_pages_need_no_other_host(pages: dict[Path, Page]) -> None:
    assert {address for page in pages.values() for address in page.loaded if urlsplit(address).netloc} == set()


def test_formulas_have_their_program(site: Path) -> None:
    text = (site / "algorithm.html").read_text(encoding="utf-8")
    assert text.count('class="math') > 50
    assert 'src="_static/mathjax/' in text and (site / "_static" / "mathjax" / "tex-chtml.js").is_file()


def test_public_names_are_in_the_reference(site: Path) -> None:
    import rlsd_lightning

    text = "".join(file.read_text(encoding="utf-8") for file in (site / "reference").glob("*.html"))
    assert [name for name in rlsd_lightning.__all__ if f'id="rlsd_lightning.{name}"' not in text] == []
