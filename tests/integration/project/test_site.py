"""The documentation as a site: it builds without a warning, has every page and public name, and is whole by itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import callbacks
import vla_rl
from tests.helpers.docs_commands import PAGES, ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site. Dead links, dead anchors, docstrings that cannot be read, pages that the navigation has forgotten
    and assets of other servers are warnings, and warnings are errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


def test_the_site_has_every_page(site):
    pages = {page.stem for page in PAGES if page.parent.name == "docs"}
    assert {path.stem for path in site.glob("*.html")} == pages | {"404"}
    assert "failure_share" in (site / "callbacks.html").read_text()  # the README's mask
    assert (site / "search" / "search_index.json").stat().st_size > 100_000


def test_the_site_needs_no_other_server(site):
    assets = [
        url
        for page in site.glob("*.html")
        for url in re.findall(r"<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=\"?([^\" >]+)", page.read_text())
    ]
    assert len(assets) > 50
    assert {url for url in assets if re.match(r"(?:https?:)?//", url)} == set()


def test_the_api_page_has_every_public_name(site):
    page = (site / "api.html").read_text()
    for package in (vla_rl, callbacks):
        for name in package.MODULES:
            assert f'id="{package.__name__}.{name}"' in page, f"docs/api.md lacks ::: {package.__name__}.{name}"


def test_the_api_page_says_what_the_comment_behind_a_field_says(site):
    page = (site / "api.html").read_text()
    assert "collect, then update" in page  # Config.iterations
    assert "what the simulator executes" in page  # ActionChunk.command_NLA
