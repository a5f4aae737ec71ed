"""Settings of the documentation site: `uv run --isolated --only-group docs sphinx-build -W docs artifacts/site`.

The pages are plain Markdown, readable without the site. Links between pages, and to headings in them, are checked by
the build: `-W` makes each that does not resolve an error. A link to a file outside of this folder becomes a download.
"""

from __future__ import annotations

import re
from pathlib import Path

project = "densenet-deploy"
copyright = "densenet-deploy contributors"  # noqa: A001 (the name that Sphinx reads)
release = re.findall(r'^version = "(.+)"', Path(__file__).parents[1].joinpath("pyproject.toml").read_text(), re.M)[0]

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_heading_anchors = 4
nitpicky = True

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["style"]
html_css_files = ["reading.css"]
html_show_sphinx = False
html_copy_source = False
pygments_style = "default"
pygments_dark_style = "github-dark"
