"""Griffe extension: show doctests under ``Example:`` as code, as those under ``Examples:`` are."""

from __future__ import annotations

import re
from typing import Any

import griffe

SINGULAR = re.compile(r"^Example:$", re.MULTILINE)


class Doctests(griffe.Extension):
    """Rename the section ``Example:``, which Griffe reads as plain text, to ``Examples:``."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section in the docstring of ``obj``."""
        if obj.docstring is not None:
            obj.docstring.value = SINGULAR.sub("Examples:", obj.docstring.value)
