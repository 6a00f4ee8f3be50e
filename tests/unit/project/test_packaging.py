"""The container and the workflow, read: neither can be run here, but what they name has to exist."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from fnmatch import fnmatch

import pytest
import yaml

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
    for needed in [*prerequisites, project["project"]["readme"], *wheel["packages"], *wheel["force-include"]]:
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
    assert "graphics" in given["ENV"] and "compute" in given["ENV"]


def test_the_vendor_file_of_egl_is_json(dockerfile):
    (command,) = [text for name, text in dockerfile if "egl_vendor" in text]
    (vendor,) = [word for word in shlex.split(command) if word.startswith("{")]
    assert json.loads(vendor)["ICD"]["library_path"] == "libEGL_nvidia.so.0"


def test_the_workflow_runs_what_the_checks_run():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML reads `on` as true
    (job,) = workflow["jobs"].values()
    steps = [step.get("run", "") for step in job["steps"]]
    assert ".ci/run" in steps and (ROOT / ".ci" / "run").stat().st_mode & 0o111
    assert all("uses" in step or "run" in step for step in job["steps"])
    packages = re.search(r'^packages="(.*)"$', (ROOT / "tools" / "setup.sh").read_text(), re.M)[1]
    assert any(packages in run for run in steps), "the runner is not root: set-up cannot install these itself"
    (python,) = [step["with"]["python-version"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"] == f">={python}"
