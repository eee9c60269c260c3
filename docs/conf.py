"""Settings of Sphinx. `make docs` builds the pages into docs/_build/html."""

import os

# The API pages are made from the docstrings, for which the package is imported.
os.environ.setdefault("KERAS_BACKEND", "jax")

from keras_qrnn import __version__

project = "keras_qrnn"
author = copyright = "The keras_qrnn authors"
release = version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]

# Each notebook is executed. An error in one ends the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds a cell
nb_execution_in_temp = True  # what they save is not left in docs/
myst_heading_anchors = 3
nitpicky = False

html_theme = "furo"
html_title = "keras_qrnn"

autodoc_typehints = "none"  # the docstrings give shapes, which types do not
autodoc_member_order = "bysource"
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [
    ("Call arguments", "params_style"),
    "Output shape",
    "States",
]
