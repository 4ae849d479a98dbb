"""Settings of the documentation site: ``sphinx-build -W docs build/site``."""

import logging
import os
import re
import shutil
import warnings
from importlib import metadata
from pathlib import Path

import lightning.pytorch
from sphinx.application import Sphinx

PROJECT = Path(__file__).resolve().parents[1]
EXAMPLES = PROJECT / "build" / "examples"
shutil.rmtree(EXAMPLES, ignore_errors=True)  # a copy: examples write their results where they lie
shutil.copytree(PROJECT / "examples" / "gallery", EXAMPLES)
os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars are for a terminal
logging.getLogger(lightning.pytorch.__name__).setLevel(logging.WARNING)  # after the import, which sets it
warnings.filterwarnings("ignore")

project = "rlsd-lightning"
author = "The rlsd-lightning authors"
copyright = author
release = version = metadata.version("rlsd-lightning")
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",  # MathJax beside the pages: they need no network, and no other host learns who reads them
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["history", "gallery/*.ipynb", "gallery/*.py", "gallery/*.md5", "gallery/*.zip"]
templates_path = ["_templates"]
suppress_warnings = ["config.cache"]  # the gallery's settings hold functions

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 4
autodoc_inherit_docstrings = False  # of Lightning

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

sphinx_gallery_conf = {
    "examples_dirs": str(EXAMPLES),
    "gallery_dirs": "gallery",
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("matplotlib",),
    "capture_repr": (),
    "matplotlib_animations": True,
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "download_all_examples": False,
    "show_signature": False,
    "thumbnail_size": (400, 280),
    "write_computation_times": False,
    "first_notebook_cell": "%matplotlib inline",
}

html_theme = "furo"
html_title = "rlsd-lightning"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}

copybutton_exclude = ".linenos, .gp, .go"
linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_ignore = [r"http://localhost"]

nitpicky = True  # references between docstrings must lead somewhere
nitpick_ignore_regex = [("py:.*", r"(?!rlsd_lightning).*")]

SOURCE = re.compile(r"\[([^\]]+)\]\(\.\./(rlsd_lightning/[\w/]+)\.py\)")


def link_sources(app: Sphinx, docname: str, source: list[str]) -> None:
    """Lead links to files outside docs/, as GitHub follows them, to the pages that are made from them."""
    source[0] = source[0].replace("](../examples/gallery)", "](gallery/index.rst)")
    source[0] = SOURCE.sub(lambda found: f"{{py:mod}}`{found[1]} <{found[2].replace('/', '.')}>`", source[0])


def keep_sentences(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Have napoleon take the first line of an attribute for text: it would read a type before a colon."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # an empty comment


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", keep_sentences, priority=400)  # before napoleon's 500
    app.connect("source-read", link_sources)
