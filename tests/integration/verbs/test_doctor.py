"""The doctor on a healthy machine, and on machines each broken in one place: it names the cause and a remedy."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.flow import write_folder
from tests.helpers.tiny_fit import ROOT
from vla_rl import doctor, doctor_checks
from vla_rl.checkpoints.shipped import shipped_folder
from vla_rl.run.cli import run_entry
from vla_rl.sim.libero.standin.write import write_assets

NAMES = ["versions", "gl", "world", "simulator", "devices", "checkpoint", "attention", "memory"]


def run_doctor(*arguments: str, **environment: str) -> tuple[int, dict[str, dict[str, str]]]:
    """The real program; its exit code and results by check."""
    unchosen = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "VLA_RL_GL_CHECKED")}
    done = subprocess.run(
        [sys.executable, "-m", "vla_rl.doctor", "--json", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=unchosen | environment,
    )
    report = json.loads(done.stdout)
    assert report["ok"] == (done.returncode == 0)
    return done.returncode, {result["check"]: result for result in report["checks"]}


def run_check(name: str, *arguments: str, capsys, monkeypatch) -> tuple[int, dict[str, str]]:
    """One check alone, in this process; exit code and result."""
    monkeypatch.setattr(doctor_checks, "CHECKS", {name: doctor_checks.CHECKS[name]})
    with pytest.raises(SystemExit) as ended:
        run_entry(doctor.main, ["--json", *arguments])
    (result,) = json.loads(capsys.readouterr().out)["checks"]
    assert result["check"] == name
    return ended.value.code, result


def test_a_healthy_machine():
    code, results = run_doctor()
    assert code == 0
    assert list(results) == NAMES
    assert {name: (f["status"], f["remedy"]) for name, f in results.items()} == dict.fromkeys(NAMES, ("pass", ""))
    assert "mujoco 3.3.2" in results["versions"]["detail"]
    assert "148 tensors fit" in results["checkpoint"]["detail"]


def test_no_gl_library(tmp_path: Path):
    """Files that are no libraries stand where the loader looks first."""
    for library in ("libEGL.so.1", "libOSMesa.so", "libOSMesa.so.8"):
        (tmp_path / library).write_bytes(b"")
    code, results = run_doctor(LD_LIBRARY_PATH=str(tmp_path))
    assert code == 1
    assert results["gl"]["status"] == "fail"
    assert "no off-screen GL works here" in results["gl"]["detail"]
    assert "apt-get install libegl1" in results["gl"]["remedy"]
    assert {name for name, f in results.items() if f["status"] == "fail"} == {"gl", "simulator"}
    assert "no off-screen GL works here" in results["simulator"]["detail"]


def test_a_gl_library_that_draws_nothing(capsys, monkeypatch):
    monkeypatch.setattr("vla_rl.sim.gl_frame.sys.executable", "/bin/false")
    monkeypatch.setattr("vla_rl.sim.gl.loads", lambda backend: True)
    code, result = run_check("gl", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, result["status"]) == (1, "fail")
    assert "egl: draws nothing: exit status 1" in result["detail"]


def test_wrong_mujoco_version(tmp_path: Path, capsys, monkeypatch):
    """Another version's metadata is found first."""
    folder = tmp_path / "mujoco-3.4.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: mujoco\nVersion: 3.4.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    code, result = run_check("versions", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, result["status"]) == (1, "fail")
    assert result["detail"].startswith("mujoco 3.4.0, needed ==3.3.2 (other MuJoCo versions render darker")
    assert result["remedy"] == "pip install 'mujoco==3.3.2'"


def test_a_package_that_is_missing_and_one_that_changes_no_results(capsys, monkeypatch):
    installed = {"tqdm": None, "bitsandbytes": "0.46"}
    real = doctor_checks.metadata.version

    def version(name: str) -> str:
        if name in installed and installed[name] is None:
            raise doctor_checks.metadata.PackageNotFoundError(name)
        return installed.get(name) or real(name)

    monkeypatch.setattr(doctor_checks.metadata, "version", version)
    code, result = run_check("versions", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, result["status"], result["detail"]) == (1, "fail", "tqdm not installed, needed <5,>=4.66")
    installed["tqdm"] = "4.0"
    monkeypatch.setattr(doctor_checks.metadata, "requires", lambda name: ["tqdm>=5", "torch==2.13.0"])
    code, result = run_check("versions", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, result["status"], result["detail"]) == (0, "warn", "tqdm 4.0, needed >=5")


