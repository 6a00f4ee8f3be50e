"""Reads a task file (BDDL) and checks it against what LIBERO knows, without importing LIBERO.

LIBERO's own parser fails far from the mistake, and evaluates yaw angles as Python, so that a file may hold code.
`number` reads those angles here, and in LIBERO's parser as well (see `suites._import_libero`).
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import math
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_rl.errors import UserError, closest

Tokens = list[Any]  # a parenthesised group: words, and groups

WORKSPACES = {  # problem -> the fixture that is its floor or table
    "libero_floor_manipulation": "floor",
    "libero_tabletop_manipulation": "table",
    "libero_kitchen_tabletop_manipulation": "kitchen_table",
    "libero_living_room_tabletop_manipulation": "living_room_table",
    "libero_study_tabletop_manipulation": "study_table",
    "libero_coffee_table_manipulation": "coffee_table",
}
PREDICATES = {"in": 2, "on": 2, "open": 1, "close": 1, "turnon": 1, "turnoff": 1}  # -> how many things it is about
_LONGEST_NUMBER = 80  # characters
_ARITHMETIC: dict[type, Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


@dataclass(frozen=True, slots=True)
class Problem:
    """What a task file says, in lower case as LIBERO reads it."""

    name: str  # of the kind of scene: one of `WORKSPACES`
    instruction: str
    objects: dict[str, str]  # name -> category
    fixtures: dict[str, str]  # name -> category, the workspace among them
    goal: tuple[tuple[str, ...], ...]  # conditions, all of which must hold: predicate, then names


class _Wrong(Exception):
    """What is wrong in the file."""


@functools.lru_cache(maxsize=1024)
def read_problem(path: Path) -> Problem:
    """The task file's content.

    Raises:
        UserError: the file cannot be read or parsed, or names what LIBERO does not know.
    """
    try:
        return _problem(_groups(_tokens(path.read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"the task file {path} cannot be read: {reason}; leave it out: sim.tasks=[...]") from error
    except _Wrong as error:
        raise UserError(f"the task file {path} {error}; mend it, or leave the task out: sim.tasks=[...]") from None


def number(text: str) -> float:
    """The value of numbers, `pi` and `np.pi` under + - * /; a ValueError for anything else.

    Example:
        >>> number("-np.pi/2")
        -1.5707963267948966
    """
    try:
        if len(text) > _LONGEST_NUMBER:
            raise ValueError
        value = _value(ast.parse(text, mode="eval").body)
        if not math.isfinite(value):
            raise ValueError
    except (ValueError, SyntaxError, ArithmeticError, RecursionError):
        raise ValueError(f"{text[:_LONGEST_NUMBER]!r} is no number") from None
    return value


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.Name(id="pi") | ast.Attribute(value=ast.Name(id="np"), attr="pi"):
            return math.pi
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _ARITHMETIC:
            return _ARITHMETIC[type(op)](_value(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _ARITHMETIC[type(op)](_value(left), _value(right))
    raise ValueError


@functools.cache
def categories() -> frozenset[str]:
    """Of the objects and fixtures that the installed LIBERO has a class for: `@register_object class MokaPot` is
    moka_pot."""
    spec = importlib.util.find_spec("libero")
    assert spec is not None and spec.submodule_search_locations, "LIBERO is not installed"
    sources = (Path(spec.submodule_search_locations[0]) / "libero" / "envs" / "objects").glob("*.py")
    classes = [
        name
        for source in sources
        for name in re.findall(r"^@register_object\n(?:@\w+\n)*class (\w+)", source.read_text(encoding="utf-8"), re.M)
    ]
    return frozenset("_".join(re.sub(r"([A-Z0-9])", r" \1", name).split()).lower() for name in classes)


# ------------------------------------------------------------------------------------------------------------- parsing


def _tokens(text: str) -> Tokens:
    """The one group that the text holds, nested as its parentheses are."""
    stack: list[Tokens] = [[]]
    for word in re.findall(r"[()]|[^\s()]+", re.sub(r";.*$", "", text, flags=re.M).lower()):
        if word == "(":
            stack.append([])
        elif word == ")":
            if len(stack) == 1:
                raise _Wrong("does not parse: a parenthesis is closed that was not opened")
            group = stack.pop()
            stack[-1].append(group)
        else:
            stack[-1].append(word)
    if len(stack) > 1:
        raise _Wrong(f"does not parse: parentheses are not closed: {len(stack) - 1}")
    if len(stack[0]) != 1 or not isinstance(stack[0][0], list):
        raise _Wrong("does not parse: it must be one (define ...)")
    return stack[0][0]


def _groups(tokens: Tokens) -> dict[str, Tokens]:
    """The content of (define (problem X) (:domain robosuite) (:language ...) ...), by the groups' first words."""
    if tokens[:1] != ["define"] or not all(isinstance(group, list) and group for group in tokens[1:]):
        raise _Wrong("does not parse: it must be (define (problem ...) (:domain robosuite) ...)")
    groups = {str(group[0]): group[1:] for group in tokens[1:]}
    for needed in ("problem", ":domain", ":language", ":fixtures", ":objects", ":regions", ":init", ":goal"):
        if needed not in groups:
            raise _Wrong(f"has no ({needed} ...)")
    return groups


