"""What a sweep plans: the combinations, their folders, and what it refuses before anything runs."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from vla_rl.errors import UserError
from vla_rl.run.sweep import alternatives, planned_runs

TINY = "conf=pcm_object_tiny"


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("seed=1,2", [["seed=1"], ["seed=2"]]),
        ("mask=none,pcm+mask.budget=8", [["mask=none"], ["mask=pcm", "mask.budget=8"]]),
        ("optim.betas=[0.9,0.95],[0.8,0.9]", [["optim.betas=[0.9,0.95]"], ["optim.betas=[0.8,0.9]"]]),
        ("optim.lr=1e-5,1e+5", [["optim.lr=1e-5"], ["optim.lr=1e+5"]]),
        ("x.y=[[1,2],[3,4]]", [["x.y=[[1,2],[3,4]]"]]),
        ("x={a: 1, b: 2},null", [["x={a: 1, b: 2}"], ["x=null"]]),
    ],
)
def test_commas_separate_alternatives_outside_brackets(argument, expected):
    assert alternatives(argument) == expected


def test_every_combination_has_a_folder_seeds_outermost():
    runs = planned_runs([TINY, "mask=none,pcm+mask.budget=8", "optim.lr=1e-5,3e-5", "seed=1,2"], Path("out"))
    folders = [str(run.folder) for run in runs]
    assert folders[:4] == [
        f"out/{arm}/seed1" for arm in ("none_lr1e-5", "none_lr3e-5", "pcm_budget8_lr1e-5", "pcm_budget8_lr3e-5")
    ]
    assert folders[4:] == [folder.replace("seed1", "seed2") for folder in folders[:4]]
    assert [run.config.mask and run.config.mask["budget"] for run in runs[:4]] == [None, None, 8, 8]
    assert [run.config.optim.lr for run in runs[:4]] == [1e-5, 3e-5, 1e-5, 3e-5]
    assert runs[6].command == (
        f"python -m vla_rl.fit seed=2 {TINY} mask=pcm mask.budget=8 optim.lr=1e-5 run_dir=out/pcm_budget8_lr1e-5/seed2"
    )


def test_one_arm_has_the_name_of_its_conf():
    (run,) = planned_runs([TINY, "iterations=3"], Path("out"))
    assert run.folder == Path("out/pcm_object_tiny/seed1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mask=none,randm"], "no mask named 'randm'; did you mean 'random'?"),
        (["itrations=3"], "unknown key 'itrations'; did you mean 'iterations'?"),
        (["seed=1,1"], "two runs of the sweep would share the folder out/pcm_object_tiny/seed1"),
        (["run_dir=runs/a"], "run_dir= cannot be given: out=out"),
        (["resume=runs/a"], "a sweep goes on with its own runs, so resume= cannot be given: the same command again"),
        (["sft.steps=5"], "sft.steps is for python -m vla_rl.sft, not for vla_rl.fit"),
        (["mask"], "expected key=value, got 'mask' (for example seed=1,2,3)"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(UserError) as error:
        planned_runs([TINY, *arguments], Path("out"))
    assert message in str(error.value)


@pytest.mark.parametrize("change", [{"iterations": 5}, {"seed": 7}])
def test_a_folder_with_another_run_is_no_run_of_the_sweep(tmp_path, change):
    (run,) = planned_runs([TINY], tmp_path)
    run.folder.mkdir(parents=True)
    stored = run.folder / "config.yaml"
    stored.write_text(yaml.safe_dump(asdict(run.config) | {"sim": run.config.sim | {"workers": 9}}))
    planned_runs([TINY], tmp_path)  # hardware may differ
    stored.write_text(yaml.safe_dump(asdict(replace(run.config, **change))))
    with pytest.raises(UserError, match=f"holds a run with another value of {next(iter(change))}: out={tmp_path}-2"):
        planned_runs([TINY], tmp_path)


def test_a_run_of_a_version_with_fewer_keys_had_their_defaults(tmp_path):
    (run,) = planned_runs([TINY], tmp_path)
    run.folder.mkdir(parents=True)
    older = asdict(run.config)
    del older["grpo"]["loss"]
    (run.folder / "config.yaml").write_text(yaml.safe_dump(older))
    with pytest.warns(UserWarning, match="begun by a version without grpo.loss=clipped"):
        planned_runs([TINY], tmp_path)
    with (
        pytest.warns(UserWarning, match="begun by a version without"),
        pytest.raises(UserError, match="another value of grpo.clip_low"),
    ):
        planned_runs([TINY, "grpo.clip_low=0.1"], tmp_path)
