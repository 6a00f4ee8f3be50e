"""The flat names of the two packages: what they are, what a type checker sees, and what importing them costs."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import callbacks
import vla_rl
from tests.helpers.tiny_fit import ROOT

PACKAGES = [vla_rl, callbacks]


def run(script: str, **environment: str) -> str:
    base = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", script]
    return subprocess.run(
        command, cwd=ROOT, env=base | environment, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_is_what_its_module_defines(package):
    for name, module in package.MODULES.items():
        value = getattr(package, name)
        assert value is getattr(importlib.import_module(module), name)
        assert (value.__module__, value.__qualname__) == (module, name)
    assert set(package.MODULES) <= set(package.__all__) & set(dir(package))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_type_checker_sees_the_same_names(package):
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {alias.asname: line.module for line in block.body for alias in line.names if alias.asname == alias.name}
    assert seen == package.MODULES
    assert (Path(package.__file__).parent / "py.typed").exists()


def test_every_public_callback_has_a_flat_name():
    defined = set()
    for path in (ROOT / "callbacks").rglob("*.py"):
        module = importlib.import_module(
            ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        )
        own = (v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__)
        defined |= {v.__name__ for v in own if any(base.__name__ == "Callback" for base in v.__mro__)}
    assert defined - {"LightningCheckpoint"} <= set(callbacks.MODULES)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="^module 'callbacks' has no attribute 'PCN'$"):
        callbacks.PCN  # noqa: B018


def test_importing_the_packages_imports_neither_torch_nor_lightning():
    script = "import vla_rl, callbacks, sys; print(sorted({'torch', 'lightning', 'numpy'} & set(sys.modules)))"
    assert run(script) == "[]"


def test_the_version_is_that_of_the_installed_package():
    assert vla_rl.__version__.count(".") == 2


@pytest.mark.parametrize(
    ("given", "set_to"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_spin_briefly_unless_the_user_chose(given, set_to):
    assert run("import vla_rl, os; print(os.environ.get('GOMP_SPINCOUNT'))", **given) == set_to
