"""Let mkdocstrings show a docstring's examples (lines with `>>>`) as code."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)


class Examples(Extension):
    """Fences each doctest, which Markdown would take for a quotation."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Change the docstring of one module, class or function."""
        if obj.docstring:
            fenced = r"```pycon\n\g<0>\n```"
            obj.docstring.value = EXAMPLE.sub(fenced, obj.docstring.value)
