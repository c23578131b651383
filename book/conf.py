"""What `make book` tells Sphinx. The pages are the repository's own files, read where they are."""

import ast
import json
import re
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

project = "Kandinsky tensor-parallel workshop"
author = "The Kandinsky tensor-parallel workshop authors"
language = "en"

# The source folder of Sphinx is the whole repository, so that every link between its files stays as it is.
root_doc = "README"
include_patterns = ["README.md", "book/*.md", "notebooks/[0-9]*.ipynb", "notebooks/*.md", "assets/benchmarks/*.md"]
include_patterns += [f"{part}/**.{ending}" for part in ("kandinsky_mini", "launch") for ending in ("md", "py")]
include_patterns += ["tests/*.py"]
empty = [path for path in (ROOT / "kandinsky_mini").rglob("__init__.py") if not path.stat().st_size]
exclude_patterns = ["book/contents.md", "**/.*", "build", "runs", *(str(path.relative_to(ROOT)) for path in empty)]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb", ".py": "restructuredtext"}

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
nb_execution_mode = "off"  # the stored outputs are shown
nb_merge_streams = True
nb_ipywidgets_js = {}  # no stored output is a widget, so pages do not load the code of widgets from a server
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # a lesson may have a small heading before its first large one
myst_enable_extensions = ["dollarmath"]
html_math_renderer = "mathml"  # browsers draw it themselves, without a script
default_role = "code"  # docstrings have single backticks
add_module_names = False
autodoc_default_options = {"members": True, "special-members": "__call__", "member-order": "bysource"}
autodoc_mock_imports = [] if find_spec("triton") else ["triton"]  # it comes with PyTorch where that is built for GPUs
maximum_signature_line_length = 80

html_theme = "sphinx_book_theme"
html_title = project
html_extra_path = ["index.html"]
html_static_path = ["static"]
html_css_files = ["book.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_theme_options = {"use_download_button": False, "use_fullscreen_button": False, "navbar_persistent": []}

MODULE = """{title}
{line}

.. automodule:: {module}

Source
------

.. literalinclude:: /{path}
"""
SCRIPT = """:nosearch:

{title}
{line}

.. literalinclude:: /{path}
"""


def prepare(app, docname: str, source: list[str]) -> None:
    """Change what Sphinx has read from a file before it parses it."""
    path = Path(app.env.doc2path(docname)).relative_to(ROOT)
    if docname == root_doc:
        source[0] += "\n" + (ROOT / "book" / "contents.md").read_text(encoding="utf-8")
    elif path.suffix == ".ipynb":
        notebook = json.loads(source[0])
        for cell in notebook["cells"]:
            metadata = cell["metadata"]
            if "solution" in metadata.get("tags", []):
                metadata["tags"].append("hide-cell")
                metadata["mystnb"] = {"code_prompt_show": "Show a solution", "code_prompt_hide": "Hide the solution"}
            elif metadata.get("jupyter", {}).get("source_hidden"):
                metadata.setdefault("tags", []).append("hide-input")
        source[0] = json.dumps(notebook)
    elif path.suffix == ".py":
        template = MODULE if path.parts[0] == "kandinsky_mini" else SCRIPT
        module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        source[0] = template.format(title=path, line="=" * len(str(path)), module=module, path=path)


def is_code(paragraph: str) -> bool:
    try:
        return bool(ast.parse(paragraph))
    except SyntaxError:
        return False


def to_rest(app, what, name, obj, options, lines: list[str]) -> None:
    """Turn a docstring, which is plain text with backticks, into reStructuredText. Napoleon has done its sections."""
    paragraphs = "\n".join(lines).split("\n\n")
    for i, text in enumerate(paragraphs):
        if re.search(r"\S {2,}\S", text) or is_code(text):  # a table, or an example
            paragraphs[i] = "::\n\n" + textwrap.indent(text, "    ")
        elif re.match(r"\w+: .+\n(    |\w+: )", text):  # a list of names with what they mean
            paragraphs[i] = re.sub(r"^(?=\w+: )", ":", text, flags=re.MULTILINE)
    # Outside of backticks, a star or an underscore is itself.
    parts = "\n\n".join(paragraphs).split("`")
    parts[::2] = [re.sub(r"(?<![\\\w])\*(?=\w)|_(?=\W)", r"\\\g<0>", part) for part in parts[::2]]
    lines[:] = "`".join(parts).split("\n")


def visit_math(self, node: nodes.Node) -> None:
    self.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def setup(app) -> None:
    app.connect("source-read", prepare)
    app.connect("autodoc-process-docstring", to_rest)
    app.add_html_math_renderer("mathml", inline_renderers=(visit_math, None), block_renderers=(visit_math, None))
