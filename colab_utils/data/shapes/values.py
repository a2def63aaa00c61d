"""Read a cell of a raw row: text, a label, or a list that may be written as JSON."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

from colab_utils.data.schema import BadRow, escape

NO, YES = ("0", "0.0", "false", "no"), ("1", "1.0", "true", "yes")


def is_blank(value: object) -> bool:
    """Return whether a cell is empty, or NaN: a table's missing numbers are NaN."""
    if isinstance(value, str):
        return not value or value.isspace()
    if isinstance(value, float):
        return not math.isfinite(value)
    return value is None or (isinstance(value, (list, dict)) and not value)


def text(value: object, column: object) -> str:
    """Return a cell as text without spaces around it; raises BadRow with the reason.

    Numbers become text, and true and false become their JSON spelling.
    """
    return whole_text(value, column).strip()


def whole_text(value: object, column: object) -> str:
    """Return a cell as text, with the spaces around it: in code they have a meaning."""
    if value.__class__ is not str:
        value = _spell(value, column)
    if not value or value.isspace():
        raise BadRow(f"{name(column)} is empty")
    if not value.isascii():
        check_utf8(value, column)
    return value


def _spell(value: object, column: object) -> str:
    if is_blank(value):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, (str, int, float)):
        raise BadRow(f"{name(column)} is not text, but {type(value).__name__}")
    try:
        return str(value)
    except ValueError as error:
        raise BadRow(f"{name(column)} is a number of too many digits") from error


def flag(value: object) -> bool | None:
    """Return what a cell with yes or no says, or None for another value."""
    said = str(value).strip().lower() if isinstance(value, (str, int, float)) else ""
    return True if said in YES else False if said in NO else None


def check_utf8(value: str, column: object) -> None:
    """Raise BadRow if a text has lone surrogates, which no file can hold."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"{name(column)} is not valid UTF-8") from error


def check_nested(value: object, column: object) -> None:
    """Raise BadRow if a nested value can't be written as JSON in UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise BadRow(f"{name(column)} can't be written as JSON") from error


def name(column: object) -> str:
    """Return a column's name for a reason: printable and short."""
    return escape(str(column))[:40]


def decoded(value: object, column: object) -> Any:
    """Return a list or an object; a text that holds one as JSON is decoded.

    Raises BadRow for JSON that can't be read.
    """
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"{name(column)} is not valid JSON") from error


def objects(value: object, column: object) -> Any:
    """Return a list of objects; the Hub's columns of them and JSON text become one.

    {"role": ["user"], "content": ["Who?"]} becomes [{"role": "user", "content":
    "Who?"}]. Other values are returned as they are. Raises BadRow for broken JSON.
    """
    value = decoded(value, column)
    if isinstance(value, dict) and all(isinstance(v, list) for v in value.values()):
        lists: list[list[Any]] = list(value.values())
        if len({len(one) for one in lists}) == 1:
            cells = zip(*lists, strict=True)
            return [dict(zip(value, row, strict=True)) for row in cells]
    return value


def as_json(value: object) -> str:
    """Return a nested value as JSON text."""
    return json.dumps(value, ensure_ascii=False)


def label(value: object, column: object) -> str:
    """Return a class label as text; 1.0 is "1", and a list of one label is that label.

    Raises BadRow for a list of several.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(BadRow):
            value = decoded(value, column)
    if isinstance(value, list):
        if len(value) != 1:
            raise BadRow(f"{name(column)} has {len(value)} labels, but a row has one")
        value = value[0]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value == "-":
        raise BadRow(f"{name(column)} is -, which stands for no label")
    return text(value, column)
