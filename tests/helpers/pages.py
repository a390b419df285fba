"""Examples in docstrings, as a reader would copy them."""

import ast
import itertools
import textwrap

from places import ROOT


def example(file: str, word: str) -> str:
    """The indented block that contains this word in the docstring of a module of the package."""
    docstring = ast.get_docstring(ast.parse((ROOT / "a2tgpo_trl" / file).read_text()))
    assert docstring is not None
    runs = itertools.groupby(docstring.splitlines(), key=lambda line: not line.strip() or line.startswith("    "))
    blocks = [textwrap.dedent("\n".join(lines)).strip() + "\n" for is_block, lines in runs if is_block]
    (block,) = [block for block in blocks if word in block]
    return block