def test_missing_assets(capsys, monkeypatch):
    code, result = run_check("world", "sim.assets=/nonexistent", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, result["status"]) == (1, "fail")
    assert "assets folder '/nonexistent' does not exist" in result["detail"]
    assert "sim.assets=standin" in result["remedy"]


@pytest.mark.parametrize(
    ("arguments", "status", "detail"),
    [
        (["sim=libero_goal_tiny"], "pass", "LIBERO, suite goal: tasks and initial states read; assets standin:"),
        (["sim=metaworld_tiny"], "pass", "Meta-World 3.0.0, suite mt50: 4 tasks"),
        (["sim=metaworld_tiny", "sim.tasks=[raech]"], "fail", "Meta-World has no task 'raech'; did you mean 'reach'?"),
        (["sim._target_=tests.helpers.fake_env.FakeEnv"], "warn", "not checked: tests.helpers.fake_env.FakeEnv says"),
    ],
)
def test_each_world_says_what_it_is(arguments, status, detail, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "check", lambda config: None)
    _, result = run_check("world", *arguments, capsys=capsys, monkeypatch=monkeypatch)
    assert result["status"] == status
    assert result["detail"].startswith(detail)


def test_a_missing_extra_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr("vla_rl.sim.metaworld.tasks.importlib.util.find_spec", lambda name: None)
    code, result = run_check("world", "sim=metaworld_tiny", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, result["status"]) == (1, "fail")
    assert result["detail"].startswith("Meta-World is not installed; needed: metaworld==3.0.0")
    assert result["remedy"] == "pip install 'vla-rl[metaworld]'"


def test_a_simulator_of_metaworld_is_timed(capsys, monkeypatch):
    code, result = run_check("simulator", "sim=metaworld_tiny", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, result["status"]) == (0, "pass"), result["detail"]
    assert "a control step" in result["detail"]


def test_a_file_missing_in_the_assets(tmp_path: Path, capsys, monkeypatch):
    assets = shutil.copytree(write_assets(), tmp_path / "assets")
    (assets / "stable_hope_objects" / "milk" / "milk.xml").unlink()
    code, result = run_check("simulator", f"sim.assets={assets}", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, result["status"]) == (1, "fail")
    assert "has no stable_hope_objects/milk/milk.xml" in result["detail"]
    assert "\n" not in result["detail"]
    assert len(result["detail"]) < 300
    assert "sim.assets=standin" in result["remedy"]


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "model.safetensors is damaged or cut short"),
        (lambda path: path.unlink(), "has no model.safetensors"),
        (lambda path: path.with_name("dataset_statistics.json").write_text("{}"), "0 datasets"),
    ],
    ids=["cut_short", "missing", "no_statistics"],
)
def test_broken_checkpoint(damage, cause: str, tmp_path: Path, capsys, monkeypatch):
    folder = shutil.copytree(shipped_folder("shipped:object_tiny"), tmp_path / "checkpoint")
    damage(folder / "model.safetensors")
    code, result = run_check("checkpoint", f"policy.checkpoint={folder}", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, result["status"]) == (1, "fail")
    assert cause in result["detail"]
    assert "policy.checkpoint=shipped:object_tiny" in result["remedy"]


