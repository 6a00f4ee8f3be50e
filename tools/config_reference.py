"""Write docs/configuration.md: every value, conf, group and callback, read from the schema, conf/ and the docstrings.

python tools/config_reference.py            # after a change of the schema, of conf/ or of an option
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import yaml

import callbacks
from vla_rl.config.compose import CONF_DIR, conf_names, group_names, merge
from vla_rl.config.instantiate import import_path
from vla_rl.config.schema import GROUPS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "configuration.md"
SCHEMA = ROOT / "vla_rl" / "config" / "schema.py"
OURS = ("vla_rl.", "callbacks.")  # of other targets only what conf/ sets is listed
SUPPLIED = ("save_dir",)  # given by the program

INTRO = """# Configuration

<!-- Written by tools/config_reference.py; edit the schema, conf/ or the docstrings instead. -->

A command is given `conf=NAME` (a file in `conf/`, or the path of a `.yaml`) and then `key=value`: a group by its name
(`mask=random`), or any single value (`mask.budget=8`). Later layers win: the schema's defaults, the files that a conf
`extends`, the conf, groups named on the command line, single values. A node (policy, sim, mask, a callback...) is a
`_target_`, a class or function, and its options; another `_target_` replaces the node, so code of one's own plugs in by
its path. What a run was given is in `config.yaml` of its folder, and `conf=<that file>` repeats it.

A mistake is one line that names the fix, exit code 2, before anything is simulated.
"""


def page() -> str:
    """The whole page."""
    parts = [
        INTRO,
        "## Confs\n",
        _table(("conf", "what"), ((f"`{n}`", _about(CONF_DIR / f"{n}.yaml")) for n in conf_names())),
    ]
    parts += ["## Values\n", *_values()]
    parts += ["## Groups\n"]
    for group in GROUPS:
        parts += _group(group)
    parts += ["## Callbacks\n", *_callbacks()]
    return "\n".join(parts).rstrip("\n") + "\n"


def _values() -> Iterator[str]:
    """A table for every section of the schema, nodes left out; then what single commands take beside it."""
    classes = {
        node.name: node for node in ast.parse(SCHEMA.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)
    }
    sections = {ast.unparse(line.annotation) for node in classes.values() for line in _lines(node)}
    yield from _sections(classes, "Config", "")
    for other in sorted(classes.keys() - sections - {"Config"}):
        yield f"### {ast.get_docstring(classes[other])}\n"
        yield from _sections(classes, other, "")


def _sections(classes: dict[str, ast.ClassDef], kind: str, key: str) -> Iterator[str]:
    """The values of a class of the schema, then those of its sections; `key`: where it stands."""
    if key:
        yield f"### `{key}`\n\n{ast.get_docstring(classes[kind])}\n"
    kinds = {_name(line): ast.unparse(line.annotation) for line in _lines(classes[kind])}
    yield _table(("value", "default", "type", "meaning"), _value_rows(classes[kind], f"{key}." if key else ""))
    for name, inner in kinds.items():
        if inner in classes:
            yield from _sections(classes, inner, f"{key}.{name}" if key else name)


def _value_rows(node: ast.ClassDef, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    source = SCHEMA.read_text(encoding="utf-8").splitlines()
    for line in _lines(node):
        kind = ast.unparse(line.annotation)
        if kind != "Node | None" and not isinstance(line.value, ast.Call):  # neither a node nor a section
            comment = source[line.end_lineno - 1].partition("  # ")[2]
            default = f"`{_yaml(ast.literal_eval(line.value))}`"
            yield f"`{prefix}{_name(line)}`", default, kind.replace(" | None", " or null"), comment


def _lines(node: ast.ClassDef) -> list[ast.AnnAssign]:
    return [line for line in node.body if isinstance(line, ast.AnnAssign)]


def _name(line: ast.AnnAssign) -> str:
    return line.target.id


def _group(group: str) -> Iterator[str]:
    """What can be named, what each file sets, and the options of the targets."""
    folder, names = CONF_DIR / group, group_names(group)
    trees = {name: yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8")) or {} for name in names}
    yield f"### `{group}=`\n"
    yield _table(
        (f"{group}=", "what", "sets"),
        ((f"`{n}`", _about(folder / f"{n}.yaml"), " ".join(f"`{s}`" for s in _settings(trees[n]))) for n in names),
    )
    for path in dict.fromkeys(t for n in names if (t := _whole(trees, n).get("_target_"))):
        files = [n for n in names if _whole(trees, n).get("_target_") == path]
        given = {key for n in files for key in _whole(trees, n)}
        comments = {k: v for n in reversed(files) for k, v in _comments(folder / f"{n}.yaml").items()}
        yield from _options(path, import_path(path, f"({group})"), given, comments, group)


def _options(
    path: str, target: Callable[..., Any], given: set[str], comments: dict[str, str], key: str
) -> Iterator[str]:
    described = _described(target) | {name: text for name, text in comments.items() if text}
    parameters = inspect.signature(target).parameters
    rows = [
        (f"`{key}.{name}`", "" if p.default is p.empty else f"`{_yaml(p.default)}`", described.get(name, ""))
        for name, p in parameters.items()
        if name not in SUPPLIED and (path.startswith(OURS) or name in given)
    ]
    if rows:
        yield f"Options of `{path}`; defaults are those of the class where no file sets another:\n"
        yield _table(("option", "default", "meaning"), rows)


def _callbacks() -> Iterator[str]:
    """Slots that are filled, and what else there is to fill one with; masks, critics and rewards are groups."""
    slots = yaml.safe_load((CONF_DIR / "base.yaml").read_text(encoding="utf-8"))["callbacks"]
    filled = {node["_target_"]: slot for slot, node in slots.items()}
    yield (
        "Named slots: `callbacks.NAME=null` empties one, `callbacks.NAME._target_=my_pkg.MyCallback` fills one. "
        "How to write one: [callbacks](callbacks.md).\n"
    )
    of_groups = _group_targets()
    rows, options = [], []
    for path, target in _callback_classes():
        if path in of_groups:
            continue
        slot = filled.get(path)
        name = slot or re.sub(r"(?<!^)(?=[A-Z])", "_", target.__name__).lower()
        rows.append((f"`callbacks.{name}`", f"`{path}`", "yes" if slot else "", _about_module(target)))
        options += _options(path, target, set(), {}, f"callbacks.{name}")
    yield _table(("slot", "target", "filled in `base`", "what"), rows)
    yield from options


def _group_targets() -> set[str]:
    files = [file for group in GROUPS for file in sorted((CONF_DIR / group).glob("*.yaml"))]
    return {
        target for file in files for target in re.findall(r"^_target_: (\S+)", file.read_text(encoding="utf-8"), re.M)
    }


def _callback_classes() -> Iterator[tuple[str, type[L.Callback]]]:
    """Public callbacks that are neither masks nor critics."""
    for name in sorted(callbacks.MODULES):
        value = getattr(callbacks, name)
        if issubclass(value, L.Callback) and not issubclass(value, (callbacks.ChunkMask, callbacks.Critic)):
            yield f"callbacks.{name}", value


def _about(path: Path) -> str:
    """The comment a file begins with."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def _comments(path: Path) -> dict[str, str]:
    """Comments behind the options of a group's file."""
    found = re.findall(r"^(\w+):.*?\s# (.*)$", path.read_text(encoding="utf-8"), re.M)
    return dict(found)


