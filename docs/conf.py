"""Sphinx configuration. Nothing is fetched: the build needs no network."""

from importlib.metadata import version as installed_version

project = "anyloader"
author = "anyloader contributors"
copyright = "anyloader contributors"
release = version = installed_version("anyloader")

extensions = ["sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"anyloader {release}"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88

# Names of other projects are not looked up, as that would take their inventories. Nor are type
# variables, and names that a signature uses without their module.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(anyio|asyncio|collections|contextvars|trio|types|typing|typing_extensions)\..*",
    ),
    (r"py:class", r"(anyloader\.\w+\.)?[A-Z](_co|_contra)?"),
    (r"py:class", r"CapacityLimiter|TaskGroup"),
]
