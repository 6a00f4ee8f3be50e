"""The pages themselves: generated where they say so, and a site that builds."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.helpers.docs_commands import PAGES, ROOT
from tools import config_reference, site_hooks


def test_the_configuration_reference_is_up_to_date():
    assert config_reference.PAGE.read_text() == config_reference.page(), "run: python tools/config_reference.py"


def test_the_reference_has_every_kind_of_entry():
    page = config_reference.page()
    for row in (
        "| `pcm_object_tiny` | Probabilistic chunk masking with a small policy",  # a conf
        "| `rollout.train_init_states` | `[0, 40]` | tuple[int, int] | half-open range that training draws from |",
        "| `pcm_paper_literal` | PCM with every choice as the paper's text",  # a group's file
        "| `mask.floor` | `0.1` | least keep probability of a phase, relative to the highest |",  # from the file
        "| `sim.timeout_s` | `120.0` | an answer that takes longer",  # from the docstring alone
        "| `callbacks.trace` | `callbacks.Trace` |  |",  # a slot that is not filled
    ):
        assert row in page
    assert "| `trainer.max_epochs`" not in page  # the program sets it


def test_every_option_has_a_meaning():
    rows = re.findall(r"^\| `((?:policy|sim|mask)\.\w+)` \| .*? \| (.*) \|$", config_reference.page(), re.M)
    assert len(rows) > 20 and [name for name, meaning in rows if not meaning] == []


def test_a_section_of_the_readme_is_taken_over():
    page = site_hooks.on_page_markdown("before\n<!-- README: Metrics -->\nafter")
    assert page.startswith("before\n") and page.endswith("\nafter")
    assert "| `rollout/success` |" in page and "](docs/" not in page and "## Results" not in page
    with pytest.raises(ValueError, match="no section 'Mertics'"):
        site_hooks.on_page_markdown("<!-- README: Mertics -->")


def test_the_site_builds_without_a_warning(tmp_path):
    """Dead links, dead anchors and pages that the navigation has forgotten are warnings, and warnings are errors."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = {page.stem for page in PAGES if page.stem != "README"}
    assert {path.stem for path in tmp_path.glob("*.html")} == pages | {"404", "search"}
    assert "failure_share" in (tmp_path / "callbacks.html").read_text()  # the README's mask
