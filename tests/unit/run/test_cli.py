"""What all verbs share: early answers, the script `vla-rl`, exit codes."""

import os
import subprocess
import sys

import pytest
import yaml

from tests.helpers.tiny_fit import ROOT
from tests.helpers.toy_fit import Fork
from vla_rl.config.compose import compose
from vla_rl.run import cli

TINY = "conf=pcm_object_tiny"
SEEN = "import atexit, sys; atexit.register(lambda: print('heavy:', sorted({'torch', 'lightning'} & set(sys.modules))))"


def test_libraries_print_nothing_of_their_own():
    """peft brings bitsandbytes, which on some CPUs asks for a package that nobody needs."""
    script = "from vla_rl.run.cli import run_entry; run_entry(lambda argv: __import__('peft') and None, '', [])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def run(verb: str, *argv: str, folder=ROOT) -> subprocess.CompletedProcess:
    """The program of a verb; the last line of its output says which heavy packages it has imported."""
    script = f"{SEEN}\nimport runpy\nsys.argv = ['{verb}', *{list(argv)}]\n"
    script += f"runpy.run_module('vla_rl.{verb}', run_name='__main__', alter_sys=True)"
    return subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)


def test_what_the_caller_has_left_is_kept_out(tmp_path):
    def work() -> None:
        os.close(0)
        os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
        cli._make_alone()
        assert os.path.samestat(os.fstat(0), os.stat(os.devnull))
        assert os.environ["MPLBACKEND"] == "agg"

    program = Fork(work, tmp_path)
    assert program.wait() == 0, program.errors


@pytest.mark.parametrize("verb", ["fit", "sft", "evaluate", "doctor"])
def test_help_does_not_wait_for_heavy_imports(verb):
    done = run(verb, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "conf=    base, " in done.stdout
    assert done.stdout.endswith("heavy: []\n")


SUPERVISED = "conf=sft_object_tiny"
ANY, ROLLOUTS = ("fit", "sft", "evaluate", "doctor"), ("fit", "evaluate", "doctor")


@pytest.mark.parametrize(
    ("verb", "argument", "message"),
    [
        (verb, argument, message)
        for verbs, argument, message in (
            (ANY, "itrations=3", "did you mean 'iterations'?"),
            (ANY, "optim.lr=0", "optim.lr=1e-05"),
            (ANY, "callbacks.mine._target_=my_pkgg.Mine", "no module named 'my_pkgg'"),
            (ROLLOUTS, "mask.budgte=3", "PCM has no option 'budgte'; did you mean 'budget'?"),
            (ROLLOUTS, "mask._target_=callbacks.PCN", "module 'callbacks' has no 'PCN'; did you mean 'PCM'?"),
            (["sft"], "callbacks.checkpoint.kep=3", "Checkpoint has no option 'kep'; did you mean 'keep'?"),
            (["sft"], "mask=pcm", "supervised training does not use mask; leave it out: mask=null"),
        )
        for verb in verbs
    ],
)
def test_a_mistake_is_answered_before_heavy_imports(verb, argument, message):
    done = run(verb, SUPERVISED if verb == "sft" else TINY, argument)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == "heavy: []\n"


def test_an_option_of_evaluate_is_checked_as_early():
    done = run("evaluate", TINY, "decoding=gredy")
    assert "decoding must be one of greedy, sampled" in done.stderr
    assert done.stdout == "heavy: []\n"


@pytest.mark.parametrize(
    ("verb", "conf", "argument"),
    [*((verb, TINY, "mask.budget=5") for verb in ROLLOUTS), ("sft", SUPERVISED, "sft.steps=5")],
)
def test_print_config_prints_a_conf_that_gives_the_same_and_runs_nothing(verb, conf, argument, tmp_path):
    done = run(verb, conf, "--print-config", argument)
    assert (done.returncode, done.stderr) == (0, "")
    text, _, heavy = done.stdout.rpartition("heavy: ")
    assert heavy == "[]\n"
    section, name = argument.partition("=")[0].split(".")
    assert yaml.safe_load(text)[section][name] == 5
    again = tmp_path / f"{conf.removeprefix('conf=')}.yaml"
    again.write_text(text, encoding="utf-8")
    assert compose([f"conf={again}"]) == compose([conf, argument])


def test_doctor_has_a_default_conf():
    assert "conf: pcm_object_tiny" in run("doctor", "--print-config", "--json").stdout


@pytest.mark.parametrize("name", ["callbacks.py", "callbacks/__init__.py"])
def test_a_package_of_the_same_name_is_noticed(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    command = [sys.executable, "-m", "vla_rl.fit", TINY]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path / name} hides the package callbacks of vla_rl: rename it, or")
    assert "python -P -m vla_rl.fit ..." in done.stderr
    command = [sys.executable, "-P", "-m", "vla_rl.fit", TINY, "--print-config"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0


def console(monkeypatch, *argv: str) -> None:
    monkeypatch.setattr(sys, "argv", ["vla-rl", *argv])
    monkeypatch.setattr(sys, "path", list(sys.path))
    cli.console()


def test_the_script_lists_every_program_of_the_package(monkeypatch, capsys):
    console(monkeypatch, "--help")
    printed = capsys.readouterr().out
    assert "\n  fit       train a policy by reinforcement learning.\n" in printed
    for verb, line in cli.verbs().items():
        assert (ROOT / "vla_rl" / f"{verb}.py").exists() and line, verb
    assert {"fit", "sft", "evaluate", "doctor"} <= set(cli.verbs())


def test_the_script_runs_a_verb(monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit:
        console(monkeypatch, "fit", TINY, "seed=9", "--print-config")
    assert exit.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["seed"] == 9


def test_the_script_is_asked_for_something_else(monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit:
        console(monkeypatch, "fitt", TINY)
    assert exit.value.code == 2
    assert "no verb named 'fitt'; did you mean 'fit'?" in capsys.readouterr().err
