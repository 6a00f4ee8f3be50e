"""Configs stored by version 0.1 still work."""

import warnings

import pytest
import yaml

from tests.helpers.tiny_fit import ROOT
from vla_rl.config import aliases
from vla_rl.config.aliases import MOVED, NAMES, current_path, translate
from vla_rl.config.compose import compose, save_resolved
from vla_rl.config.instantiate import check, import_path
from vla_rl.errors import UserError
from vla_rl.run.resume import resume_folder

STORED = ROOT / "tests" / "data" / "config_of_version_0.1.yaml"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(aliases, "_warned", False)


def test_everything_that_a_config_could_name_in_version_0_1_is_found():
    """Its callbacks, policies, pools, loggers and strategies, and the functions that options could name."""
    old = (ROOT / "tests" / "data" / "names_of_version_0.1.txt").read_text().split()
    assert len(old) == 100
    for name in old:
        import_path(current_path(name), f"(was {name})")


def test_every_alias_leads_to_something():
    for new in NAMES.values():
        import_path(new, "")
    for module in MOVED.values():
        __import__(module)


def test_a_stored_config_composes_to_what_its_conf_gives_today():
    with pytest.warns(FutureWarning, match="vla_rl.policy.load_policy is now vla_rl.load_policy") as caught:
        stored = compose([f"conf={STORED}"])
    assert len(caught) == 1  # of ten old paths
    check(stored)
    today = compose(["conf=pcm_object_tiny"])
    later = {"before_after"}  # slots that came after version 0.1
    assert stored.callbacks == {slot: node for slot, node in today.callbacks.items() if slot not in later}
    for node in ("policy", "sim", "mask"):
        assert getattr(stored, node)["_target_"] == getattr(today, node)["_target_"]


def test_an_old_path_on_the_command_line_keeps_the_options_of_its_node():
    with pytest.warns(FutureWarning):
        config = compose(["conf=pcm_object_tiny", "mask._target_=callbacks.pcm.PCM"])
    assert config.mask == compose(["conf=pcm_object_tiny"]).mask


def test_functions_that_options_name_are_found_too():
    with pytest.warns(FutureWarning):
        found = translate({"labeller": "vla_rl.phases.gripper_strict", "runs": ["vla_rl.grpo.rloo_advantage"]})
    assert found == {
        "labeller": "vla_rl.functional.phases.gripper_strict",
        "runs": ["vla_rl.functional.advantages.rloo_advantage"],
    }


def test_everything_else_stays_without_a_warning():
    tree = yaml.safe_load("{a: my_pkg.Mine, b: callbacks.PCM, c: 3, d: vla_rl.functional.phases.gripper_strict}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert translate(tree) == tree


def test_keys_that_are_gone_are_read_where_they_never_acted(tmp_path):
    config = compose(["conf=pcm_object_tiny", f"resume={tmp_path}"])
    save_resolved(config, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8").replace("\nsft:\n", "\nsft:\n  lr: 0.5\n")
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    assert "  lr: 0.5\n" in text
    assert resume_folder(compose([f"conf={tmp_path / 'config.yaml'}", f"resume={tmp_path}"])) == tmp_path
    for arguments in (["sft.demos=a.npz"], ["sft.lr=0.5"]):  # of supervised training; given on the command line
        with pytest.raises(UserError, match=r"^sft.lr is gone, .*: optim.lr=0.5 optim.betas="):
            compose([f"conf={tmp_path / 'config.yaml'}", *arguments])


def test_a_run_of_version_0_1_resumes(tmp_path):
    config = compose(["conf=pcm_object_tiny", f"resume={tmp_path}"])
    save_resolved(config, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    for old, new in NAMES.items():
        text = text.replace(f"_target_: {new}\n", f"_target_: {old}\n")
    assert "callbacks.pcm.PCM" in text
    assert "callbacks.PCM" not in text
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.warns(FutureWarning):
        assert resume_folder(config) == tmp_path
