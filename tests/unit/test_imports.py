"""Imports go one way: types <- maths <- data, module, callbacks. Read from the sources; nothing is imported."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
MATHS = ("grpo", "phases", "rewards")  # pure functions: tensors in, tensors out


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


def importers(module, folders=("vla_rl", "callbacks")):
    """Sources, relative to the root, that import `module` or something inside it."""
    sources = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert sources
    return {
        str(path.relative_to(ROOT))
        for path in sources
        if any(name == module or name.startswith(module + ".") for name in imports(path))
    }


def outside(folder, sources):
    return {source for source in sources if not source.startswith(folder + "/")}


def test_only_policy_imports_the_model_libraries():
    assert importers("transformers") | importers("peft"), "the walk finds nothing"
    for library in ("transformers", "peft", "timm"):
        assert outside("vla_rl/policy", importers(library)) == set()


def test_only_sim_imports_the_simulator():
    assert importers("mujoco") | importers("robosuite") | importers("libero"), "the walk finds nothing"
    for library in ("libero", "robosuite", "mujoco", "bddl"):
        assert outside("vla_rl/sim", importers(library)) == set()


def test_vla_rl_never_imports_callbacks():
    assert importers("callbacks", folders=["callbacks"])
    assert importers("callbacks", folders=["vla_rl"]) == set()


def test_types_import_torch_and_the_standard_library_alone():
    names = {name.split(".")[0] for name in imports(ROOT / "vla_rl" / "types.py")}
    assert names == {"__future__", "collections", "dataclasses", "typing", "torch"}


def test_maths_know_types_and_torch_alone():
    for name in MATHS:
        path = ROOT / "vla_rl" / f"{name}.py"
        used = imports(path)
        assert {n for n in used if n.startswith("vla_rl") and not n.startswith("vla_rl.types")} == set()
        assert {n.split(".")[0] for n in used} <= {"__future__", "collections", "math", "torch", "typing", "vla_rl"}


def test_policy_and_sim_are_reached_through_protocols():
    """What trains does not know what it trains, nor in what it acts."""
    for name in ("data", "module", "rollouts", "evaluation", "distributed", *MATHS):
        path = ROOT / "vla_rl" / f"{name}.py"
        assert not {n for n in imports(path) if n.startswith(("vla_rl.policy", "vla_rl.sim"))}, path
