"""The documentation site: the pages of docs/, and the documents that stand beside what they are about."""

import re
from pathlib import Path
from typing import Any

from docutils import nodes
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
myst_heading_anchors = 4

autodoc_mock_imports = ["lightning", "transformers"]
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autosummary_generate = False
napoleon_custom_sections = ["Reference"]
napoleon_use_rtype = False
python_maximum_signature_line_length = 100
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_extra"]
html_copy_source = False


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", without_param)
    app.connect("source-read", with_title)
    app.connect("doctree-read", without_modules)
    app.connect("doctree-read", with_dark_pictures, priority=100)  # before Sphinx collects them


def without_param(app: Sphinx, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Arguments that a module describes for all of its functions are ordinary fields to Sphinx."""
    if what == "module":
        lines[:] = [re.sub(r"^:param (\w+):", r":\1:", line) for line in lines]


def without_modules(app: Sphinx, tree: nodes.document) -> None:
    """Types that Sphinx cannot parse, such as Literal["rigl"], keep the ~ before names to be shortened."""
    for text in list(tree.findall(nodes.Text)):
        if "~" in text:
            text.parent.replace(text, nodes.Text(re.sub(r"~(?:\w+\.)+", "", text)))


def with_title(app: Sphinx, name: str, source: list[str]) -> None:
    """The tables that commands write begin with a bold line in place of a title."""
    if name.endswith("/table"):
        source[0] = re.sub(r"\A\*\*(.*)\*\*$", r"# \1", source[0], flags=re.MULTILINE)


def with_dark_pictures(app: Sphinx, tree: nodes.document) -> None:
    """A picture that has one for dark pages beside it, NAME-dark.png, changes with the page."""
    folder = Path(app.env.doc2path(app.env.docname)).parent
    for image in list(tree.findall(nodes.image)):
        light = Path(image["uri"])
        dark = light.with_name(f"{light.stem}-dark{light.suffix}")
        if (folder / dark).is_file():
            image["classes"].append("only-light")
            other = image.deepcopy()
            other["uri"], other["classes"] = str(dark), ["only-dark"]
            image.parent.insert(image.parent.index(image) + 1, other)
