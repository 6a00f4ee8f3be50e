"""`python -m vla_rl.sft` on a handful of made-up demonstrations."""

import json
import signal

import lightning as L
import pytest
import torch
import yaml

from tests.helpers.results import timeless
from tests.helpers.toy_fit import Fork, start_ranks
from tests.unit.demos.test_demo import make_demo
from vla_rl import fit, sft
from vla_rl.config.schema import SUPERVISED
from vla_rl.demos.formats.npz import save_demos
from vla_rl.demos.load import load_demos
from vla_rl.errors import UserError
from vla_rl.export import export_policy
from vla_rl.policy import load_policy
from vla_rl.run.cli import run_entry
from vla_rl.training.demo_datamodule import DemoRows


def save_made_up(path, x):
    """Two of a kind: whatever the picture, one and the same motion."""
    made = [make_demo(20), make_demo(21)]
    for demo in made:
        demo.frame_THWC = torch.zeros(len(demo), 128, 128, 3, dtype=torch.uint8)
        demo.action_TA[:, :6] = torch.tensor([x, -0.5, 0.25, 0.0, 0.0, 0.0])
        demo.instruction = "turn on the stove"
    save_demos(path, made)
    return path


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    return save_made_up(tmp_path_factory.mktemp("demos") / "demos.npz", x=0.5)


@pytest.fixture(scope="module")
def trained(demos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    sft.main(["conf=sft_object_tiny", f"sft.demos={demos}", "sft.steps=12", "sft.batch_rows=4", f"run_dir={folder}"])
    return folder


def test_it_learns_and_saves_a_checkpoint(demos, trained):
    policy = load_policy(str(trained / "policy"))
    statistics = json.loads((trained / "policy" / "dataset_statistics.json").read_text())
    assert list(statistics) == ["libero_object"]
    assert policy.statistics.action.q99[0] == pytest.approx(0.5)
    rows = DemoRows(load_demos(demos)[-1:], chunk_steps=8).__getitems__([0, 1, 2, 3])
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(
            policy.logits(rows.observation).flatten(0, 2), policy.tokenize(rows.command_NLA).flatten()
        )
    assert loss < 4.0  # untrained: log 256 = 5.55


def test_it_goes_on_from_a_checkpoint_with_the_checkpoints_statistics(trained, tmp_path):
    other = save_made_up(tmp_path / "other.npz", x=0.75)
    before = load_policy(str(trained / "policy"))
    sft.main(
        [
            "conf=sft_object_tiny",
            f"sft.demos={other}",
            "sft.steps=1",
            "sft.batch_rows=4",
            f"policy.checkpoint={trained / 'policy'}",
            f"run_dir={tmp_path / 'run'}",
        ]
    )
    after = load_policy(str(tmp_path / "run" / "policy"))
    assert after.statistics.content == before.statistics.content
    change = max((a - b).abs().max().item() for a, b in zip(after.parameters(), before.parameters(), strict=True))
    assert 0 < change < 1e-4  # one warm-up step of AdamW moves a weight by lr / 20 = 5e-5


SHORT = ["conf=sft_object_tiny", "sft.steps=5", "sft.batch_rows=4"]


@pytest.fixture(scope="module")
def short_iterations():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft, "ITERATION_STEPS", 2)
        yield


