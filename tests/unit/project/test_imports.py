"""Imports go up only: a package may import those below it. Read from the sources; nothing is imported."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[3]
# From the ground up. What stands on one floor does not know what else stands there, except where NEIGHBOURS says so.
FLOORS = (
    ("vla_rl.types", "vla_rl.errors", "vla_rl.lazy", "vla_rl.machine", "vla_rl.checkpoints", "vla_rl.files"),
    ("vla_rl.functional", "vla_rl.distributed", "vla_rl.config", "vla_rl.demos", "vla_rl.checks"),
    ("vla_rl.rollout", "vla_rl.policy", "vla_rl.sim", "vla_rl.run"),
    ("vla_rl.training", "vla_rl.figures", "vla_rl.doctor_checks"),
    ("vla_rl.evaluation", "vla_rl.serving"),
    (
        "vla_rl.fit",
        "vla_rl.sft",
        "vla_rl.evaluate",
        "vla_rl.doctor",
        "vla_rl.compare",
        "vla_rl.export",
        "vla_rl.record",
        "vla_rl.serve",
    ),
    ("callbacks",),
    ("tools",),
)
NEIGHBOURS = {  # importer -> what it may import on its own floor
    "vla_rl.types": {"vla_rl.errors"},
    "vla_rl.checkpoints": {"vla_rl.errors"},
    "vla_rl.files": {"vla_rl.errors"},
    "vla_rl.config": {"vla_rl.checks"},
    "vla_rl.demos": {"vla_rl.distributed", "vla_rl.checks"},
    "vla_rl.training": set(),
}
OWNERS = {  # library -> the only package that may import it
    **dict.fromkeys(("transformers", "peft", "timm", "tokenizers"), "vla_rl/policy"),
    **dict.fromkeys(("libero", "robosuite", "mujoco", "bddl"), "vla_rl/sim"),
}


@cache
def imports(path):
    """Dotted names of all modules the file imports, inside functions as well."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from vla_rl import policy` names a module too
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def sources():
    found = [path for folder in ("vla_rl", "callbacks", "tools") for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(found) > 100
    return found


def room(name):
    """The entry of FLOORS that a module or dotted name lies in; None for other libraries."""
    rooms = [entry for floor in FLOORS for entry in floor]
    return next((entry for entry in rooms if name == entry or name.startswith(entry + ".")), None)


def module(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_every_file_lies_in_a_room_of_the_plan():
    strangers = [str(path.relative_to(ROOT)) for path in sources() if room(module(path)) is None]
    assert strangers == ["vla_rl/__init__.py"]


def test_imports_go_up_only():
    floor = {entry: number for number, entries in enumerate(FLOORS) for entry in entries}
    wrong = set()
    for path in sources():
        own = room(module(path))
        for other in {room(name) for name in imports(path)} - {None, own}:
            if own and floor[other] >= floor[own] and other not in NEIGHBOURS.get(own, ()):
                wrong.add(f"{path.relative_to(ROOT)} imports {other}")
    assert wrong == set()


def test_what_worlds_share_knows_no_world():
    shared = sorted((ROOT / "vla_rl" / "sim").glob("*.py"))
    worlds = tuple(f"vla_rl.sim.{folder.parent.name}" for folder in (ROOT / "vla_rl" / "sim").glob("*/__init__.py"))
    assert len(shared) > 5
    assert "vla_rl.sim.libero" in worlds
    assert {str(path) for path in shared if any(name.startswith(worlds) for name in imports(path))} == set()


def test_libraries_have_owners():
    for library, owner in OWNERS.items():
        users = {
            str(path.relative_to(ROOT))
            for path in sources()
            if any(name == library or name.startswith(library + ".") for name in imports(path))
        }
        assert {user for user in users if not user.startswith((owner + "/", "tools/"))} == set()
    assert any("mujoco" in imports(path) for path in sources()), "the walk finds nothing"


def test_types_import_torch_and_the_standard_library_alone():
    names = {name for path in (ROOT / "vla_rl" / "types").glob("*.py") for name in imports(path)}
    ours = {name for name in names if name.startswith("vla_rl")}
    assert {name for name in ours if not name.startswith("vla_rl.types.")} == set()
    libraries = {name.split(".")[0] for name in names - ours}
    assert libraries == {"__future__", "collections", "dataclasses", "typing", "torch"}


def test_maths_know_types_and_torch_alone():
    allowed = {"__future__", "collections", "math", "torch", "typing", "numpy", "scipy", "dataclasses", "vla_rl"}
    for path in (ROOT / "vla_rl" / "functional").glob("*.py"):
        used = imports(path)
        ours = {n for n in used if n.startswith("vla_rl")}
        assert {n for n in ours if not n.startswith(("vla_rl.types", "vla_rl.functional"))} == set(), path
        assert {n.split(".")[0] for n in used} <= allowed, path
