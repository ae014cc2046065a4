"""The site: `make docs` builds it into docs/_build/html, warnings as errors."""

import inspect
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import yaml
from flax import linen, nnx

import jaxnorm

project = "jaxnorm"
author = copyright = "The jaxnorm authors"
version = release = jaxnorm.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "README.md", "devices"]
myst_enable_extensions = ["dollarmath", "attrs_inline", "substitution"]
myst_heading_anchors = 3
default_role = "code"


def table_of_normalizations():
    """A row for each page of normalizations/, from the name and the scope at its head."""
    rows = ["| normalization | measured over |", "| --- | --- |"]
    for page in sorted(Path(__file__).parent.glob("normalizations/*.md")):
        head = yaml.safe_load(page.read_text().split("---\n")[1])
        rows.append(f"| [{head['name']}](normalizations/{page.name}) | {head['measured_over']} |")
    return "\n".join(rows)


myst_substitutions = {"normalizations": table_of_normalizations()}

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Conventions", ("In the call", "params_style")]

MODULES = (linen.Module, nnx.Module)

html_theme = "sphinx_book_theme"
html_title = "jaxnorm"
html_context = {"default_mode": "auto"}
html_theme_options = {
    "use_download_button": False,
    "navbar_persistent": [],
    "show_navbar_depth": 1,
    "home_page_in_toc": True,
}
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]


def as_restructured_text(app, what, name, subject, options, lines):
    """Plain text as it reads: |x| is no substitution, and indented terms are a list."""
    lines[:] = [line if ">>>" in line else line.replace("|", r"\|") for line in lines]
    if what == "module":
        text = re.sub(r"^ {4}(?=\S)", "* ", "\n".join(lines), flags=re.MULTILINE)
        lines[:] = re.sub(r"^ {8}", "  ", text, flags=re.MULTILINE).split("\n")


def constructor(app, what, name, subject, options, signature, annotation):
    """The arguments of a Flax module are those of its __init__; NNX's metaclass hides them."""
    if what == "class" and isinstance(subject, type) and issubclass(subject, MODULES):
        arguments = list(inspect.signature(subject.__init__).parameters.values())[1:]
        plain = [each.replace(annotation=each.empty) for each in arguments if each.name != "parent"]
        text = str(inspect.Signature(plain))
        return re.sub(r"<(?:function|class) '?([\w.]+)'?(?: at 0x\w+)?>", r"\1", text), None
    return None


class Field(NamedTuple):
    name: str


def skip_fields(app, what, name, member, skip, options):
    """The docstring of a named tuple describes its fields; those of the fields say nothing."""
    return True if isinstance(member, type(Field.name)) else None


def with_figures_of_the_studies(app, exception):
    """The table of verdicts shows them by HTML, whose files Sphinx does not see."""
    figures = Path(app.outdir, "studies")
    figures.mkdir(exist_ok=True)
    for figure in Path(app.srcdir, "studies").glob("*.svg"):
        shutil.copy(figure, figures)


def setup(app):
    app.connect("autodoc-process-docstring", as_restructured_text)
    app.connect("autodoc-process-signature", constructor)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("build-finished", with_figures_of_the_studies)
