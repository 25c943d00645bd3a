"""Checks of plain values from untrusted files. Each takes a value and what to call it, and returns the value.

All raise :class:`dqn_ext.errors.InvalidInput` with what is allowed.
"""

import ast
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from dqn_ext.errors import InvalidInput

Check = Callable[[Any, str], Any]


def whole(least: int, most: int) -> Check:
    """A whole number, and no truth value."""

    def check(value: Any, name: str) -> int:
        if type(value) is not int or not least <= value <= most:
            raise InvalidInput(f"{name} must be a whole number from {least} to {most}, not {short(value)}.")
        return value

    return check


def number(least: float = -math.inf, most: float = math.inf) -> Check:
    """A finite number."""

    def check(value: Any, name: str) -> float:
        if type(value) not in (int, float) or not abs(value) <= 1e300 or not least <= value <= most:
            raise InvalidInput(f"{name} must be a finite number from {least} to {most}, not {short(value)}.")
        return value

    return check


def flag(value: Any, name: str) -> bool:
    """``True`` or ``False``."""
    if type(value) is not bool:
        raise InvalidInput(f"{name} must be true or false, not {short(value)}.")
    return value


def one_of(*values: Any) -> Check:
    """One of a few values, of the same type."""

    def check(value: Any, name: str) -> Any:
        if not any(type(value) is type(allowed) and value == allowed for allowed in values):
            raise InvalidInput(f"{name} must be one of {', '.join(map(str, values))}, not {short(value)}.")
        return value

    return check


def text(pattern: str) -> Check:
    """A string that matches the whole pattern."""

    def check(value: Any, name: str) -> str:
        if type(value) is not str or not re.fullmatch(pattern, value, re.ASCII):
            raise InvalidInput(f"{name} must match {pattern}, not be {short(value)}.")
        return value

    return check


def sequence(item: Check, most: int) -> Check:
    """A list of at most so many items."""

    def check(value: Any, name: str) -> list[Any]:
        if type(value) is not list or len(value) > most:
            raise InvalidInput(f"{name} must be a list of at most {most}, not {short(value)}.")
        return [item(element, f"{name}[{index}]") for index, element in enumerate(value)]

    return check


def record(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """A mapping with these fields and no others."""
    fields = {**required, **(optional or {})}

    def check(value: Any, name: str) -> dict[str, Any]:
        if type(value) is not dict:
            raise InvalidInput(f"{name} must be a mapping, not {short(value)}.")
        for field in value:
            if field not in fields:
                raise InvalidInput(f"{name} must not set {short(field)}; it may set {', '.join(fields)}.")
        for field in required:
            if field not in value:
                raise InvalidInput(f"{name} lacks {field}.")
        return {field: fields[field](element, f"{name}.{field}") for field, element in value.items()}

    return check


def either(*checks: Check) -> Check:
    """What one of the checks takes; the last one has the last word."""

    def check(value: Any, name: str) -> Any:
        for attempt in checks[:-1]:
            try:
                return attempt(value, name)
            except InvalidInput:
                pass
        return checks[-1](value, name)

    return check


def short(value: Any) -> str:
    """A value as a message may show it."""
    # Of nested values the type alone: their text may have no end; and Python writes no number of some thousand digits
    is_long = isinstance(value, int) and abs(value) > 10**60
    if is_long or not isinstance(value, (str, int, float, bool, type(None))):
        return f"a {'long ' if is_long else ''}{type(value).__name__}"
    return repr(value)[:60]


# ---------------------------------------------------------------------- texts


def read_json(content: bytes, name: str) -> Any:
    """Parse JSON as the standard has it: no NaN, no infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(content.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{name} is not readable JSON ({short(str(error))}).") from error


class _PlainLoader(yaml.SafeLoader):
    """The safe loader, which also reads the two shapes that the Zoo writes, as a dict and a list.

    No aliases: a few of them in each other have a text without end.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)


def _ordered_dict(loader: Any, node: Any) -> dict[str, Any]:
    (pairs,) = loader.construct_sequence(node, deep=True)
    return {str(key): value for key, value in pairs}


def _tuple(loader: Any, node: Any) -> list[Any]:
    return loader.construct_sequence(node, deep=True)


def _int(loader: Any, node: Any) -> int:
    if len(node.value) > 100:  # to the base 60, "1:1:1 ...", it would take the square of that
        raise yaml.YAMLError("a number in it is too long")
    return loader.construct_yaml_int(node)


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _int)
_PlainLoader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", _ordered_dict)
_PlainLoader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)


def read_yaml(content: bytes, name: str) -> Any:
    """Parse YAML of plain values; no tag makes an object of any class.

    :raises InvalidInput: on any tag of Python's but the two that the Zoo writes
    """
    try:
        return yaml.load(content.decode(), Loader=_PlainLoader)
    except Exception as error:  # YAML's own, and what its constructors meet in an empty or strange scalar
        raise InvalidInput(f"{name} is not YAML of plain values ({short(str(error))}).") from error


def read_expression(expression: str, name: str) -> Any:
    """The value of a Python literal, as the Zoo's files hold them in strings; nothing is evaluated.

    Beyond literals there are ``dict(a=1)`` and the names of PyTorch's classes (``nn.ReLU`` is ``"ReLU"``).
    """
    try:
        return _literal(ast.parse(expression.strip(), mode="eval").body)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise InvalidInput(f"{name} is not a literal: {short(expression)}.") from error


def _literal(node: ast.AST) -> Any:
    match node:
        case ast.List() | ast.Tuple():
            return [_literal(element) for element in node.elts]
        case ast.Dict():
            # The key is None in {**other}
            keys = [ast.literal_eval(key) if key is not None else "" for key in node.keys]
            return dict(zip(keys, map(_literal, node.values), strict=True))
        case ast.Call(func=ast.Name(id="dict"), args=[]) if all(keyword.arg for keyword in node.keywords):
            return {keyword.arg: _literal(keyword.value) for keyword in node.keywords}
        case ast.Attribute(
            value=ast.Name(id="nn") | ast.Attribute(value=ast.Name(id="th" | "torch"), attr="nn" | "optim")
        ):
            return node.attr
        case _:
            return ast.literal_eval(node)  # raises ValueError on anything that is no literal
