"""What has to be right on a machine before a run: one function per check, each a verdict with its facts and a remedy.

A check returns a `CheckResult`, or raises: any exception is a failure whose message is the cause. Heavy packages are
imported inside the checks, so that one that is missing or broken fails its own check only.
"""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

from packaging.requirements import Requirement

from vla_rl.config.schema import Config, Node
from vla_rl.errors import UserError
from vla_rl.machine import cores

Status = Literal["pass", "warn", "fail"]
# Installed beside the package, without its dependencies (see pyproject.toml).
BESIDE = ("hf-libero==0.1.4",)
SIMULATOR = ("mujoco", "robosuite", "bddl", "hf-libero")  # other versions of these give other results
MISSING = "not installed"
POOL = "vla_rl.LiberoPool"  # one that can be checked
CHUNK_STEPS, CHUNKS_TIMED = 8, 4


@dataclass(frozen=True, slots=True)
class CheckResult:
    """A check's verdict: the facts, and what to do about them (empty on a pass)."""

    check: str
    status: Status
    detail: str
    remedy: str = ""


def run_checks(config: Config) -> Iterator[CheckResult]:
    """All checks, as they finish."""
    for name, (check, remedy) in CHECKS.items():
        try:
            yield check(config)
        except Exception as error:  # any exception is a failed check
            yield CheckResult(name, "fail", _cause(error), remedy)


def _cause(error: Exception) -> str:
    """One line: of a traceback inside the message its last line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join((lines[-1] if "Traceback" in str(error) else " ".join(lines)).split())


# ------------------------------------------------------------------------------------------------------------- checks


def check_versions(_config: Config) -> CheckResult:
    """Installed packages against what pyproject.toml asks for; the simulator's are pinned exactly."""
    lines = [*(metadata.requires("vla-rl") or ()), *BESIDE]
    requirements = [r for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate({"extra": ""})]
    installed = {r.name: _installed(r.name) for r in requirements}
    wrong = [r for r in requirements if installed[r.name] == MISSING or not r.specifier.contains(installed[r.name])]
    if not wrong:
        pinned = ", ".join(f"{r.name} {installed[r.name]}" for r in requirements if "==" in str(r.specifier))
        return CheckResult("versions", "pass", f"Python {platform.python_version()}, {pinned}")
    names = [r.name for r in wrong]
    detail = "; ".join(f"{r.name} {installed[r.name]}, needed {r.specifier or 'any'}" for r in wrong)
    if "mujoco" in names:
        detail += " (other MuJoCo versions render darker and change contacts: success rates differ)"
    fails = any(name in SIMULATOR or installed[name] == MISSING for name in names)
    alone = "--no-deps " if "hf-libero" in names else ""
    packages = " ".join(f"'{r.name}{r.specifier}'" for r in wrong)
    return CheckResult("versions", "fail" if fails else "warn", detail, f"pip install {alone}{packages}")


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return MISSING


def check_gl(_config: Config) -> CheckResult:
    """Each off-screen GL backend draws a frame in a child process; the one a run would choose must."""
    from vla_rl.sim import gl
    from vla_rl.sim.gl_frame import draw_in_child

    found = {}
    for backend in gl.BACKENDS:
        if not gl.loads(backend):
            found[backend] = "not installed"
            continue
        try:
            frame = draw_in_child(backend)
            found[backend] = f"frame {frame['sha256']}, brightness {frame['brightness']}, {frame['ms']} ms at 128 px"
        except RuntimeError as error:
            found[backend] = f"draws nothing: {error}"
    facts = "; ".join(f"{backend}: {what}" for backend, what in found.items())
    chosen = gl.check_gl()  # raises if there is none
    if not found[chosen].startswith("frame"):
        raise RuntimeError(facts)
    return CheckResult("gl", "pass", f"{chosen} is used; {facts}")


def check_world(config: Config) -> CheckResult:
    """What the simulators need: the pool says what it is for its own world."""
    from vla_rl.config.instantiate import import_path

    sim = config.sim or {}
    target = str(sim.get("_target_"))
    pool: Any = import_path(target, f"(sim._target_={target})")
    if not hasattr(pool, "facts"):
        return _unknown_world("world", target)
    try:
        return CheckResult("world", "pass", pool.facts(**{k: v for k, v in sim.items() if k != "_target_"}))
    except UserError as error:
        return CheckResult("world", "fail", _cause(error), pool.remedy)


