"""The site, by `make docs`. Pages are Markdown (MyST); figures and tables are made by docs/_ext/generated.py."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]  # the second for the package bench, which is not installed

from focal_cuda import __version__  # noqa: E402

project = "focal_cuda"
author = "the focal_cuda developers"
copyright = f"2026, {author}"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "generated",
]
exclude_patterns = ["_generated"]  # what pages include

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3  # links to headings as GitHub has them
copybutton_prompt_text = "$ "

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_custom_sections = ["Call"]
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_rtype = False  # "float32: a scalar" is one thing, of which float32 is no Python type
napoleon_use_param = False  # "reduction, mask: as for ..." is said once

# Every reference to this package has to lead somewhere; torch's documentation is not asked for over the network.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!focal_cuda|\w+_loss$).*|focal_cuda.detection.Layer")]

html_theme = "furo"
html_title = f"focal_cuda {release}"
html_copy_source = False
