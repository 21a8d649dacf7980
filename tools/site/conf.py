"""Settings of Sphinx for the documentation; ``build.py`` copies them beside the pages."""

from __future__ import annotations

import importlib.metadata

project = "nemotron-style"
release = importlib.metadata.version(project)
html_title = f"{project} {release}"
highlight_language = "text"  # where a block does not name its own
html_theme = "furo"  # system fonts, nothing from another host
html_static_path = ["static"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_sphinx = False
html_extra_path = ["extra"]
extensions = ["myst_parser"]
# The pages are read on the hosts of repositories too: their dialect, their names of headings.
myst_heading_anchors = 4
myst_enable_extensions = ["tasklist"]
suppress_warnings = ["misc.highlighting_failure"]  # an elision in an example