def _problem(groups: dict[str, Tokens]) -> Problem:
    name = _only(groups["problem"], WORKSPACES, "problem")
    _only(groups[":domain"], ("robosuite",), "domain")
    fixtures = _typed(groups[":fixtures"], ":fixtures", categories() | {WORKSPACES[name]})
    objects = _typed(groups[":objects"], ":objects", categories())
    if not objects:
        raise _Wrong("has no objects")
    instruction = groups[":language"]
    if not instruction or not all(isinstance(word, str) for word in instruction):
        raise _Wrong("has no instruction in (:language ...)")
    things = fixtures.keys() | objects.keys()
    things |= _regions(groups[":regions"], things)
    _conditions(groups[":init"], things, ":init")
    if len(groups[":goal"]) != 1 or not isinstance(groups[":goal"][0], list):
        raise _Wrong("must have one condition as its goal, or (and ...)")
    whole = groups[":goal"][0]
    goal = _conditions(whole[1:] if whole[:1] == ["and"] else [whole], things, ":goal")
    if not goal:
        raise _Wrong("has an empty goal")
    return Problem(name, " ".join(instruction), objects, fixtures, goal)


def _only(group: Tokens, allowed: Iterable[str], what: str) -> str:
    if len(group) != 1 or group[0] not in allowed:
        raise _Wrong(f"is of {what} {_shown(group)}; LIBERO knows {', '.join(allowed)}")
    return group[0]


def _typed(group: Tokens, where: str, known: Iterable[str]) -> dict[str, str]:
    """name -> category of `a_1 a_2 - a  b_1 - b`."""
    found: dict[str, str] = {}
    names: list[str] = []
    words = iter(group)
    for word in words:
        if isinstance(word, list):
            raise _Wrong(f"has parentheses in ({where} ...): {_shown(word)}")
        if word != "-":
            names.append(word)
            continue
        category = next(words, None)
        if not names or not isinstance(category, str):
            raise _Wrong(f"does not parse: a '-' without name or category in ({where} ...)")
        found |= dict.fromkeys(names, category)
        names = []
    if names:
        raise _Wrong(f"gives no category to {', '.join(names)} in ({where} ...)")
    if unknown := sorted(set(found.values()) - set(known)):
        likely = closest(unknown[0], known, cutoff=0.8)
        hint = f" (did you mean '{likely}'?)" if likely else ""
        raise _Wrong(f"has {where[1:]} that LIBERO does not know: {', '.join(unknown)}{hint}")
    return found


def _regions(group: Tokens, things: Iterable[str]) -> set[str]:
    """Names of the regions of `things`: the thing's and their own."""
    names: set[str] = set()
    for region in group:
        if not isinstance(region, list) or not region or not isinstance(region[0], str):
            raise _Wrong(f"does not parse: {_shown(region)} in (:regions ...)")
        target: str | None = None
        for attribute in region[1:]:
            match attribute:
                case [":target", str(named)]:
                    target = named
                case [":ranges", [*ranges]]:
                    for ends in ranges:
                        _check_range(region[0], ends)
                case [":yaw_rotation", [[low, high]]]:
                    _numbers(region[0], [low, high])
                case [":rgba", [*rgba]] if len(rgba) == 4:
                    _numbers(region[0], rgba)
                case _:
                    raise _Wrong(f"has a region {region[0]} with {_shown(attribute)}")
        if target is None:
            raise _Wrong(f"has a region {region[0]} without (:target ...)")
        if target in things:  # LIBERO-Goal itself has regions of things that are not there
            names.add(f"{target}_{region[0]}")
    return names


def _check_range(region: str, ends: Any) -> None:
    if not isinstance(ends, list) or len(ends) != 4:
        raise _Wrong(f"has a region {region} whose range is {_shown(ends)}, not four numbers")
    left, near, right, far = _numbers(region, ends)
    if left > right or near > far:
        raise _Wrong(f"has a region {region} whose range {_shown(ends)} ends before it begins (x y x y)")


def _numbers(region: str, values: list[Any]) -> list[float]:
    try:
        return [number(value) if isinstance(value, str) else number(_shown(value)) for value in values]
    except ValueError as error:
        raise _Wrong(f"has a region {region} in which {error}") from None


def _conditions(group: Tokens, things: Iterable[str], where: str) -> tuple[tuple[str, ...], ...]:
    for condition in group:
        if not isinstance(condition, list) or not all(isinstance(word, str) for word in condition) or not condition:
            raise _Wrong(f"does not parse: {_shown(condition)} in ({where} ...)")
        predicate, *names = condition
        if predicate not in PREDICATES:
            raise _Wrong(
                f"has a predicate in ({where} ...) that LIBERO does not know: {predicate}; it knows "
                f"{', '.join(PREDICATES)}"
            )
        if len(names) != PREDICATES[predicate]:
            raise _Wrong(f"has {_shown(condition)} in ({where} ...), but {predicate} takes {PREDICATES[predicate]}")
        if unknown := [name for name in names if name not in things]:
            raise _Wrong(f"names in ({where} ...) what it does not declare: {', '.join(unknown)}")
    return tuple(tuple(condition) for condition in group)


def _shown(tokens: Any) -> str:
    text = tokens if isinstance(tokens, str) else f"({' '.join(map(_shown, tokens))})"
    return text if len(text) <= _LONGEST_NUMBER else text[:_LONGEST_NUMBER] + "..."
