"""`compose`, `validate`, `build`: what a run is given, and every message a user can meet on the way."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from vla_rl.config.compose import compose, conf_names, group_names, merge, save_resolved
from vla_rl.config.instantiate import build, build_callbacks, check
from vla_rl.config.schema import GROUPS, Config
from vla_rl.errors import UserError
from vla_rl.rollout.callback import RolloutCallback
from vla_rl.run.cli import help_text, run_entry

TINY = "conf=pcm_object_tiny"
CONFS = ", ".join(conf_names())
MASKS = (
    "advantage, critic_choice, entropy, full_padded, global, global_advantage, none, pcm, pcm_credit, "
    "pcm_paper_literal, random, random_padded, score_norm, single_phase"
)
PCM_OPTIONS = (
    "budget, floor, refresh_every, labeller, vector, gripper, group_weight, debias, collapse, missing, score, estimator"
)


class Watcher(RolloutCallback):
    def __init__(self, depth: int) -> None:
        self.depth = depth

    def score(self, groups) -> None:
        """A reward like any other: it leaves them as they are."""


class Greedy:
    """A target outside the packages."""

    def __init__(self, depth: int, width: int = 3) -> None:
        if width < 1:
            raise UserError(f"width must be at least 1, got {width} (mask.width=3)")
        self.depth, self.width = depth, width


HERE = f"{__name__}.Greedy"


def message(argv: list[str]) -> str:
    with pytest.raises(UserError) as caught:
        compose(argv)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------------- layers


PAPER_MASK = {
    "_target_": "callbacks.PCM",
    "budget": 12,
    "floor": 0.1,
    "refresh_every": 5,
    "labeller": "gripper",
    "vector": "mean",
    "gripper": True,
    "group_weight": "equal",
    "debias": False,
    "collapse": "mean",
    "missing": "carry",
    "estimator": "paper",
    "score": "divergence",
}


def test_the_paper_run() -> None:
    config = compose(["conf=pcm_object"])
    rollout, grpo, optim = config.rollout, config.grpo, config.optim
    assert (config.conf, config.seed, config.iterations) == ("pcm_object", 1, 200)
    assert (rollout.groups, rollout.group_size, rollout.temperature) == (8, 10, 1.6)
    assert (rollout.train_init_states, rollout.heldout_init_states) == ((0, 40), (40, 50))
    assert (grpo.clip_low, grpo.clip_high, grpo.entropy_coef, grpo.epochs) == (0.2, 0.4, 0.001, 1)
    assert (optim.lr, optim.betas, optim.weight_decay, optim.grad_clip) == (1e-5, (0.9, 0.999), 0.0, 2.0)
    assert config.mask == PAPER_MASK
    assert config.policy["lora"] == {"r": 32, "alpha": 32}
    assert (config.sim["camera_px"], config.sim["horizon"]) == (256, 512)


@pytest.mark.parametrize("conf", [name for name in conf_names() if name != "base"])
def test_every_conf_composes(conf: str) -> None:
    assert compose([f"conf={conf}", "policy.checkpoint=folder"]).conf == conf


@pytest.mark.parametrize("conf", [name for name in conf_names() if name != "base"])
def test_every_option_in_the_confs_exists(conf: str) -> None:
    check(compose([f"conf={conf}", "policy.checkpoint=folder"]))


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_file_composes(group: str) -> None:
    assert group_names(group)
    for name in group_names(group):
        with_critic = group == "critic" and name != "none"
        others = ["grpo.advantage=gae", "grpo.group_filter=keep"] if with_critic else []
        node = getattr(compose([TINY, f"{group}={name}", "policy.checkpoint=folder", *others]), group)
        assert node is None if name == "none" else node["_target_"]


def test_extending_reaches_down_to_the_base() -> None:
    config = compose(["conf=pcm_goal"])  # pcm_goal -> pcm_object -> base
    assert config.sim["suite"] == "goal"
    assert config.policy["lora"]["r"] == 32
    assert config.policy["unnorm_key"] == "libero_goal_no_noops"
    assert "progress" in config.callbacks


def test_a_group_swap_replaces_the_node_and_values_merge_over_it_in_any_order() -> None:
    expected = {"_target_": "callbacks.RandomMask", "budget": 8}
    assert compose([TINY, "mask=random", "mask.budget=8"]).mask == expected
    assert compose(["mask.budget=8", "mask=random", TINY]).mask == expected


def test_a_new_target_replaces_the_node_in_any_order() -> None:
    expected = {"_target_": "my_pkg.MyMask", "depth": 2}
    assert compose([TINY, "mask._target_=my_pkg.MyMask", "mask.depth=2"]).mask == expected
    assert compose([TINY, "mask.depth=2", "mask._target_=my_pkg.MyMask"]).mask == expected


def test_the_same_target_keeps_the_other_options() -> None:
    assert merge({"m": {"_target_": "a.B", "x": 1}}, {"m": {"_target_": "a.B", "y": 2}}) == {
        "m": {"_target_": "a.B", "x": 1, "y": 2}
    }


@pytest.mark.parametrize("argument", ["mask=none", "mask=null"])
def test_no_mask(argument: str) -> None:
    assert compose([TINY, argument]).mask is None


def test_callback_slots() -> None:
    config = compose([TINY, "callbacks.extra._target_=my_pkg.MyCallback", "callbacks.progress=null"])
    assert config.callbacks["extra"] == {"_target_": "my_pkg.MyCallback"}
    assert config.callbacks["progress"] is None
    assert "checkpoint" in config.callbacks


def test_an_own_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "extends: parent.yaml\nseed: 7\nmask: {extends: single_phase, budget: 3}\noptim: {lr: 1e-3}\n"
        "policy: openvla_oft_tiny\n"
    )
    (tmp_path / "parent.yaml").write_text(
        "extends: pcm_object_tiny\nseed: 5\niterations: 9\npolicy: {extends: openvla_oft_tiny, unnorm_key: a}\n"
    )
    config = compose([f"conf={tmp_path / 'mine.yaml'}", "seed=8"])
    assert (config.conf, config.seed, config.iterations, config.optim.lr) == ("mine", 8, 9, 1e-3)
    assert config.mask == {"_target_": "callbacks.SinglePhase", "budget": 3} | {
        "refresh_every": 5,
        "labeller": "gripper",
    }
    assert "unnorm_key" not in config.policy  # a group by name replaces the node, the parent's changes included


def test_references_are_filled_in() -> None:
    assert compose([TINY, "iterations=${rollout.groups}"]).iterations == 8


def test_a_saved_config_reads_back_equal(tmp_path: Path) -> None:
    config = compose([TINY, "mask=random", "callbacks.progress=null", "seed=3"])
    save_resolved(config, tmp_path / "config.yaml")
    assert compose([f"conf={tmp_path / 'config.yaml'}"]) == config


def test_composing_imports_neither_torch_nor_lightning() -> None:
    code = (
        "import sys; from vla_rl.config.compose import compose; import vla_rl.config.instantiate, vla_rl.run.cli; "
        f"compose(['{TINY}']); print([m for m in ('torch', 'lightning') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


# ---------------------------------------------------------------------------------------------------------- messages

NAMES = [
    ([], f"no conf given, for example conf=pcm_object_tiny. Confs: {CONFS}"),
    (["conf=pcm_objct"], f"no conf named 'pcm_objct'; did you mean 'pcm_object'? Confs: {CONFS}"),
    (["conf=???"], f"no conf named '???'. Confs: {CONFS}"),
    (["conf=no/file.yaml"], f"no file 'no/file.yaml' (conf=path/to/file.yaml, or one of {CONFS})"),
    (
        [TINY, "mask=randm"],
        f"no mask named 'randm'; did you mean 'random'? Choices: {MASKS} (mask=random)",
    ),
    ([TINY, "trainer=tpu"], "no trainer named 'tpu'; did you mean 'gpu'? Choices: cpu, gpu (trainer=gpu)"),
    ([TINY, "reward=dense"], "no reward named 'dense'. Choices: none, policytrim (reward=none)"),
    ([TINY, "itrations=3"], "unknown key 'itrations'; did you mean 'iterations'?"),
    ([TINY, "rollout.group_sze=3"], "unknown key 'rollout.group_sze'; did you mean 'rollout.group_size'?"),
    (
        [TINY, "rollout.x=3"],
        "unknown key 'rollout.x'. Keys: rollout.groups, rollout.group_size, rollout.temperature, "
        "rollout.train_init_states, rollout.heldout_init_states, rollout.stop_below, "
        "rollout.stop_after, rollout.stop_run_on, rollout.asynchronous",
    ),
    ([TINY, "iterations"], "expected key=value, got 'iterations' (for example mask.budget=8)"),
    ([TINY, "mask..budget=3"], "expected key=value, got 'mask..budget=3' (for example mask.budget=8)"),
    (
        [TINY, "seed=[1"],
        "seed=[1: the value is not valid YAML (while parsing a flow sequence); quote a value with spaces",
    ),
    ([TINY, "seed=${sed}"], "seed: Interpolation key 'sed' not found"),
    (
        [TINY, "policy=openvla_oft_7b"],
        "missing required value: policy.checkpoint (a folder or a hub name); to try without one: conf=pcm_object_tiny",
    ),
]

TYPES = [
    (["iterations=ten"], "iterations must be an integer, got 'ten' (iterations=200)"),
    (["iterations=2.5"], "iterations must be an integer, got 2.5 (iterations=200)"),
    (["iterations=true"], "iterations must be an integer, got True (iterations=200)"),
    (["optim.lr=fast"], "optim.lr must be a number, got 'fast' (optim.lr=1e-05)"),
    (["optim.lr=1" + "0" * 400], f"optim.lr must be a number, got 1{'0' * 400} (optim.lr=1e-05)"),
    (["optim.betas=[0.9,x]"], "optim.betas must be two numbers, got [0.9, 'x'] (optim.betas=[0.9,0.999])"),
    (
        ["rollout.train_init_states=40"],
        "rollout.train_init_states must be two integers, got 40 (rollout.train_init_states=[0,40])",
    ),
    (["optim.betas=[0.9]"], "optim.betas must be two numbers, got [0.9] (optim.betas=[0.9,0.999])"),
    (["run_dir=7"], "run_dir must be text, got 7"),
    (["rollout=big"], "rollout must be a section of values, got 'big' (rollout.groups=8)"),
    (
        ["grpo.loss_norm=const"],
        "grpo.loss_norm=const divides by a constant, but grpo.normalise_by=kept by the trajectories that are left: "
        "grpo.normalise_by=planned",
    ),
    (
        ["grpo.dual_clip=1.0"],
        "grpo.dual_clip must be a number > 1, got 1.0 (grpo.dual_clip=3.0)",
    ),
    (
        ["grpo.loss=ppo"],
        "grpo.loss must be one of clipped, nft, got 'ppo' (grpo.loss=clipped)",
    ),
    (
        ["grpo.loss_norm=mean"],
        "grpo.loss_norm must be one of traj_mean, token_mean, const, got 'mean' (grpo.loss_norm=traj_mean)",
    ),
    (
        ["mask=none", "mask.budget=8"],
        "mask needs a _target_, got {'budget': 8} (mask=<name>, or mask._target_=my_pkg.MyClass)",
    ),
    (["mask=7"], "mask needs a _target_, got 7 (mask=<name>, or mask._target_=my_pkg.MyClass)"),
    (
        ["callbacks.extra=my_pkg.My"],
        "callbacks.extra needs a _target_, got 'my_pkg.My' "
        "(callbacks.extra=null, or callbacks.extra._target_=my_pkg.MyClass)",
    ),
    (["callbacks=none"], "callbacks must be a section of values, got 'none' (callbacks.progress=null)"),
]

VALUES = [
    *(
        (
            ["grpo.loss=nft", "grpo.entropy_coef=0", f"grpo.{name}={value}"],
            f"grpo.loss=nft uses no log-probabilities, so that grpo.{name}={value} would do nothing: "
            f"grpo.{name}={fix}, or grpo.loss=clipped",
        )
        for name, value, fix in (
            ("ratio", "chunk", "token"),
            ("dual_clip", "3.0", "null"),
            ("entropy_coef", "0.1", "0.0"),
        )
    ),
    (
        ["grpo.loss=nft", "grpo.entropy_coef=0", "grpo.advantage=distill", "grpo.teacher=x", "grpo.group_filter=keep"],
        "grpo.loss=nft has no probability of single numbers, and grpo.advantage=distill gives each its own advantage: "
        "grpo.loss=clipped, or another advantage",
    ),
    (["rollout.groups=0"], "rollout.groups must be an integer >= 1, got 0 (rollout.groups=8)"),
    (["rollout.group_size=1"], "group size 1 has no spread to learn from: rollout.group_size=8, or a critic"),
    (["rollout.group_size=0"], "rollout.group_size must be an integer >= 1, got 0 (rollout.group_size=8)"),
    (
        ["rollout.stop_below=0.1"],
        "rollout.stop_below=0.1 needs the values of a critic, and there is none: "
        "critic=separate grpo.advantage=gae grpo.group_filter=keep, or rollout.stop_below=null",
    ),
    (["rollout.stop_after=0"], "rollout.stop_after must be an integer >= 1, got 0 (rollout.stop_after=3)"),
    (
        ["rollout.stop_run_on=1.5"],
        "rollout.stop_run_on must be a number >= 0 and <= 1, got 1.5 (rollout.stop_run_on=0.1)",
    ),
    (
        ["grpo.advantage=distill"],
        "grpo.advantage=distill takes the advantages of a teacher, and there is none: grpo.teacher=FOLDER",
    ),
    (
        ["grpo.teacher=x"],
        "a teacher gives the advantages itself, but grpo.advantage=grpo: grpo.advantage=distill "
        "grpo.group_filter=keep, or grpo.teacher=null",
    ),
    (
        ["grpo.teacher=x", "grpo.advantage=distill"],
        "with a teacher, groups of equal rewards have advantages too, but grpo.group_filter=drop leaves them out: "
        "grpo.group_filter=keep",
    ),
    (
        ["grpo.teacher=x", "grpo.advantage=distill", "grpo.group_filter=keep", "grpo.ratio=chunk"],
        "a teacher gives each number its own advantage, but grpo.ratio=chunk has one of a chunk: grpo.ratio=token",
    ),
    (
        ["grpo.teacher=x", "grpo.advantage=distill", "grpo.group_filter=keep", "reward=policytrim"],
        "a teacher's advantages use no reward, and one is given: reward=none",
    ),
    (["grpo.advantage=gae"], "grpo.advantage=gae takes the advantages of a critic, and there is none: critic=separate"),
    (
        ["critic=separate"],
        "a critic gives the advantages itself, but grpo.advantage=grpo: "
        "grpo.advantage=gae grpo.group_filter=keep, or critic=null",
    ),
    (
        ["critic=separate", "grpo.advantage=gae"],
        "with a critic, groups of equal rewards have advantages too, but grpo.group_filter=drop leaves them out: "
        "grpo.group_filter=keep",
    ),
    (["rollout.temperature=0"], "rollout.temperature must be a number > 0, got 0.0 (rollout.temperature=1.6)"),
    (["rollout.temperature=.nan"], "rollout.temperature must be a number > 0, got nan (rollout.temperature=1.6)"),
    (
        ["rollout.train_init_states=[5,5]"],
        "rollout.train_init_states must be a range with 0 <= first < end, got [5, 5]: rollout.train_init_states=[0,40]",
    ),
    (
        ["rollout.train_init_states=[0,40]", "rollout.heldout_init_states=[39,50]"],
        "training and held-out initial states overlap, [0, 40] and [39, 50]: rollout.heldout_init_states=[40,51]",
    ),
    (["seed=-1"], "seed must be an integer >= 0 and <= 4294967295, got -1 (seed=1)"),
    (["seed=20261125080000"], "seed must be an integer >= 0 and <= 4294967295, got 20261125080000 (seed=1)"),
    (
        ["trainer.gradient_clip_val=1"],
        "trainer.gradient_clip_val has no place here, the run does that itself: optim.grad_clip=1.0",
    ),
    (
        ["trainer.accumulate_grad_batches=2"],
        "trainer.accumulate_grad_batches has no place here, the run does that itself: grpo.minibatches=4",
    ),
    (
        ["trainer.fast_dev_run=true"],
        "trainer.fast_dev_run has no place here, the run does that itself: iterations=1",
    ),
    (["trainer.max_steps=5"], "trainer.max_steps has no place here, the run does that itself: iterations=40"),
    (
        ["trainer.precision=16-mixed"],
        "trainer.precision=16-mixed has no place here: it would change the numbers of the update and not those of the "
        "rollouts; the type of the weights is policy.dtype: trainer.precision=32-true policy.dtype=bfloat16",
    ),
    (["iterations=-1"], "iterations must be an integer >= 0, got -1 (iterations=40)"),
    (["grpo.minibatches=0"], "grpo.minibatches must be an integer >= 1, got 0 (grpo.minibatches=4)"),
    (
        ["grpo.minibatches=65"],
        "65 minibatches cannot share 64 trajectories (8 groups of 8): grpo.minibatches=64",
    ),
    (["grpo.epochs=0"], "grpo.epochs must be an integer >= 1, got 0 (grpo.epochs=1)"),
    (["grpo.micro_rows=0"], "grpo.micro_rows must be an integer >= 1, got 0 (grpo.micro_rows=12)"),
    (["grpo.clip_low=1.5"], "grpo.clip_low must be a number > 0 and < 1, got 1.5 (grpo.clip_low=0.2)"),
    (["grpo.clip_high=0"], "grpo.clip_high must be a number > 0, got 0.0 (grpo.clip_high=0.4)"),
    (["grpo.advantage_eps=0"], "grpo.advantage_eps must be a number > 0, got 0.0 (grpo.advantage_eps=1e-06)"),
    (["grpo.entropy_coef=-1"], "grpo.entropy_coef must be a number >= 0, got -1.0 (grpo.entropy_coef=0.001)"),
    (["optim.lr=0"], "optim.lr must be a number > 0, got 0.0 (optim.lr=1e-05)"),
    (["optim.grad_clip=0"], "optim.grad_clip must be a number > 0, got 0.0 (optim.grad_clip=2.0)"),
    (["optim.betas=[0.9,1]"], "optim.betas must lie in [0, 1), got [0.9, 1.0]: optim.betas=[0.9,0.999]"),
    (["optim.weight_decay=-1"], "optim.weight_decay must be a number >= 0, got -1.0 (optim.weight_decay=0)"),
    (
        ["evaluation.sampled_episodes=-1"],
        "evaluation.sampled_episodes must be an integer >= 0, got -1 (evaluation.sampled_episodes=0)",
    ),
    (["sft.batch_rows=0"], "sft.batch_rows must be an integer >= 1, got 0 (sft.batch_rows=16)"),
]


@pytest.mark.parametrize(("argv", "expected"), NAMES)
def test_message_about_names(argv: list[str], expected: str) -> None:
    assert message(argv) == expected


@pytest.mark.parametrize(("argv", "expected"), TYPES)
def test_message_about_types(argv: list[str], expected: str) -> None:
    assert message([TINY, *argv]) == expected


@pytest.mark.parametrize(("argv", "expected"), VALUES)
def test_message_about_values(argv: list[str], expected: str) -> None:
    assert message([TINY, *argv]) == expected


@pytest.mark.parametrize(
    ("key", "value", "needed"),
    [
        ("rollout.stop_after", "5", "rollout.stop_below=0.05"),
        ("rollout.stop_run_on", "0.5", "rollout.stop_below=0.05"),
        ("grpo.resample_rounds", "3", "grpo.group_filter=resample"),
        ("grpo.clip_low", "0.1", "grpo.loss=clipped"),
        ("grpo.clip_high", "0.3", "grpo.loss=clipped"),
        ("grpo.advantage_eps", "1e-4", "grpo.advantage=grpo"),
    ],
)
def test_a_value_without_effect_is_refused_where_it_is_given_and_may_lie_idle_in_a_conf(key, value, needed, tmp_path):
    without = [TINY, "grpo.loss=nft", "grpo.advantage=rloo"]
    said = f"{key} does nothing without {needed}: give both, or leave {key} out"
    assert message([*without, f"{key}={value}"]) == said
    section, name = key.split(".")
    assert message([*without, f"{section}={{{name}: {value}}}"]) == said
    critic = ["critic=separate", "grpo.advantage=gae", "grpo.group_filter=keep"] if "stop_below" in needed else []
    compose([TINY, *critic, needed, f"{key}={value}"])
    (tmp_path / "mine.yaml").write_text(f"extends: pcm_object_tiny\n{section}: {{{name}: {value}}}\n")
    assert getattr(getattr(compose([f"conf={tmp_path}/mine.yaml", *without[1:]]), section), name) == float(value)


def test_zero_iterations_only_evaluate() -> None:
    assert compose([TINY, "iterations=0"]).iterations == 0


def test_neighbouring_ranges_do_not_overlap() -> None:
    argv = [TINY, "rollout.train_init_states=[40,50]", "rollout.heldout_init_states=[0,40]"]
    assert compose(argv).rollout.heldout_init_states == (0, 40)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("extends: me.yaml\n", "confs extend each other in a circle: me -> me"),
        (
            "extends: pcm_objct\n",
            f"no conf named 'pcm_objct', which {{path}} extends; did you mean 'pcm_object'? Confs: {CONFS}",
        ),
        (
            "extends: no.yaml\n",
            f"no file '{{path.parent}}/no.yaml', which {{path}} extends (conf=path/to/file.yaml, or one of {CONFS})",
        ),
        ("- 1\n", "{path} must hold 'key: value' lines"),
        ("seed: [1\n", "{path} is not valid YAML: while parsing a flow sequence"),
        ("extends: base\nitrations: 3\n", "unknown key 'itrations'; did you mean 'iterations'?"),
    ],
)
def test_message_about_an_own_file(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "me.yaml"
    path.write_text(text)
    assert message([f"conf={path}"]) == expected.format(path=path)


# ------------------------------------------------------------------------------------------------------------- build


def test_build_calls_the_target_with_options_and_extras() -> None:
    greedy = build({"_target_": HERE, "width": 2}, "mask", depth=5)
    assert (greedy.depth, greedy.width) == (5, 2)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("extends: pcm_object_tiny\nsft: {demos: ~/demos.npz}\n")
    config = compose(["conf=~/mine.yaml", "run_dir=~/run", "policy.checkpoint=~/weights", "sim.assets=a~/b"])
    assert (config.run_dir, config.sft.demos) == (f"{tmp_path}/run", f"{tmp_path}/demos.npz")
    assert (config.policy["checkpoint"], config.sim["assets"]) == (f"{tmp_path}/weights", "a~/b")


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfextends: pcm_object_tiny\niterations: 1\nmask:\n  extends: pcm\n  budget: 3\n",
        b"extends: pcm_object_tiny\r\niterations: 1\r\nmask:\r\n  extends: pcm\r\n  budget: 3\r\n",
    ],
    ids=["byte order mark", "line ends of Windows"],
)
def test_a_conf_that_another_systems_editor_wrote(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    config = compose([f"conf={tmp_path}/mine.yaml"])
    assert (config.iterations, config.mask["budget"], config.rollout.groups) == (1, 3, 8)


class Broken:
    """A target of one's own with a fault of its own."""

    def __init__(self) -> None:
        raise ValueError("not the config's fault")