@pytest.fixture(scope="module")
def whole(demos, short_iterations, tmp_path_factory):
    """A run that nothing has stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    sft.main([*SHORT, f"sft.demos={demos}", f"run_dir={folder}"])
    return folder


def left(folder):
    """Weights, optimizer, schedule, callbacks and random generators."""
    return timeless(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True))


@pytest.mark.parametrize(
    ("sent", "code", "said"), [(signal.SIGKILL, -9, ""), (signal.SIGTERM, 143, "go on with resume=")]
)
def test_stopped_and_resumed_is_uninterrupted(demos, whole, tmp_path, sent, code, said):
    folder, arguments = tmp_path / "stopped", [*SHORT, f"sft.demos={demos}"]
    program = Fork(lambda: run_entry(sft.main, [*arguments, f"run_dir={folder}"]), tmp_path / "log")
    program.wait_until_printed("step 2/5")
    program.kill(sent)
    assert program.wait() == code
    assert said in program.errors
    assert not (folder / "summary.json").exists()
    sft.main([*arguments, f"resume={folder}"])
    assert left(folder) == left(whole)
    for name in ("policy/model.safetensors", "summary.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def weights(policy):
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


def run_ranks(folder, *arguments):
    ranks = start_ranks(folder, 2, arguments=arguments, main=sft.main)
    codes = [rank.wait() for rank in ranks]
    assert codes == [0, 0], ranks[0].errors + ranks[1].errors


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_share_each_steps_rows(demos, whole, tmp_path, strategy):
    run_ranks(tmp_path / "two", *SHORT, f"sft.demos={demos}", "sft.batch_rows=2", f"trainer.strategy={strategy}")
    L.seed_everything(1, verbose=False)
    start = weights(load_policy(None))
    one, two = (weights(load_policy(str(folder / "policy"))) for folder in (whole, tmp_path / "two"))
    assert (one - two).norm() < 0.01 * (one - start).norm()


def test_shards_stopped_and_resumed_are_uninterrupted(demos, tmp_path):
    arguments = [*SHORT, f"sft.demos={demos}", "sft.steps=4", "trainer.strategy=fsdp2"]
    run_ranks(tmp_path / "whole", *arguments)
    ranks = start_ranks(tmp_path / "stopped", 2, arguments=arguments, main=sft.main)
    ranks[0].wait_until_printed("step 2/4")
    for rank in ranks:
        rank.kill()
    assert [rank.wait() for rank in ranks] == [-signal.SIGKILL] * 2
    run_ranks(tmp_path / "stopped", *arguments, f"resume={tmp_path / 'stopped'}")
    assert left(tmp_path / "stopped") == left(tmp_path / "whole")


class Steps(L.Callback):
    """The optimizer of the run, and the norm of the gradient at its steps."""

    def __init__(self):
        self.norms = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.optimizer, steps.last = optimizer, self

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        gradients = [p.grad.flatten() for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(float(torch.cat(gradients).norm()))


class steps:  # what the run's own callback has seen
    last = None


def test_the_optimizer_is_the_one_that_is_asked_for(demos, tmp_path):
    sft.main([
        "conf=sft_object_tiny", f"sft.demos={demos}", "sft.steps=2", "sft.batch_rows=4", f"run_dir={tmp_path / 'run'}",
        "optim.optimizer=adamw8bit", "optim.betas=[0.5,0.75]", "optim.weight_decay=0.25", "optim.grad_clip=0.01",
        "optim.lr=0.02", "callbacks.steps._target_=tests.integration.verbs.test_sft.Steps",
    ])  # fmt: skip
    optimizer = steps.last.optimizer
    assert type(optimizer).__name__ == "AdamW8bit"
    (group,) = optimizer.param_groups
    assert (group["betas"], group["weight_decay"], group["initial_lr"]) == ((0.5, 0.75), 0.25, 0.02)
    assert steps.last.norms == pytest.approx([0.01] * 2, rel=1e-3)


def test_the_run_folder_records_what_acted(trained):
    stored = yaml.safe_load((trained / "config.yaml").read_text())
    assert sorted(stored) == sorted(SUPERVISED)
    assert stored["optim"]["betas"] == [0.9, 0.95]
    assert list(stored["callbacks"]) == ["checkpoint"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["mask=pcm"], "supervised training does not use mask; leave it out$"),
        (["rollout.temperature=0.5"], "does not use rollout.temperature; leave it out$"),
        (["rollout.train_init_states=[0,9]"], "does not use rollout.train_init_states; leave it out$"),
        (["optim.max_skipped_steps=9"], "does not use optim.max_skipped_steps; leave it out$"),
        (["iterations=3", "grpo.epochs=2"], "does not use iterations, grpo.epochs; leave it out$"),
        (["sft.lr=0.5"], "sft.lr is gone, supervised training takes its optimizer from optim: optim.lr=0.5"),
        (["optim.bets=[0.9,0.9]"], "unknown key 'optim.bets'; did you mean 'optim.betas'?"),
        (["callbacks.checkpoint.kep=2"], "Checkpoint has no option 'kep'; did you mean 'keep'?"),
        (["callbacks.mine._target_=tests.no_such.Thing"], "no module named 'tests.no_such'"),
        (["callbacks.plot._target_=callbacks.PhasePlot"], "PhasePlot needs rollouts, .*: callbacks.plot=null"),
        (["callbacks.progress._target_=callbacks.RolloutProgress"], "RolloutProgress needs rollouts"),
        (["callbacks.augment._target_=callbacks.Augment"], "Augment needs rollouts"),
        (["callbacks.credit._target_=callbacks.CreditKept"], "CreditKept needs rollouts"),
    ],
)
def test_what_would_not_act_is_refused_before_anything_is_written(demos, tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        sft.main(["conf=sft_object_tiny", f"sft.demos={demos}", f"run_dir={tmp_path / 'run'}", *given])
    assert not (tmp_path / "run").exists()


def test_reinforcement_learning_refuses_values_of_supervised_training(tmp_path):
    with pytest.raises(UserError, match="^sft.steps is for python -m vla_rl.sft.*; leave it out$"):
        fit.main(["conf=pcm_object_tiny", "sft.steps=5", f"run_dir={tmp_path / 'run'}"])


def test_a_run_that_would_save_nothing(demos, tmp_path):
    with pytest.raises(UserError, match="callbacks.checkpoint"):
        sft.main([*SHORT, f"sft.demos={demos}", "callbacks.checkpoint=null", f"run_dir={tmp_path / 'run'}"])


def test_no_demonstrations():
    with pytest.raises(UserError, match="sft.demos=FILE"):
        sft.main(["conf=sft_object_tiny", "sft.demos=null"])
    with pytest.raises(ValueError, match="no demonstrations at"):
        sft.main(["conf=sft_object_tiny", "sft.demos=nowhere.npz"])


def test_adapters_of_a_frozen_bfloat16_policy_learn_like_the_7b(trained, tmp_path):
    """The settings of conf/sft_object.yaml, on the small policy."""
    demos = save_made_up(tmp_path / "other.npz", x=-0.5)
    base = str(trained / "policy")
    lora = {"r": 4, "alpha": 4}
    arguments = [f"policy.checkpoint={base}", "policy.lora={r: 4, alpha: 4}", "policy.dtype=bfloat16"]
    arguments += ["policy.gradient_checkpointing=true", "sft.steps=12", "sft.batch_rows=4", "optim.lr=0.01"]
    sft.main(["conf=sft_object_tiny", f"sft.demos={demos}", *arguments, f"run_dir={tmp_path / 'run'}"])
    adapter = tmp_path / "run" / "policy"
    assert sorted(f.name for f in adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all("lora_" in name for name in checkpoint["state_dict"])  # the rest is where it came from
    export_policy(tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "again")
    for file in adapter.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    batch = DemoRows(load_demos(demos), chunk_steps=8).__getitems__([0, 5])
    nll = []
    for policy in (load_policy(base), load_policy(base, lora=lora, adapter=str(adapter))):
        logprob = policy.logits(batch.observation).log_softmax(-1)
        token = policy.tokenize(batch.command_NLA)
        nll.append(-logprob.gather(-1, token[..., None]).mean().item())
    assert nll[1] < nll[0] - 0.2


def test_a_batch_that_does_not_fit_is_refused_before_the_start(demos, tmp_path, monkeypatch):
    monkeypatch.setattr("vla_rl.policy.memory_check.device_memory", lambda device: 1_700_000_000)
    arguments = ["conf=sft_object_tiny", f"sft.demos={demos}", f"run_dir={tmp_path / 'run'}", "sft.batch_rows=64"]
    with pytest.raises(UserError, match=r"memory plan in GB.*but cpu has 1.70: sft.batch_rows=1\d$"):
        sft.main(arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the conf asks for")
def test_the_7b_conf_without_a_gpu(demos, tmp_path):
    with pytest.raises(UserError, match="conf=pcm_object_tiny"):
        sft.main(["conf=sft_object", f"sft.demos={demos}", f"run_dir={tmp_path / 'run'}"])


def test_any_checkpoint_is_exported_with_what_its_policy_folder_holds(whole, tmp_path):
    export_policy(whole / "checkpoints" / "last.ckpt", tmp_path / "out")
    again, kept = (
        {f.name: f.read_bytes() for f in folder.iterdir()} for folder in (tmp_path / "out", whole / "policy")
    )
    assert again == kept
