"""The container, the workflow and the package's metadata, read: what they name has to exist, and agree."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from fnmatch import fnmatch
from importlib.metadata import distributions

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.helpers.docs_commands import ROOT

INSTRUCTIONS = {"FROM", "ENV", "RUN", "WORKDIR", "COPY", "ENTRYPOINT", "CMD"}


@pytest.fixture
def dockerfile() -> list[tuple[str, str]]:
    """Instructions and their arguments, comments gone and continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def test_the_dockerfile_has_known_instructions_and_begins_with_a_pinned_python(dockerfile):
    assert {name for name, _ in dockerfile} == INSTRUCTIONS
    assert [name for name, _ in dockerfile].index("FROM") == 0
    (version,) = re.fullmatch(r"python:(3\.\d+)-slim-\w+", dockerfile[0][1]).groups()
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert needed == f">={version}"


def test_what_it_copies_exists_and_is_not_ignored(dockerfile):
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [words[:-1] for name, text in dockerfile if name == "COPY" for words in [shlex.split(text)]]
    assert copied
    for source in sum(copied, []):
        assert (ROOT / source).exists(), source
        assert any(source == k or fnmatch(source, f"{k}/*") for k in kept), f"{source} is not in the build's context"


def test_what_the_setup_reads_is_copied_before_it(dockerfile):
    names = [(name, text) for name, text in dockerfile]
    setup = names.index(("RUN", "make setup"))
    before = " ".join(text for name, text in names[:setup] if name == "COPY")
    prerequisites = re.search(r"^\$\(VENV\)/\.ready: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    metadata = project["project"]
    files = [*prerequisites, metadata["readme"], *metadata["license-files"]]
    for needed in [*files, *wheel["packages"], *wheel["force-include"]]:
        assert needed in before, f"{needed} is copied too late"


def test_packages_and_code_of_the_wheel_are_in_the_image(dockerfile):
    after = [text.split()[0] for name, text in dockerfile if name == "COPY"]
    for folder in ("vla_rl", "callbacks", "conf", "tools"):
        assert folder in after


def test_the_container_starts_a_module(dockerfile):
    given = dict(dockerfile)
    venv = re.search(r"^VENV := (\S+)$", (ROOT / "Makefile").read_text(), re.M)[1]
    assert json.loads(given["ENTRYPOINT"]) == [f"{venv}/bin/python", "-m"]
    assert json.loads(given["CMD"]) == ["vla_rl.fit", "--help"]
    assert "graphics" in given["ENV"]
    assert "compute" in given["ENV"]


def test_the_vendor_file_of_egl_is_json(dockerfile):
    (command,) = [text for name, text in dockerfile if "egl_vendor" in text]
    (vendor,) = [word for word in shlex.split(command) if word.startswith("{")]
    assert json.loads(vendor)["ICD"]["library_path"] == "libEGL_nvidia.so.0"


@pytest.fixture
def workflow() -> dict:
    return yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())


def commands(job: dict) -> str:
    assert all("uses" in step or "run" in step for step in job["steps"])
    return "\n".join(step.get("run", "") for step in job["steps"])


def test_the_workflow_runs_what_the_checks_run(workflow):
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML reads `on` as true
    assert set(workflow["jobs"]) == {"checks", "wheel", "docs"}
    assert ".ci/run" in commands(workflow["jobs"]["checks"])
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    packages = re.search(r'^packages="(.*)"$', (ROOT / "tools" / "setup.sh").read_text(), re.M)[1]
    assert workflow["env"]["SOFTWARE_GL"] == packages, "the runner is not root: set-up cannot install these itself"
    for job in workflow["jobs"].values():
        assert "install -y --no-install-recommends $SOFTWARE_GL" in commands(job)


def test_the_workflow_tests_the_python_versions_that_the_package_names(workflow):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tested = workflow["jobs"]["checks"]["strategy"]["matrix"]["python"]
    assert project["requires-python"] == f">={tested[0]}"
    named = [found[1] for c in project["classifiers"] if (found := re.search(r"Python :: (3\.\d+)$", c))]
    assert named == tested


def test_the_workflow_uses_the_wheel_in_an_empty_folder(workflow):
    steps = commands(workflow["jobs"]["wheel"])
    (script,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert (
        steps.index("-m build --wheel")
        < steps.index("-m venv")
        < steps.index("mkdir")
        < steps.index(f'/bin/{script}" --help')
    )


def test_make_test_fails_when_lint_or_a_test_fails():
    """`make -n` prints what it would run, in order; make stops at the first that fails. Wrong types and documentation
    that does not build fail tests (tests/integration/project)."""
    printed = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = printed.splitlines()
    wanted = ("ruff check .", "ruff format --check", "-m pytest")
    found = [next(n for n, line in enumerate(lines) if part in line) for part in wanted]
    assert found == sorted(found)
    assert not any(re.search(r"\|\||;", lines[n]) for n in found)
    assert "\n\t-" not in (ROOT / "Makefile").read_text()  # such a line's failure would be ignored


def test_dependencies_are_bounds_and_the_constraints_are_exact():
    """Other versions of the simulator give other results, so they alone are exact in the wheel's metadata."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    for requirement in map(Requirement, [*project["dependencies"], *extras]):
        if requirement.name != project["name"]:
            pinned = pins[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(pinned), f"{requirement} refuses the pinned {pinned}"
    exact = {r.name for r in map(Requirement, project["dependencies"]) if "==" in str(r.specifier)}
    assert exact == {"mujoco", "robosuite", "bddl"}


def test_what_is_pinned_installs_with_debians_python():
    """Debian 12 has Python 3.11.2, and pip refuses a pin that asks for a later one."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    needed = {d.name: d.metadata["Requires-Python"] for d in distributions() if d.name in pins}
    assert len(needed) > 100
    assert {name: python for name, python in needed.items() if not SpecifierSet(python or "").contains("3.11.2")} == {}


def test_version_and_licence_are_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (version, date), *_ = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert project["version"] == citation["version"] == version
    assert str(citation["date-released"]) == date
    assert project["license"] == citation["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n")


def test_the_issue_forms_have_what_the_platform_asks_for():
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert [form.name for form in forms] == ["bug.yml", "config.yml", "feature.yml"]
    for form in forms:
        content = yaml.safe_load(form.read_text())
        if form.name != "config.yml":
            assert content["name"]
            assert content["description"]
            ids = [part["id"] for part in content["body"]]
            assert len(set(ids)) == len(ids) >= 3
            assert all(
                part["type"] in ("textarea", "checkboxes") and part["attributes"]["label"] for part in content["body"]
            )