def test_a_fault_inside_a_target_keeps_its_traceback_and_names_the_node() -> None:
    with pytest.raises(ValueError, match="^not the config's fault") as caught:
        build({"_target_": f"{__name__}.Broken"}, "callbacks.mine")
    assert not isinstance(caught.value, UserError)
    assert caught.traceback[-1].name == "__init__"
    assert caught.value.__notes__ == [f"while callbacks.mine was built from {__name__}.Broken"]


def test_build_builds_inner_nodes_and_targets_without_a_signature() -> None:
    inner = {"_target_": "datetime.timedelta", "hours": 12}
    assert build({"_target_": HERE, "depth": inner}, "mask").depth == timedelta(hours=12)


@pytest.mark.parametrize(
    ("node", "extra", "expected"),
    [
        (
            {"_target_": "callbacks.PCM", "flor": 0.1},
            {},
            f"PCM has no option 'flor'; did you mean 'floor'? Options: {PCM_OPTIONS} (mask.floor=...)",
        ),
        (
            {"_target_": "callbacks.PCM", "x": 0.1},
            {},
            f"PCM has no option 'x'. Options: {PCM_OPTIONS} (remove mask.x)",
        ),
        ({"_target_": HERE}, {}, "Greedy needs the option 'depth' (mask.depth=...)"),
        (
            {"_target_": HERE, "depth": 1},
            {"depth": 2},
            "mask.depth is set by the program and cannot be changed: remove mask.depth",
        ),
        ({"_target_": HERE, "depth": 1, "width": 0}, {}, "width must be at least 1, got 0 (mask.width=3)"),
        (
            {"_target_": "callbacks.masks.pcm.PCN"},
            {},
            "module 'callbacks.masks.pcm' has no 'PCN'; did you mean 'PCM'? (mask._target_=callbacks.masks.pcm.PCN)",
        ),
        ({"_target_": "my_pkgg.My"}, {}, "no module named 'my_pkgg' (mask._target_=my_pkgg.My)"),
        (
            {"_target_": "callbacks.pcmm.PCM"},
            {},
            "no module named 'callbacks.pcmm' (mask._target_=callbacks.pcmm.PCM)",
        ),
        ({"_target_": "PCM"}, {}, "a target is a module and a name, got 'PCM' (mask._target_=my_pkg.MyClass)"),
        ({"_target_": "math.pi"}, {}, "'math.pi' is neither a class nor a function (mask._target_=math.pi)"),
        (None, {}, "this command needs a mask, got null; choose one by name (mask=...)"),
    ],
)
def test_message_of_build(node: dict | None, extra: dict, expected: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        build(node, "mask", **extra)


def test_check_finds_wrong_names_without_building() -> None:
    config = Config(mask={"_target_": HERE, "width": 0})  # would not build: no depth, and no width
    check(config)
    config.callbacks = {"extra": None, "inner": {"_target_": HERE, "depth": {"_target_": HERE, "wdth": 1}}}
    expected = (
        "Greedy has no option 'wdth'; did you mean 'width'? Options: depth, width (callbacks.inner.depth.width=...)"
    )
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        check(config)


def test_callbacks_are_built_in_order_without_the_null_ones() -> None:
    node = lambda depth: {"_target_": f"{__name__}.Watcher", "depth": depth}  # noqa: E731
    config = Config(policy={"_target_": "never.Built"}, mask=node(1), reward=node(2))
    config.callbacks = {"a": node(3), "b": None, "c": node(4)}
    assert [built.depth for built in build_callbacks(config)] == [1, 2, 3, 4]


def test_what_is_no_callback_or_no_reward_is_refused() -> None:
    with pytest.raises(UserError, match=r"Greedy is no callback of Lightning: mask=null, or another mask._target_$"):
        build_callbacks(Config(mask={"_target_": HERE, "depth": 1}))
    with pytest.raises(UserError, match=r"^callbacks.Timing has no score, so it is no reward: reward=none"):
        build_callbacks(Config(reward={"_target_": "callbacks.Timing"}))


def test_an_import_that_fails_inside_a_target_is_not_blamed_on_the_config(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "half_installed.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        build({"_target_": "half_installed.My"}, "mask")


# ------------------------------------------------------------------------------------------------------------- entry


def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(capsys) -> None:
    def main(argv: list[str]) -> None:
        raise UserError("first\n  second")

    with pytest.raises(SystemExit) as exit:
        run_entry(main, [])
    assert exit.value.code == 2
    assert capsys.readouterr().err == "error: first second\n"


def test_a_bug_keeps_its_traceback() -> None:
    def main(argv: list[str]) -> None:
        raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        run_entry(main, [])


def test_help_names_confs_and_groups() -> None:
    printed = help_text("What it does.")
    assert printed.startswith("What it does.\n\n")
    assert f"  conf=    {CONFS}\n" in printed
    assert f"  mask=    {MASKS}\n" in printed
