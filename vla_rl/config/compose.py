"""`compose(argv)`: from `conf=pcm_object mask=random mask.budget=8` to a checked `Config`.

Layers, later over earlier: the schema's defaults, the files a conf extends (base first), the conf, then the command
line: swaps of whole groups (`mask=random`) first, single values after them, whatever their order in argv.

- `extends: base` in a file names another conf, or a .yaml relative to the file.
- `mask: pcm` loads conf/mask/pcm.yaml in place of the node; `mask: {extends: pcm, budget: 6}` loads and changes it.
  An empty group file is a null node.
- A new `_target_` replaces a node: the old target's options would mean nothing to the new one. Paths of version 0.1 are
  read as today's (`aliases`).
- A value that starts with `???` must be given by the user, who is shown what follows the `???`.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vla_rl.config.acts import check_acts
from vla_rl.config.aliases import translate, without_gone
from vla_rl.config.convert import to_dataclass
from vla_rl.config.schema import GROUPS, SUPERVISED, Config
from vla_rl.config.validate import validate
from vla_rl.errors import UserError, closest, did_you_mean, first_line

_PACKAGE = Path(__file__).parents[1]
# inside a wheel conf/ lies in the package, in a source tree beside it
CONF_DIR = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"

Tree = dict[str, Any]
T = TypeVar("T")


def compose(argv: list[str]) -> Config:
    """The configuration that command-line arguments ask for.

    Args:
        argv: `key=value` each; `conf=` (a name in conf/, or a path to a .yaml) is required.

    Raises:
        UserError: an unknown name or key, a wrong type, a missing or contradictory value; one line with the fix.

    Example:
        >>> compose(["conf=pcm_object_tiny", "mask.budget=8"]).mask["budget"]
        8
    """
    arguments = [_parse(argument) for argument in argv]
    confs = [str(value) for key, value in arguments if key == "conf"]
    if not confs:
        raise UserError(f"no conf given, for example conf=pcm_object_tiny. Confs: {', '.join(conf_names())}")
    if len(confs) > 1:
        raise UserError(f"one conf can be given, got {', '.join(confs)}: conf={confs[-1]}")
    path = _conf_path(confs[0])
    tree = merge(asdict(Config()), {"conf": path.stem} | _load_conf(path, below=[]))
    tree = _apply(tree, [(key, value) for key, value in arguments if key != "conf"])
    given = given_keys(argv)
    tree = without_gone(_resolve(tree), given)
    _require_given(tree, "")
    config = to_dataclass(Config, tree)
    validate(config)
    check_acts(config, given)
    return config


def own_options(schema: type[T], argv: list[str]) -> tuple[T, list[str]]:
    """A command's own options, and the arguments that are left for `compose`.

    Args:
        schema: dataclass of the options; `checkpoint=...` or `videos.first=...` belong to it if it has such a field.

    Raises:
        UserError: an argument that is no key=value, an unknown name inside an option, or a wrong type.
    """
    own, conf = ({f.name for f in fields(cast(Any, of))} for of in (schema, Config))
    tree: Tree = {}
    rest: list[str] = []
    for argument in argv:
        key, value = _parse(argument)
        name = key.partition(".")[0]
        if name not in own:
            if name not in conf and closest(name, own | conf) in own:
                raise UserError(f"unknown key '{name}'{did_you_mean(name, own)}")
            rest.append(argument)
            continue
        for part in reversed(key.split(".")):
            value = {part: value}
        tree = merge(tree, value)
    return to_dataclass(schema, tree), rest


def only_options(schema: type[T], argv: list[str]) -> T:
    """The options of a command that takes no conf.

    Raises:
        UserError: an argument that is no key=value, an unknown name, or a wrong type.
    """
    options, rest = own_options(schema, argv)
    if rest:
        name, own = rest[0].partition("=")[0], [f.name for f in fields(cast(Any, schema))]
        raise UserError(f"unknown key '{name}'{did_you_mean(name, own)} Keys: {', '.join(own)}")
    return options


def with_conf(argv: list[str], conf: str = "pcm_object_tiny") -> list[str]:
    """The arguments, led by `conf` where they name none; the default is for commands that only load a policy."""
    return argv if any(argument.startswith("conf=") for argument in argv) else [f"conf={conf}", *argv]


def given_keys(argv: list[str]) -> list[str]:
    """The keys that arguments give a value to: `rollout={groups: 2}` gives `rollout.groups`."""
    return [found for argument in argv for found in _keys(*_parse(argument))]


def conf_keys(argv: list[str]) -> list[str]:
    """The keys that the conf of these arguments gives a value to, itself or by what it extends."""
    conf = next(value for key, value in map(_parse, argv) if key == "conf")
    return [found for item in _load_conf(_conf_path(str(conf)), below=[]).items() for found in _keys(*item)]


def is_inside(key: str, of: str) -> bool:
    """Whether `key` is `of`, or an entry of the section or node `of`."""
    return f"{key}.".startswith(f"{of}.")


def _keys(key: str, value: Any) -> list[str]:
    if not isinstance(value, dict) or not value:
        return [key]
    return [found for name, inner in value.items() for found in _keys(f"{key}.{name}", inner)]


def save_resolved(config: Config, path: Path) -> None:
    """Write the configuration as a .yaml that `conf=<path>` reads back to an equal one."""
    path.write_text(to_yaml(config), encoding="utf-8")


def to_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(recorded(config)))


def recorded(config: Config) -> Tree:
    """What is written down of a config: in supervised training (it has `sft.demos`) only what that uses."""
    return {key: value for key, value in asdict(config).items() if config.sft.demos is None or key in SUPERVISED}


def conf_names() -> list[str]:
    """What `conf=` can name."""
    return _stems(CONF_DIR)


def group_names(group: str) -> list[str]:
    """What `<group>=` can name."""
    return _stems(CONF_DIR / group)


def merge(under: Tree, over: Tree) -> Tree:
    """`over` on top of `under`, section by section; a node with another `_target_` replaces the node below it."""
    merged = dict(under)
    for key, value in over.items():
        below = under.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            target = below.get("_target_")
            value = merge(below, value) if value.get("_target_", target) == target else value
        merged[key] = value
    return merged


def _stems(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _parse(argument: str) -> tuple[str, Any]:
    """`mask.budget=8` -> ("mask.budget", 8); values are YAML."""
    key, equals, text = argument.partition("=")
    if not key or not equals or not all(key.split(".")):
        raise UserError(f"expected key=value, got '{argument}' (for example mask.budget=8)")
    try:
        parsed = cast(Tree, OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"])))
        return key, _todays(parsed["value"])
    except yaml.YAMLError as e:
        raise UserError(f"{argument}: the value is not valid YAML ({first_line(e)}); quote a value with spaces") from e


def _conf_path(name: str, extended_by: Path | None = None) -> Path:
    """A packaged conf by its name, or a file by its path, which may be relative to the file that extends it."""
    who = f", which {extended_by} extends" if extended_by else ""
    if name.endswith((".yaml", ".yml")):
        path = extended_by.parent / name if extended_by else Path(name)
        if not path.is_file():
            raise UserError(f"no file '{path}'{who} (conf=path/to/file.yaml, or one of {', '.join(conf_names())})")
        return path
    if name not in conf_names():
        names = conf_names()
        raise UserError(f"no conf named '{name}'{who}{did_you_mean(name, names)} Confs: {', '.join(names)}")
    return CONF_DIR / f"{name}.yaml"


def _load_conf(path: Path, below: list[Path]) -> Tree:
    """The file over everything it extends. `below`: the files that led here, to notice a circle."""
    if path in below:
        raise UserError(f"confs extend each other in a circle: {' -> '.join(p.stem for p in [*below, path])}")
    tree = _read(path)
    base = tree.pop("extends", None)
    under = _load_conf(_conf_path(str(base), extended_by=path), [*below, path]) if base is not None else {}
    for group in GROUPS:
        value = tree.get(group)
        if isinstance(value, str) or (isinstance(value, dict) and "extends" in value):
            tree[group] = _group_node(group, value)
            under.pop(group, None)  # a named group replaces the node, options included
    return merge(under, tree)


def _group_node(group: str, value: str | Tree) -> Tree | None:
    """The node of `mask: pcm`, or of `mask: {extends: pcm, budget: 6}`; group files may extend each other too."""
    changes = dict(value) if isinstance(value, dict) else {"extends": value}
    if "extends" not in changes:
        return changes
    name = str(changes.pop("extends"))
    names = group_names(group)
    if name not in names:
        raise UserError(
            f"no {group} named '{name}'{did_you_mean(name, names)} "
            f"Choices: {', '.join(names)} ({group}={closest(name, names) or names[0]})"
        )
    content = _read(CONF_DIR / group / f"{name}.yaml")
    node = _group_node(group, content) if content else None
    return merge(node or {}, changes) if changes else node


def _read(path: Path) -> Tree:
    try:
        tree = _loaded(path.read_text(encoding="utf-8"))
    except Exception as e:  # what looks like a number and is none raises whatever Python does
        raise UserError(f"{path} is not valid YAML: {first_line(e)}") from e
    if tree is None:
        raise UserError(f"{path} must hold 'key: value' lines")
    return _todays(tree)


@cache
def _loaded(text: str) -> Any:
    """A file's content, None if it is no mapping; kept, as the runs of a sweep extend the same files."""
    loaded = OmegaConf.load(StringIO(text))
    return OmegaConf.to_container(loaded, resolve=False) if isinstance(loaded, DictConfig) else None


