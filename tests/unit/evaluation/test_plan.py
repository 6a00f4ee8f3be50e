"""What `vla_rl.evaluate` runs, from its arguments alone."""

from collections import Counter

import pytest

from tests.helpers.toy import ToyPolicy, ToyPool
from vla_rl.config.arguments import evaluate_arguments
from vla_rl.config.compose import compose
from vla_rl.errors import UserError
from vla_rl.evaluation.plan import EvaluationPlan, check_windows, checkpoint_name, plan_evaluation
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.sim.perturb.registry import PERTURBATIONS

TINY = "conf=pcm_object_tiny"


def plan(*arguments: str) -> EvaluationPlan:
    return plan_conf(TINY, *arguments)


def plan_conf(*argv: str) -> EvaluationPlan:
    options, config, given = evaluate_arguments([*argv])
    return plan_evaluation(config, options, given)


def pairs(found: EvaluationPlan, pool: ToyPool) -> list[tuple[int, int]]:
    return [(e.task, e.init_state) for e in found.episodes(pool)]


@pytest.mark.parametrize("decoding", ["sampled", "greedy"])
def test_by_default_the_episodes_are_those_that_training_measures(decoding):
    config = compose([TINY])
    data = RolloutDataModule(
        ToyPool(), ToyPolicy(), rollout=config.rollout, grpo=config.grpo, evaluation=config.evaluation, seed=config.seed
    )
    (measured,) = [batch for batch in data.val_dataloader() if batch.decoding == decoding]
    found = plan(f"decoding={decoding}")
    assert found.episodes(ToyPool()) == measured.episodes
    assert (found.decoding, found.temperature) == (decoding, config.rollout.temperature)


def test_a_range_of_initial_states_is_run_for_every_task_once():
    found = pairs(plan("init_states=[5,8]"), ToyPool(tasks=(2, 4)))
    assert sorted(found) == [(2, 5), (2, 6), (2, 7), (4, 5), (4, 6), (4, 7)]


def test_a_published_protocol_sets_simulators_states_and_decoding():
    found = plan("protocol=rlinf")
    assert (found.sim["horizon"], found.sim["settle_steps"], found.sim["placement_noise_m"]) == (512, 15, 0.0)
    assert (found.decoding, found.temperature, found.init_states) == ("sampled", 1.6, (0, 50))
    pool = ToyPool(tasks=tuple(range(10)))
    pool.init_states = 50
    assert len(set(pairs(found, pool))) == len(found.episodes(pool)) == 500


def test_remarks_name_what_is_not_as_published():
    assert plan().remarks() == []
    (remark,) = plan("protocol=oft", "decoding=sampled").remarks()
    assert "sim.assets=standin (LIBERO's own), sampled (greedy)" in remark


def test_workers_are_no_fact_of_a_report():
    assert plan("sim.workers=1").simulator() == plan("sim.workers=2").simulator()
    assert plan("sim.horizon=96").simulator()["horizon"] == 96


def test_checkpoints_take_the_place_of_the_confs(tmp_path):
    (tmp_path / "adapter_config.json").touch()
    policies = plan(f"checkpoint=[shipped:object_tiny,{tmp_path}]", "policy.dtype=bfloat16").policies
    assert list(policies) == ["A", "B"]
    assert policies["A"]["checkpoint"] == policies["B"]["checkpoint"] == "shipped:object_tiny"
    assert policies["B"]["adapter"] == str(tmp_path)
    assert "adapter" not in policies["A"]
    assert [node["dtype"] for node in policies.values()] == ["bfloat16"] * 2
    assert [checkpoint_name(node) for node in policies.values()] == ["shipped:object_tiny", str(tmp_path)]
    assert plan("checkpoint=mine").policies["A"]["checkpoint"] == "mine"


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        (["protocol=oftt"], "did you mean 'oft'?"),
        (["protocl=oft"], "unknown key 'protocl'; did you mean 'protocol'?"),
        (["checkpoints=a"], "unknown key 'checkpoints'; did you mean 'checkpoint'?"),
        (["seeed=3"], "did you mean 'seed'?"),
        (["decoding=best"], "decoding must be one of greedy, sampled, got 'best'"),
        (["checkpoint=3"], "checkpoint must be text, got 3"),
        (["checkpoint=[a,a]"], "checkpoint=[FOLDER_A,FOLDER_B]"),
        (["checkpoint=[]"], "checkpoint=[FOLDER_A,FOLDER_B]"),
        (["init_states=5"], "init_states must be two integers, got 5 (init_states=[0,50])"),
        (["init_states=[5,5]"], "init_states=[0,50]"),
        (["videos.frist=3"], "did you mean 'videos.first'?"),
        (["videos.first=-1"], "videos.first=2"),
        (["protocol=oft", "sim.horizon=100"], "leave sim.horizon out"),
        (["protocol=oft", "sim={horizon: 100}"], "leave sim.horizon out"),
        (
            ["decoding=greedy", "rollout.temperature=2"],
            "rollout.temperature is of sampling, and this evaluation is greedy",
        ),
        (["decoding=greedy", "policy.noise_level=0.3"], "policy.noise_level is of sampling, and this evaluation is"),
        (["protocol=rlinf", "rollout.temperature=2"], "protocol=rlinf samples at 1.6: leave rollout.temperature out"),
        (["evaluation.greedy_episodes=5"], "evaluation.sampled_episodes=20, or decoding=greedy"),
        (["protocol=oft", "evaluation.sampled_episodes=5"], "evaluation.greedy_episodes=20, or decoding=sampled"),
        (["protocol=oft", "evaluation.greedy_episodes=5"], "leave it out; for fewer episodes init_states=[0,1]"),
        (["init_states=[0,9]", "evaluation.sampled_episodes=5"], "init_states=[0, 9] runs every task once"),
        (["init_states=[0,9]", "rollout.heldout_init_states=[20000,20009]"], "rollout.heldout_init_states would do no"),
    ],
)
def test_mistakes_are_named(arguments, fix):
    with pytest.raises(UserError) as error:
        plan(*arguments)
    assert fix in str(error.value)


