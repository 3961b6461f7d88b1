"""The docs site: `make docs`, or `sphinx-build -W docs docs/_build`.

A page per method is written into docs/methods/ before each build, from the docstrings alone: a new method needs nothing here.
The model card of each checkpoint is written into docs/cards/, from its file.
"""

import ast
import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

import mamllit.methods  # noqa: E402
from mamllit import pretrained  # noqa: E402
from mamllit.pretrained.card import card  # noqa: E402

project = "mamllit"
author = "the authors of mamllit"
version = release = mamllit.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "code"  # a docstring's `name` is code
html_theme = "furo"
html_title = "mamllit"
html_show_copyright = False
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_typehints = "none"  # they are in the signature
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # Lightning's speak of its own site
templates_path: list[str] = []
SHARED = {"__init__", "base", "checks"}  # of mamllit/methods/: no method


def methods() -> dict[str, str]:
    """File name -> docstring of every method of `mamllit.methods`."""
    exported = {getattr(mamllit.methods, name).__module__ for name in mamllit.methods.__all__}
    files = (path for path in sorted((ROOT / "mamllit/methods").glob("*.py")) if path.stem not in SHARED)
    return {
        path.stem: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        for path in files
        if f"mamllit.methods.{path.stem}" in exported
    }


def page(stem: str, docstring: str) -> str:
    """A method's page: its module's docstring, its classes, and its experiments."""
    title, _, text = docstring.partition("\n")
    names = [name for name in mamllit.methods.__all__ if getattr(mamllit.methods, name).__module__ == f"mamllit.methods.{stem}"]
    text = re.sub(r"\barXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
    classes = [f"```{{eval-rst}}\n.. autoclass:: mamllit.methods.{name}\n   :members:\n```" for name in names]
    named = [f"mamllit.methods.{name}\n" for name in names]
    files = sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "experiments").rglob("*.yaml")
        if any(f"class_path: {name}" in path.read_text(encoding="utf-8") for name in named)
    )
    experiments = [f"- `mamllit fit -c {file}`" for file in files]
    return "\n".join([f"# {title.rstrip('.')}", text, *classes, "", "## Experiments", "", *experiments, ""])


def write_methods(app: object) -> None:
    """Write docs/methods/."""
    pages = {f"{stem}.md": page(stem, text) for stem, text in methods().items()}
    listed = "\n".join(name.removesuffix(".md") for name in pages)
    intro = "One file per paper in `mamllit/methods/`; these pages are its docstrings.\n"
    pages["index.md"] = f"# Methods\n\n{intro}\n```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n"
    write(DOCS / "methods", pages)


def write_cards(app: object) -> None:
    """Write docs/cards/."""
    cards = {name: card(pretrained.read(name)[0]).partition("\n---\n")[2].lstrip() for name in pretrained.names()}
    write(DOCS / "cards", {f"{name}.md": text for name, text in cards.items()})


def write(folder: Path, pages: dict[str, str]) -> None:
    """The pages of a folder, and no others; one that has not changed is left alone, so that a second build is quick."""
    folder.mkdir(exist_ok=True)
    for old in set(folder.glob("*.md")) - {folder / name for name in pages}:
        old.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def as_text(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text: outside of backticks a star, a bar or a last underscore means itself; examples are code."""
    example = ""  # the indentation of an "Example:" that we are in
    written: list[str] = []
    for line in lines:
        indent = line[: len(line) - len(line.lstrip())]
        if re.fullmatch(r"\s*Examples?::?", line):
            example = indent + " "
            written += [f"{indent}.. code-block:: python", ""]
        elif example and (not line.strip() or indent.startswith(example)):
            written.append(line)
        else:
            example = ""
            parts = re.split(r"(`[^`]*`|^\s*>>>.*)", line)
            plain = [part if part.lstrip().startswith(("`", ">>>")) else _escaped(part) for part in parts]
            written.append("".join(plain))
    lines[:] = written


def _escaped(text: str) -> str:
    return re.sub(r"(?<=\w)_(?!\w)", r"\\_", re.sub(r"([*|])", r"\\\1", text))


def setup(app: object) -> None:
    app.connect("builder-inited", write_methods)  # type: ignore[attr-defined]
    app.connect("builder-inited", write_cards)  # type: ignore[attr-defined]
    app.connect("autodoc-process-docstring", as_text, priority=400)  # type: ignore[attr-defined] # before napoleon
