"""Sphinx configuration. Nothing is fetched: the build needs no network."""

import sys
from importlib.metadata import metadata
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "anyloader"
author = "anyloader contributors"
copyright = "anyloader contributors"
release = version = installed_version("anyloader")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "code_links",
    "batch_states",
    "program_names",
    "trace_picture",
    "descriptions",
    "ideas",
]
exclude_patterns = ["_build"]
html_theme = "furo"
copybutton_selector = "div:not(.highlight-text) > div.highlight > pre"
pygments_dark_style = "github-dark"
html_title = f"anyloader {release}"
urls = dict(entry.split(", ", 1) for entry in metadata("anyloader").get_all("Project-URL") or [])
if "Source" in urls:  # each page then leads to its source, and to where it is changed
    html_theme_options = {
        "source_repository": urls["Source"],
        "source_branch": "main",
        "source_directory": "docs/",
    }
html_static_path = ["_static"]
html_css_files = ["anyloader.css"]
html_search_scorer = str(Path(__file__).parent / "_static" / "scorer.js")

autodoc_member_order = "bysource"
autodoc_mock_imports = ["coredis", "opentelemetry", "prometheus_client", "redis"]
autodoc_typehints = "signature"
# Counted with the full names of types, of which the page shows the last part.
python_maximum_signature_line_length = 130

# Names of other projects are not looked up, as that would take their inventories. Nor are type
# variables, and names that a signature uses without their module.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(anyio|asyncio|collections|contextvars|coredis|opentelemetry|os|prometheus_client|pathlib|trio|types|typing|typing_extensions)\..*",
    ),
    (r"py:class", r"(anyloader\.[\w.]+\.)?[A-Z]\d?(_co|_contra|\.args|\.kwargs)?"),
    (r"py:class", r"CapacityLimiter|LimiterOption|LoaderScope|TaskGroup"),
    # Bases that the reference of another project describes, and helpers for type checkers.
    (r"py:class", r"(graphql|strawberry)\..*"),
    (r"py:.*", r"sqlalchemy\..*"),
    (r"py:class", r"(trace|metrics)\.\w+Provider"),
    (
        r"py:class",
        r"(anyloader\.\w+\.)?(Hook|LoaderOptions|Bind\w+Fn|\w+Method|_(List)?Options|_Decorator|_Grouping|_Indexing|_WithMissing|AllOptions|Watch|BoundBatchLoader|ExecutionContext|Redis|Serializer|PathLike)",
    ),
]


def leave_out_numbers(app, what, name, thing, options, lines):
    """Python says of each field of a named tuple which number it has, and nothing else."""
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()


def setup(app):
    app.connect("autodoc-process-docstring", leave_out_numbers)