def test_sampled_pairs_come_again_with_other_seeds():
    found = plan("rollout.heldout_init_states=[10000,10005]").episodes(ToyPool())  # 100 episodes of 10 pairs
    assert set(Counter((e.task, e.init_state) for e in found).values()) == {10}
    assert len({e.seed for e in found}) == 100
    with pytest.raises(UserError, match=r"sampled_episodes must be an integer >= 1, got 0 \(evaluation.sampled"):
        plan("evaluation.sampled_episodes=0").episodes(ToyPool())


def test_greedy_pairs_come_again_only_where_every_policy_draws_something():
    repeats, draws = ToyPolicy(), ToyPolicy()
    draws.greedy_repeats = False
    few = ("decoding=greedy", "rollout.heldout_init_states=[10000,10005]")  # 50 episodes are asked for
    for policies in ([repeats], [draws, repeats]):
        with pytest.raises(UserError, match="there are 10 pairs .* evaluation.greedy_episodes=10$"):
            plan(*few).check_repeats(ToyPool(), policies)
    plan(*few).check_repeats(ToyPool(), [draws])
    found = plan(*few).episodes(ToyPool())
    assert len({e.seed for e in found}) == 50
    assert len(set(pairs(plan(*few), ToyPool()))) == 10
    for enough in ((*few, "evaluation.greedy_episodes=10"), ("decoding=greedy", "init_states=[10000,10005]")):
        plan(*enough).check_repeats(ToyPool(), [repeats])
        assert len(plan(*enough).episodes(ToyPool())) == 10


def test_the_default_run_can_be_evaluated_as_it_is():
    found = plan_conf("conf=ppo_object_tiny").episodes(ToyPool(tasks=(0,)))
    assert Counter(e.init_state for e in found) == dict.fromkeys(range(40, 50), 10)


def test_initial_states_that_are_not_there():
    pool = ToyPool()
    pool.init_states = 50
    line = r"^init_states=\[40,60\] goes beyond the 50 initial states of a task: init_states=\[0,50\]"
    with pytest.raises(UserError, match=line):
        plan("init_states=[40,60]").episodes(pool)


def test_rules_are_those_of_the_world_that_is_run():
    assert plan("protocol=oft").rules()["settle_steps"] == 10
    rules = plan("sim=metaworld_tiny").rules()
    assert (rules["suite"], rules["horizon"]) == ("mt50", 100)
    assert "settle_steps" not in rules  # Meta-World has none
    with pytest.raises(UserError, match="protocol 'oft' has no horizon for suite 'mt50'; it knows spatial"):
        plan("sim=metaworld_tiny", "protocol=oft")


def test_windows_are_the_protocols_or_given():
    assert plan().windows == [None] and plan().rules()["windows"] == "whole chunks"
    found = plan("protocol=openpi")
    assert found.windows == [5] and not any("windows" in remark for remark in found.remarks())
    (remark,) = plan("protocol=openpi", "windows=[8]").remarks()
    assert "windows [8] (5)" in remark
    found = plan("windows=[4,8]", "checkpoint=mine")
    assert [(label, checkpoint_name(node)) for label, node in found.policies.items()] == [("window 4", "mine")]
    assert found.windows == [4, 8] and found.rules()["windows"] == "4, 8"
    assert list(plan("windows=[4]").policies) == ["A"]


@pytest.mark.parametrize("windows", [[0], [9], [4, 4], [None, 12]])
def test_windows_are_a_part_of_the_chunk(windows):
    check_windows([None], 8)
    check_windows([1, 8], 8)
    with pytest.raises(UserError, match=r"different numbers from 1 to 8, .*: windows=\[4,8\]"):
        check_windows(windows, 8)


def test_several_windows_are_of_one_checkpoint_and_process():
    for argument, line in [
        ("checkpoint=[a,b]", r"windows=\[4, 8\] compares windows of one checkpoint, got 2: checkpoint=FOLDER"),
        ("trainer.strategy=fsdp2", r"windows=\[4, 8\] does not run under trainer.strategy=fsdp2"),
        ("perturb=table", r"windows=\[4, 8\] and perturb=table each need runs of their own: windows=\[4\]"),
    ]:
        with pytest.raises(UserError, match=line):
            plan("windows=[4,8]", argument)


def test_a_table_of_perturbations_runs_one_checkpoint_under_each():
    found = plan("perturb=table", "checkpoint=mine")
    assert [(label, checkpoint_name(node)) for label, node in found.policies.items()] == [("clean", "mine")]
    assert list(found.harder) == list(PERTURBATIONS)
    assert found.harder["blur"] == found.sim | {"perturb": ["blur"]}
    assert "Blur(kernel=5), Occlusion(share=0.5" in found.rules()["perturbations"]
    assert plan().harder == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpoint=[a,b]"], "of one checkpoint, got 2: checkpoint=FOLDER"),
        (["sim.perturb=[blur]"], r"with none, but sim.perturb=\['blur'\]: sim.perturb=\[\]"),
        (["trainer.strategy=fsdp2"], "trainer.strategy=ddp"),
    ],
)
def test_what_a_table_of_perturbations_refuses(arguments, message):
    with pytest.raises(UserError, match=message):
        plan("perturb=table", *arguments)


def test_perturbed_simulators_are_not_as_published():
    assert "sim.perturb=['blur'] (none)" in plan("protocol=oft", "sim.perturb=[blur]").remarks()[0]
