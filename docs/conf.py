"""The documentation site: the pages of docs/, and the documents that stand beside what they are about."""

import re

from sphinx.application import Sphinx

import sparseprune

project = "sparseprune"
author = "The sparseprune authors"
copyright = f"{author}, MIT licence"
version = release = sparseprune.__version__

# The repository's root is the source (make docs), so that links between documents hold here as they do there.
root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "bench/README.md",
    "bench/results/**/README.md",
    "bench/results/frontier/*/table.md",
    "examples/README.md",
]
exclude_patterns = [".*", "build", "data", "dist", "docs/_build", "runs"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
myst_enable_extensions = ["attrs_inline", "colon_fence"]
myst_heading_anchors = 4

autodoc_mock_imports = ["lightning", "transformers"]
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
autosummary_generate = False
napoleon_custom_sections = ["Reference"]
napoleon_use_rtype = False
python_maximum_signature_line_length = 100
copybutton_prompt_text = ">>> "

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_extra"]
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}


def setup(app: Sphinx) -> None:
    app.connect("source-read", with_title)


def with_title(app: Sphinx, name: str, source: list[str]) -> None:
    """The tables that commands write begin with a bold line in place of a title."""
    if name.endswith("/table"):
        source[0] = re.sub(r"\A\*\*(.*)\*\*$", r"# \1", source[0], flags=re.MULTILINE)
