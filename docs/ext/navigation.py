"""The sidebar opens the page's own branch alone: every page would copy the whole tree otherwise."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx


def collapse(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Make the theme, which asks for all branches, get the page's own."""
    toctree = context.get("toctree")
    if toctree is not None:
        context["toctree"] = lambda **options: toctree(**options | {"collapse": True})


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension: before the theme's own handler, which reads the tree."""
    app.connect("html-page-context", collapse, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