def _unknown_world(check: str, target: str) -> CheckResult:
    return CheckResult(check, "warn", f"not checked: {target} says nothing of its world", f"sim._target_={POOL}")


def check_simulator(config: Config) -> CheckResult:
    """A simulator process of the config's first task: build, reset, step and render, timed."""
    from vla_rl.config.instantiate import build
    from vla_rl.types import Episode

    sim = config.sim or {}
    build(sim, "sim").close()  # refuses options of the run that the timing does not take
    node = sim | {
        "workers": 1,
        "chunk_steps": CHUNK_STEPS,
        "horizon": 9 * CHUNKS_TIMED,
    }  # 1 and 8 steps at a time
    with closing(build(node, "sim")) as pool:
        if not hasattr(pool, "idle_A"):
            return _unknown_world("simulator", str(sim.get("_target_")))
        began = time.perf_counter()
        pool.start(0, Episode(uid=0, task=pool.tasks[0], init_state=0, seed=0))
        pool.wait()
        build_s = time.perf_counter() - began
        seconds = {rows: statistics.median(_timed_chunk(pool, rows) for _ in range(CHUNKS_TIMED)) for rows in (1, 8)}
    step_ms = 1000 * (seconds[8] - seconds[1]) / 7  # a command of h rows takes h steps and one frame
    frame_ms = max(0.0, 1000 * seconds[1] - step_ms)
    return CheckResult(
        "simulator",
        "pass",
        f"built and reset in {build_s:.1f} s; a control step {step_ms:.1f} ms, a frame {frame_ms:.1f} ms",
    )


def _timed_chunk(pool, rows: int) -> float:
    import torch

    began = time.perf_counter()
    pool.step(0, torch.tensor(pool.idle_A).repeat(rows, 1))
    pool.wait()
    return time.perf_counter() - began


def check_devices(config: Config) -> CheckResult:
    """Torch, and that the devices the trainer asks for are there."""
    import torch

    facts = f"torch {torch.__version__}, {cores()} CPU cores"
    names = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    facts += "".join(f", {p.name} with {p.total_memory / 1e9:.0f} GB" for p in names) or ", no GPU"
    if _wants_gpu(config) and not names:
        raise RuntimeError(f"the trainer asks for a GPU, but torch sees none ({facts}; CUDA {torch.version.cuda})")
    wanted = (config.trainer or {}).get("devices")
    if _wants_gpu(config) and isinstance(wanted, int) and wanted > len(names):
        return CheckResult("devices", "fail", f"trainer.devices={wanted}, but {facts}", f"trainer.devices={len(names)}")
    return CheckResult("devices", "pass", facts)


def _wants_gpu(config: Config) -> bool:
    return (config.trainer or {}).get("accelerator") in ("gpu", "cuda")


def check_checkpoint(config: Config) -> CheckResult:
    """Every tensor's name, shape and values, statistics, tokenizer, adapters: read as a run reads them."""
    from vla_rl.policy.memory_check import FLOW_POLICY, POLICY
    from vla_rl.policy.openvla_oft.checkpoint import inspect_checkpoint
    from vla_rl.policy.openvla_oft.load import RANDOM_7B, check_options

    node = {name: value for name, value in (config.policy or {}).items() if name != "_target_"}
    target = (config.policy or {}).get("_target_")
    if target == FLOW_POLICY:
        return _check_flow_checkpoint(node)
    if target != POLICY:
        return CheckResult(
            "checkpoint", "warn", "not checked: the policy is not of vla_rl", f"policy._target_={POLICY}"
        )
    check_options(**{"checkpoint": None} | node)
    name = node.get("checkpoint")
    if name in (None, RANDOM_7B):
        return CheckResult(
            "checkpoint", "warn", "random weights: it cannot act", "policy.checkpoint=shipped:object_tiny"
        )
    options = {option: node[option] for option in ("unnorm_key", "action_head", "lora", "adapter") if option in node}
    return CheckResult(
        "checkpoint", "pass", f"{name}: {inspect_checkpoint(name, **options)} tensors fit, statistics read"
    )


