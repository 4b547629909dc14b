"""How Sphinx builds the documentation: ``sphinx-build -W docs docs/_build``."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

from sphinx.ext import autosummary

sys.path.insert(0, str(Path(__file__).parent / "ext"))

project = "bilevel"
author = "The bilevel authors"
project_copyright = author
release = importlib.metadata.version("bilevel")

extensions = [
    "coverage_check",
    "myst_parser",
    "navigation",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",  # formulas need no network
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "tutorials"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = "bilevel"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_theme_options = {"light_css_variables": {"code-font-size": "78%"}}  # lines fit

# A summary ends with its sentence, and not within it.
autosummary.WELL_KNOWN_ABBREVIATIONS += ("eq.", "Eq.", "Fig.", "Sec.", "Alg.", "Table.")

# Attributes are described in the class docstring; entries of their own would describe them twice.
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]

# A reference to a name of ours has to lead somewhere; other projects' names need the network.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!bilevel\.).*|.*\._\w+|.*\.(Continued|LearnedUpdate)"),
]

coverage_check_modules = [
    "bilevel",
    "bilevel.adjoints",
    "bilevel.distributed",
    "bilevel.games",
    "bilevel.imitation",
    "bilevel.linear",
    "bilevel.monitoring",
    "bilevel.robustness",
    "bilevel.schedules",
    "bilevel.solvers",
    "bilevel.testing",
    "bilevel.updates",
]

sphinx_gallery_conf = {
    "examples_dirs": "tutorials",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",  # run every file, whatever its name
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_signature": False,
    "within_subsection_order": "tutorial_order.key",
    "write_computation_times": False,
}
