"""A Sphinx extension: how the repository's notebooks, modules, docstrings and formulas become pages of the book."""

import ast
import json
import re
import textwrap
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

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
    path = Path(app.env.doc2path(docname)).relative_to(app.srcdir)
    if docname == app.config.root_doc:
        source[0] += "\n" + Path(app.confdir, "contents.md").read_text(encoding="utf-8")
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
        title = path.as_posix().removeprefix("kandinsky_mini/")
        module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        source[0] = template.format(title=title, line="=" * len(title), module=module, path=path.as_posix())


def is_code(paragraph: str) -> bool:
    try:
        return bool(ast.parse(paragraph).body)
    except SyntaxError:
        return False


def to_rest(app, what, name, obj, options, lines: list[str]) -> None:
    """Turn a docstring, which is plain text with backticks, into reStructuredText. Napoleon has done its sections."""
    paragraphs = "\n".join(lines).split("\n\n")
    for i, text in enumerate(paragraphs):
        if is_code(text):  # an example
            paragraphs[i] = "::\n\n" + textwrap.indent(text, "    ")
        elif re.search(r"\S {2,}\S", text):  # a table
            paragraphs[i] = ".. code-block:: text\n\n" + textwrap.indent(text, "    ")
        else:
            if re.match(r"\w+: .+\n(    |\w+: )", text):  # a list of names, and what they mean
                text = re.sub(r"^(\w+): ", r"`\1`\n    ", text, flags=re.MULTILINE)
            # Outside of backticks, a star or an underscore is itself.
            parts = text.split("`")
            parts[::2] = [re.sub(r"(?<![\\\w])\*(?=\w)|_(?=\W)", r"\\\g<0>", part) for part in parts[::2]]
            paragraphs[i] = "`".join(parts)
    lines[:] = "\n\n".join(paragraphs).split("\n")


def without_objects(app, what, name, obj, options, signature: str | None, returns: str | None) -> tuple:
    """Write "..." for a default that is not Python, such as <factory>. Sphinx could not read it."""
    return signature and re.sub(r"<[^<>]*>", "...", signature), returns


def visit_math(self, node: nodes.Node) -> None:
    self.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def setup(app) -> dict:
    app.connect("source-read", prepare)
    app.connect("autodoc-process-docstring", to_rest)
    app.connect("autodoc-process-signature", without_objects)
    app.add_html_math_renderer("mathml", inline_renderers=(visit_math, None), block_renderers=(visit_math, None))
    return {"parallel_read_safe": True}