def without_statistics(folder: Path) -> None:
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        content = json.loads((folder / name).read_text())
        for step in content["steps"]:
            step.pop("state_file", None)
        (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "status", "detail"),
    [
        (lambda folder: None, "pass", "smolvla, chunks of 8 steps, cameras image; "),
        (without_statistics, "warn", "no statistics of action and observation.state: it cannot act"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "fail", "copy nobody/nothing's tokenizer.json into"),
        (lambda folder: (folder / "config.json").write_text('{"type": "act"}'), "fail", "type='act' is no flow policy"),
    ],
    ids=["whole", "no_statistics", "no_tokenizer", "another_type"],
)
def test_a_flow_policys_checkpoint(damage, status: str, detail: str, tmp_path: Path, capsys, monkeypatch):
    folder = write_folder(tmp_path / "checkpoint", "smolvla_tiny")
    damage(folder)
    arguments = ["policy=flow_tiny", f"policy.checkpoint={folder}"]
    code, result = run_check("checkpoint", *arguments, capsys=capsys, monkeypatch=monkeypatch)
    assert (code, result["status"]) == (status == "fail", status)
    assert detail in result["detail"]
    assert "\n" not in result["detail"]


def test_a_flow_policys_memory(capsys, monkeypatch):
    code, result = run_check("memory", "policy=flow_tiny", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, result["status"]) == (0, "pass")
    assert result["detail"].startswith("memory plan in GB: weights 0.00 + trainable 0.01")


def test_causal_attention(capsys, monkeypatch):
    plain = torch.nn.functional.scaled_dot_product_attention

    def causal(q, k, v, attn_mask=None, is_causal=False):
        return plain(q, k, v, is_causal=True)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", causal)
    code, result = run_check("attention", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, result["status"]) == (1, "fail")
    assert "attention is causal" in result["detail"]
    assert "torch as pinned" in result["remedy"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu_where_the_trainer_asks_for_one(capsys, monkeypatch):
    code, result = run_check("devices", "trainer=gpu", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, result["status"]) == (1, "fail")
    assert "torch sees none" in result["detail"]
    assert "trainer=cpu" in result["remedy"]
    monkeypatch.undo()
    code, result = run_check("memory", "trainer=gpu", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, result["status"]) == (0, "warn")


def test_a_plan_larger_than_the_memory(capsys, monkeypatch):
    arguments = ["policy=openvla_oft_7b", "policy.checkpoint=random:7b", "grpo.micro_rows=4000"]
    code, result = run_check("memory", *arguments, capsys=capsys, monkeypatch=monkeypatch)
    assert (code, result["status"]) == (1, "fail")
    assert result["detail"].startswith("memory plan in GB")
    assert result["remedy"]


def test_the_plan_of_weights_that_are_sharded(capsys, monkeypatch):
    arguments = ["policy=openvla_oft_7b", "policy.checkpoint=random:7b", "grpo.micro_rows=2", "trainer.devices=4"]
    weights = []
    for strategy in ("ddp", "fsdp2", "{_target_: vla_rl.FSDP2}"):
        given = [*arguments, f"trainer.strategy={strategy}"]
        _, result = run_check("memory", *given, capsys=capsys, monkeypatch=monkeypatch)
        weights.append(float(re.findall(r"weights ([\d.]+)", result["detail"])[0]))
    assert weights[1] == weights[2] < weights[0] / 2


@pytest.mark.parametrize("option", ["chunk_steps", "horizon", "workers"])
def test_an_option_of_the_run_that_the_timing_does_not_take(option, capsys, monkeypatch):
    code, result = run_check("simulator", f"sim.{option}=-1", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, result["status"]) == (1, "fail")
    assert f"sim.{option} must be an integer" in result["detail"]


def test_the_table(capsys, monkeypatch):
    attention = (lambda config: doctor_checks.CheckResult("attention", "warn", "word " * 40, "mend it"), "")
    monkeypatch.setattr(doctor_checks, "CHECKS", {"attention": attention})
    with pytest.raises(SystemExit) as ended:
        run_entry(doctor.main, [])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0
    assert lines[0].startswith("warn  attention   word word")
    assert max(map(len, lines)) <= 120
    assert lines[-2:] == [" " * 18 + "-> mend it", "0 pass, 1 warn, 0 fail"]


def test_wrong_arguments(capsys):
    with pytest.raises(SystemExit) as ended:
        run_entry(doctor.main, ["conf=pcm_objct"])
    assert ended.value.code == 2
    assert "did you mean 'pcm_object'?" in capsys.readouterr().err