def _check_flow_checkpoint(node: Node) -> CheckResult:
    from vla_rl.policy.flow.full_size import CONFIGS
    from vla_rl.policy.flow.load import inspect_flow_checkpoint

    name = node.get("checkpoint")
    if name is None or name in CONFIGS:
        return CheckResult(
            "checkpoint", "warn", "random weights: it cannot act", "policy.checkpoint=shipped:object_flow_tiny"
        )
    facts, without = inspect_flow_checkpoint(node)
    if without:
        detail = f"{name}: {facts}; no statistics of {' and '.join(without)}: it cannot act"
        return CheckResult("checkpoint", "warn", detail, "train it on demonstrations: python -m vla_rl.sft")
    return CheckResult("checkpoint", "pass", f"{name}: {facts}, statistics read")


def check_attention(_config: Config) -> CheckResult:
    """Attention looks ahead, on every kind of device there is and in both precisions."""
    import torch

    from vla_rl.policy.openvla_oft.llama import check_bidirectional
    from vla_rl.policy.openvla_oft.tiny import random_policy

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    llama = random_policy().model.language_model.model
    with torch.no_grad():
        for device in devices:
            for dtype in (torch.float32, torch.bfloat16):
                check_bidirectional(llama.to(device, dtype))
    return CheckResult("attention", "pass", f"bidirectional on {' and '.join(devices)}, in float32 and bfloat16")


def check_memory(config: Config) -> CheckResult:
    """The plan of an update against the device's memory."""
    import torch

    from vla_rl.policy.memory_check import PLANS, POLICY, advice, device_memory

    node = config.policy or {}
    if node.get("_target_") not in PLANS:
        return CheckResult("memory", "warn", "not checked: the policy is not of vla_rl", f"policy._target_={POLICY}")
    if _wants_gpu(config) and not torch.cuda.is_available():
        return CheckResult(
            "memory", "warn", "not checked: the trainer asks for a GPU, and there is none", "trainer=cpu"
        )
    device = torch.device("cuda", 0) if _wants_gpu(config) else torch.device("cpu")
    available = device_memory(device)
    rows, optimizer = config.grpo.micro_rows, config.optim.optimizer
    plan = PLANS[node["_target_"]](
        node, rows=rows, optimizer=optimizer, available=available, shards=_shards(config.trainer or {})
    )
    facts = f"{plan} of {available / 1e9:.2f} on {device.type}"
    if plan.total > available:
        return CheckResult("memory", "fail", facts, advice(node, plan, available, "grpo.micro_rows"))
    return CheckResult("memory", "pass", facts)


def _shards(trainer: Node) -> int:
    """Ranks that the weights are spread over."""
    strategy, ranks = trainer.get("strategy"), (trainer.get("devices", 1), trainer.get("num_nodes", 1))
    name = strategy.get("_target_") if isinstance(strategy, dict) else strategy
    if name not in ("fsdp2", "vla_rl.FSDP2") or not all(type(count) is int and count > 0 for count in ranks):
        return 1
    return math.prod(ranks)


# Name -> check, and the remedy where the check raises.
CHECKS: dict[str, tuple[Callable[[Config], CheckResult], str]] = {
    "versions": (check_versions, "install the package again: make setup"),
    "gl": (
        check_gl,
        "on Debian: apt-get install libegl1 libgl1 libgles2 libegl-mesa0 (egl) or libosmesa6 (osmesa); unset MUJOCO_GL",
    ),
    "world": (check_world, "choose another world: sim=libero_object_tiny"),
    "simulator": (
        check_simulator,
        "mend what is above first; a file missing in LIBERO's assets folder: sim.assets=standin",
    ),
    "devices": (check_devices, "trainer=cpu; or install the driver and a torch that goes with it"),
    "checkpoint": (
        check_checkpoint,
        "download or copy it again; to try without it: policy.checkpoint=shipped:object_tiny",
    ),
    "attention": (check_attention, "use torch as pinned, without packages that replace its attention"),
    "memory": (check_memory, "give options of the policy that go together, or a preset: policy=openvla_oft_7b_24gb"),
}
