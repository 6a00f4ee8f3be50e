"""What all verbs share: early answers, the script `vla-rl`, exit codes."""

import json
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


PROGRAMS = """
import contextlib, io, json, runpy, sys
answers = []
for argv in json.loads(sys.argv[1]):
    sys.argv = list(argv)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(f"vla_rl.{argv[0]}", run_name="__main__", alter_sys=True)
        except SystemExit as e:
            code = e.code
    answers.append([code, out.getvalue(), err.getvalue()])
print(json.dumps([answers, sorted({"torch", "lightning"} & set(sys.modules))]))
"""
VERBS = ["fit", "sft", "evaluate", "doctor"]


def answers(*argvs: list[str]) -> list[list]:
    """Exit status, output and errors of programs, one after the other in a new process, which must end them all
    without the packages that take seconds to import."""
    command = [sys.executable, "-c", PROGRAMS, json.dumps(argvs)]
    found, heavy = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert heavy == []
    return found


def test_what_the_caller_has_left_is_kept_out(tmp_path):
    def work() -> None:
        os.close(0)
        os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
        cli._make_alone()
        assert os.path.samestat(os.fstat(0), os.stat(os.devnull))
        assert os.environ["MPLBACKEND"] == "agg"

    program = Fork(work, tmp_path)
    assert program.wait() == 0, program.errors


@pytest.mark.parametrize("argument", ["--help", "--print-config"])
def test_it_ends_quietly_when_nobody_reads_what_it_prints(argument):
    command = f"set -o pipefail; {sys.executable} -m vla_rl.fit {TINY} {argument} | true"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (141, "", "")


def test_a_pipe_that_breaks_elsewhere_keeps_its_traceback(capfd):
    with pytest.raises(BrokenPipeError), cli.exit_codes():
        raise BrokenPipeError


def test_help_does_not_wait_for_heavy_imports():
    for code, printed, errors in answers(*([verb, "--help"] for verb in VERBS)):
        assert (code, errors) == (0, "")
        assert "conf=    base, " in printed


SUPERVISED = "conf=sft_object_tiny"
MISTAKES = {
    "itrations=3": "did you mean 'iterations'?",
    "optim.lr=0": "optim.lr=1e-05",
    "policy._target_=my_pkgg.Mine": "no module named 'my_pkgg'",
}
OF_ROLLOUTS = {
    "mask.budgte=3": "PCM has no option 'budgte'; did you mean 'budget'?",
    "mask._target_=callbacks.PCN": "module 'callbacks' has no 'PCN'; did you mean 'PCM'?",
}
OF_EVALUATIONS = {
    "policy.chunk_stepz=3": "load_policy has no option 'chunk_stepz'; did you mean 'chunk_steps'?",
    "mask.budgte=3": "does not use mask.budgte: leave it out",
}
OF_SUPERVISED = {
    "callbacks.checkpoint.kep=3": "Checkpoint has no option 'kep'; did you mean 'keep'?",
    "mask=pcm": "supervised training does not use mask; leave it out",
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_mistake_is_answered_before_heavy_imports(verb):
    conf = SUPERVISED if verb == "sft" else TINY
    mistakes = MISTAKES | {"sft": OF_SUPERVISED, "evaluate": OF_EVALUATIONS}.get(verb, OF_ROLLOUTS)
    found = answers(*([verb, conf, argument] for argument in mistakes))
    for (code, printed, errors), message in zip(found, mistakes.values(), strict=True):
        assert (code, printed) == (2, "")
        assert errors.startswith("error: ")
        assert message in errors
        assert errors.count("\n") == 1


OWN_OPTIONS = {
    f"evaluate {TINY} decoding=gredy": "decoding must be one of greedy, sampled",
    "record nois=0.1": "unknown key 'nois'; did you mean 'noise'?",
    f"record {TINY} out=demos sim.camera_pz=3": "did you mean 'camera_px'?",
    "compare tabel=text": "unknown key 'tabel'; did you mean 'table'?",
    "compare": "no run folders given",
    "compare sweep seed=1": "a sweep needs a folder for its runs",
    "export adaptor=x": "unknown key 'adaptor'; did you mean 'adapter'?",
    f"serve {TINY} prot=1": "did you mean 'port'?",
}


def test_a_mistake_in_a_verbs_own_options_is_answered_as_early():
    found = answers(*(line.split() for line in OWN_OPTIONS))
    for (code, printed, errors), message in zip(found, OWN_OPTIONS.values(), strict=True):
        assert (code, printed) == (2, "")
        assert message in errors


def test_the_help_of_a_verb_that_takes_no_conf_names_none():
    ((code, printed, _),) = answers(["export", "--help"])
    assert code == 0
    assert "push=OWNER/NAME" in printed
    assert "conf=" not in printed


def test_print_config_prints_a_conf_that_gives_the_same_and_runs_nothing(tmp_path):
    asked = [(verb, TINY, "policy.chunk_steps=5") for verb in [*VERBS, "serve"] if verb != "sft"]
    asked.append(("sft", SUPERVISED, "sft.steps=5"))
    found = answers(*([verb, conf, "--print-config", argument] for verb, conf, argument in asked))
    for (_, conf, argument), (code, printed, errors) in zip(asked, found, strict=True):
        assert (code, errors) == (0, "")
        section, name = argument.partition("=")[0].split(".")
        assert yaml.safe_load(printed)[section][name] == 5
        again = tmp_path / f"{conf.removeprefix('conf=')}.yaml"
        again.write_text(printed, encoding="utf-8")
        assert compose([f"conf={again}"]) == compose([conf, argument])


def test_doctor_has_a_default_conf():
    ((_, printed, _),) = answers(["doctor", "--print-config", "--json"])
    assert "conf: ppo_object_tiny" in printed


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


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # by another test, as what is run here anew
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