def _apply(tree: Tree, arguments: list[tuple[str, Any]]) -> Tree:
    """The command line: group swaps, then new targets, then single values."""
    swaps = [(key, value) for key, value in arguments if key in GROUPS and (value is None or isinstance(value, str))]
    values = [argument for argument in arguments if argument not in swaps]
    for group, name in swaps:
        tree = tree | {group: None if name is None else _group_node(group, name)}
    for key, value in sorted(values, key=lambda argument: not argument[0].endswith("._target_")):
        for part in reversed(key.split(".")):
            value = {part: value}
        tree = merge(tree, value)
    return tree


def _resolve(tree: Tree) -> Tree:
    """Fill in `${...}` references."""
    if not _refers(tree):
        return tree  # most of them: OmegaConf needs 15 ms to find out
    try:
        return cast(Tree, OmegaConf.to_container(OmegaConf.create(tree), resolve=True))
    except OmegaConfBaseException as e:
        raise UserError(f"{getattr(e, 'full_key', None) or 'config'}: {first_line(e)}") from e


def _refers(tree: Any) -> bool:
    if isinstance(tree, dict):
        return any(map(_refers, tree.values()))
    if isinstance(tree, list):
        return any(map(_refers, tree))
    return isinstance(tree, str) and "${" in tree


def _require_given(value: Any, key: str) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            _require_given(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, str) and value.startswith("???"):
        raise UserError(f"missing required value: {key}{value.removeprefix('???')}")


def _todays(tree: Any) -> Any:
    """The tree with today's paths of classes, and the user's home folder in place of `~/`."""
    return _expand_home(translate(tree))


def _expand_home(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _expand_home(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_expand_home(value) for value in tree]
    return str(Path(tree).expanduser()) if isinstance(tree, str) and tree.startswith("~/") else tree