def _settings(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{prefix}{key}.")
        elif key != "_target_":
            yield f"{prefix}{key}: {_yaml(value)}"


def _yaml(value: Any) -> str:
    """As a value is written in a conf."""
    value = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _whole(trees: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """A group's file over those it extends."""
    tree = dict(trees[name])
    base = tree.pop("extends", None)
    return merge(_whole(trees, base), tree) if base else tree


def _described(target: Callable[..., Any]) -> dict[str, str]:
    """What the docstring's `Args:` say of each option; of classes, their bases' too."""
    documents = [inspect.getdoc(c) for c in reversed(inspect.getmro(target))] if inspect.isclass(target) else []
    found: dict[str, str] = {}
    for document in documents or [inspect.getdoc(target)]:
        section = re.search(r"^Args:\n((?: +.*\n?)+)", document or "", re.M)
        if section:
            text = re.sub(r"\n {5,}", " ", section[1])  # continued lines
            for names, meaning in re.findall(r"^ +(\w+(?:, ?\w+)*): (.*)$", text, re.M):
                found |= dict.fromkeys(re.split(r", ?", names), meaning)
    return found


def _about_module(target: type) -> str:
    return " ".join(inspect.getdoc(sys.modules[target.__module__]).split("\n\n")[0].split())


def _plain(text: str) -> str:
    """Text without what tables and HTML would take for their own; code stays as it is."""
    parts = re.split(r"(`.*?`)", text)
    escaped = [part if part.startswith("`") else part.replace("<", "&lt;").replace("|", "\\|") for part in parts]
    return "".join(escaped)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    cells = [[_plain(cell) for cell in row] for row in rows]
    lines = [" | ".join(head), "|".join(["---"] * len(head)), *(" | ".join(row) for row in cells)]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit("error: this tool takes no arguments")
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
