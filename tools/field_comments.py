"""A griffe extension: on the API page the comment behind a field of a class is the field's description."""

from __future__ import annotations

from typing import Any

import griffe


class FieldComments(griffe.Extension):
    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        if attr.docstring is None and attr.parent is not None and attr.parent.is_class and attr.lines:
            comment = attr.lines[-1].partition("  # ")[2]
            if comment:
                attr.docstring = griffe.Docstring(comment, parent=attr)
