"""What `make book` tells Sphinx. The pages are the repository's own files, read where they are."""

import sys
from importlib.util import find_spec
from pathlib import Path

BOOK = Path(__file__).resolve().parent
ROOT = BOOK.parent
sys.path[:0] = [str(ROOT), str(BOOK)]

project = "Kandinsky tensor-parallel workshop"
author = "The Kandinsky tensor-parallel workshop authors"
language = "en"

# The source folder of Sphinx is the whole repository, so that every link between its files stays as it is.
root_doc = "README"
include_patterns = ["README*.md", "book/*.md", "notebooks/*.ipynb", "notebooks/*.md", "assets/benchmarks/*.md"]
include_patterns += [f"{part}/**.{ending}" for part in ("kandinsky_mini", "launch") for ending in ("md", "py")]
include_patterns += ["tests/*.py"]
empty = [path for path in (ROOT / "kandinsky_mini").rglob("__init__.py") if not path.stat().st_size]
exclude_patterns = ["book/contents.md", "**/.*", "build", "runs", *(str(path.relative_to(ROOT)) for path in empty)]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb", ".py": "restructuredtext"}

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "reading"]
nb_execution_mode = "off"  # the stored outputs are shown
nb_merge_streams = True
nb_code_prompt_show, nb_code_prompt_hide = "Show the code", "Hide the code"
nb_ipywidgets_js = {}  # no stored output is a widget, so pages do not load the code of widgets from a server
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # a lesson may have a small heading before its first large one
myst_enable_extensions = ["dollarmath"]
html_math_renderer = "mathml"  # browsers draw it themselves, without a script
default_role = "code"  # docstrings have single backticks
add_module_names = False
toc_object_entries_show_parents = "hide"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "special-members": "__call__", "member-order": "bysource"}
autodoc_mock_imports = [] if find_spec("triton") else ["triton"]  # it comes with PyTorch where that is built for GPUs
maximum_signature_line_length = 80

html_theme = "sphinx_book_theme"
html_title = project
html_extra_path = ["index.html"]
html_static_path = ["static"]
html_css_files = ["book.css"]
html_copy_source = False
html_use_index = html_domain_indices = False  # the search finds names
html_show_copyright = False
html_show_sphinx = False
html_theme_options = {"use_download_button": False, "use_fullscreen_button": False, "navbar_persistent": []}
