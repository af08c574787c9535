"""How the site is built."""

from __future__ import annotations

import sys
from pathlib import Path

import sphinx_gallery  # noqa: F401  (chooses matplotlib's backend, so it comes before matplotlib)

import bilevel

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "bilevel"
author = "The bilevel contributors"
copyright = author
release = version = bilevel.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "docstrings",
    "run_directive",
]
root_doc = "index"
exclude_patterns = ["_build", "gallery", "auto_examples/**/*.ipynb", "auto_examples/**/*.py"]
suppress_warnings = ["config.cache"]
nitpicky = True
# The library's own names must resolve; without a network, nobody else's can.
nitpick_ignore_regex = [("py:.*", r"(?!bilevel\.).*"), ("py:class", r"bilevel\.errors\._.*")]

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
toc_object_entries_show_parents = "hide"
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

mathjax4_config = {
    "tex": {"macros": {"argmin": r"\operatorname*{arg\,min}"}},
    # By default mathematics grows with the x-height of whichever font the reader's system has.
    "chtml": {"matchFontHeight": False, "scale": 1.05},
}

sphinx_gallery_conf = {
    "examples_dirs": ["gallery"],
    "gallery_dirs": ["auto_examples"],
    "filename_pattern": r"/plot_",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "image_srcset": ["2x"],
    "reset_modules": ("figures.style", "seaborn"),
    "capture_repr": ("_repr_html_",),
    "doc_module": ("bilevel",),
    "backreferences_dir": "gen_modules/backreferences",
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "download_all_examples": False,
    "write_computation_times": False,
    "plot_gallery": True,
}

html_theme = "pydata_sphinx_theme"
html_title = "bilevel"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/mark.svg"
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {
        "text": "bilevel",
        "image_light": "_static/mark.svg",
        "image_dark": "_static/mark.svg",
    },
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "show_toc_level": 2,
    "show_prev_next": True,
    "back_to_top_button": False,
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "github-light",
    "pygments_dark_style": "github-dark",
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {
    # Pages without siblings have nothing to list.
    name: []
    for name in ("index", "quickstart", "concepts", "choosing", "trust", "design", "errors")
}
