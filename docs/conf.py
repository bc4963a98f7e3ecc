"""The documentation site: Sphinx over the Markdown of this folder. ``make docs`` builds it into out/docs."""

from vlm.version import VERSION

project = "diffusion-vlm"
author = "the diffusion-vlm authors"
copyright = "the diffusion-vlm authors, Apache-2.0"
version = release = VERSION

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["images"]
source_suffix = {".md": "markdown"}
nitpicky = False
show_warning_types = True

myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 4

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autoclass_content = "both"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "diffusion-vlm"
html_copy_source = False
html_show_sourcelink = False
