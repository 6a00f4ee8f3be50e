"""What the documentation tells people to type: found in its fenced blocks, and run up to the point where work begins.

A command is good if the program itself takes it: its config composes and has options that exist, or argparse parses.
"""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import vla_rl.config.compose
from vla_rl.config import arguments as arguments_of
from vla_rl.config.instantiate import check
from vla_rl.config.schema import Config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
IMAGE = "vla_rl"  # name of the image in the docs
CODE = ("python", "text", "yaml", "json", "diff")  # languages of blocks that hold no commands


@dataclass(frozen=True)
class Command:
    page: str
    text: str
    comment: str  # behind it, or above it in its block; in running text the paragraph

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def commands(pages: list[Path] = PAGES) -> Iterator[Command]:
    """Every line of every fenced block that is not labelled as something else, and what stands in running text."""
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
    for page in pages:
        for language, block in fence.findall(page.read_text()):
            if language not in CODE:
                yield from _of_block(page.name, block.replace("\\\n", " "))
        for paragraph in fence.sub("", page.read_text()).split("\n\n"):
            for text in re.findall(r"`((?:python (?:-m \w+\.\w+|tools/\w+\.py)|make fit) [^`]+)`", paragraph):
                yield Command(page.name, " ".join(text.split()), comment=paragraph)


def _of_block(page: str, block: str) -> Iterator[Command]:
    above = ""
    for line in block.splitlines():
        text, _, comment = line.partition("#")
        if text.strip():
            yield Command(page, " ".join(text.split()), comment.strip() or above)
        elif comment:
            above = comment.strip()


class Understood(BaseException):
    """The program has taken its arguments; nothing is left but to do it."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config


def understood(command: Command, monkeypatch: pytest.MonkeyPatch) -> Config | None:
    """Have the program read the command; what it composed, if it composes.

    Raises:
        AssertionError: it refuses the command, or there is no such program.
    """
    program, *arguments = shlex.split(command.text)
    if program == "make":
        (target, *rest) = arguments
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), f"{command}: no such target"
        overrides = [a for one in rest for a in shlex.split(one.removeprefix("ARGS="))]
        return _run(command, "-m", ["vla_rl.fit", "conf=pcm_object_tiny", *overrides], monkeypatch) if rest else None
    if program == "tensorboard":
        assert arguments == ["--logdir", "runs"], command
        return None
    if program == "docker":
        assert "GPU" in command.comment, f"{command}: mark it as needing a GPU"
        return _docker(command, arguments, monkeypatch)
    if program == "torchrun":
        return _run(command, "-m", arguments[arguments.index("-m") + 1 :], monkeypatch)
    if program.endswith(".sh"):
        assert (ROOT / program).is_file(), f"{command}: no such file"
        return _run(command, "-m", ["vla_rl.fit", *arguments], monkeypatch)
    assert program == "python", f"{command}: unknown command (label a block that holds none: ```text)"
    if arguments[:2] == ["-m", "mkdocs"]:
        assert arguments[2] in ("serve", "build"), command
        return None
    first, rest = (arguments[0], arguments[1:]) if arguments[0] == "-m" else ("", arguments)
    return _run(command, first, rest, monkeypatch)


def _run(command: Command, how: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> Config | None:
    compose, parse = vla_rl.config.compose.compose, argparse.ArgumentParser.parse_args
    only_options = vla_rl.config.compose.only_options

    def composed(argv: list[str]) -> Config:
        config = compose(argv)
        check(config)
        raise Understood(config)

    def parsed(self: argparse.ArgumentParser, args=None, namespace=None):
        parse(self, args, namespace)
        raise Understood

    def understood_options(schema: type, argv: list[str]):
        only_options(schema, argv)
        raise Understood

    def understood_after(read):
        def understand(argv: list[str]):
            read(argv)
            raise Understood

        def understand_config(argv: list[str]):
            config = next((part for part in read(argv) if isinstance(part, Config)), None)
            if config:
                check(config)
            raise Understood(config)

        return understand if read is arguments_of.compare_arguments else understand_config

    with monkeypatch.context() as patched:
        for name in ("compare", "evaluate", "serve", "record"):
            path = f"{name}_arguments"
            patched.setattr(arguments_of, path, understood_after(getattr(arguments_of, path)))
        patched.setattr("vla_rl.config.compose.compose", composed)
        patched.setattr("vla_rl.config.supervised.compose", composed)  # of a sweep's first run, too
        patched.setattr("vla_rl.config.compose.only_options", understood_options)
        patched.setattr(argparse.ArgumentParser, "parse_args", parsed)
        patched.setattr("sys.argv", arguments)
        patched.chdir(ROOT)
        try:
            if how == "-m":
                runpy.run_module(arguments[0], run_name="__main__")
            else:
                assert (ROOT / arguments[0]).is_file(), f"{command}: no such file"
                runpy.run_path(arguments[0], run_name="__main__")
        except Understood as e:
            return e.config
        except SystemExit as e:
            assert not e.code, f"{command}: refused"
            assert {"-h", "--help"} & set(arguments), f"{command}: it ended without reading its arguments"
            return None
    raise AssertionError(f"{command}: it never read its arguments")


def _docker(command: Command, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> Config | None:
    """`docker run ... vla_rl MODULE ...` runs the module: the image's entry is `python -m`."""
    assert (ROOT / "Dockerfile").is_file()
    if arguments[0] == "build":
        assert arguments == ["build", "-t", IMAGE, "."], command
        return None
    assert arguments[0] == "run" and IMAGE in arguments, command
    return _run(command, "-m", arguments[arguments.index(IMAGE) + 1 :], monkeypatch)
