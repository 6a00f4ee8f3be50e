"""`python -m vla_rl.serve checkpoint=FOLDER`: a policy behind a websocket, for robots and other people's simulators.

    conf=pcm_object       whose policy and trainer are used; default: pcm_object_tiny, the small policy on a CPU
    checkpoint=FOLDER     a folder, an adapter's folder, shipped:NAME or a hub name; default: the conf's policy
    host=0.0.0.0          default 127.0.0.1: this machine alone. There is no encryption and no password
    port=8000             0 takes any that is free
    decoding=sampled      at the conf's rollout.temperature; default: greedy
    window=5              control steps of a chunk that are sent; default: all
    turned=false          pictures arrive as the simulator renders them; default: turned by 180 degrees, as openpi's
                          clients for LIBERO send them
    max_batch=8           requests of one forward; also max_message_mb, requests_per_s, max_clients

Speaks openpi's protocol (`pip install openpi-client`): docs/serving.md has a robot's loop. A Ctrl-C or SIGTERM answers
what is under way and ends.
"""

from __future__ import annotations

from vla_rl.config.arguments import serve_arguments
from vla_rl.config.schema import Config, ServeConfig
from vla_rl.run.cli import answer_early, run_entry

if __name__ == "__main__":
    # before the imports below, which take seconds
    answer_early(__doc__, parse=lambda argv: serve_arguments(argv)[1])

import asyncio
import signal

import lightning as L

import vla_rl
from vla_rl.checks import check_count, check_number
from vla_rl.config.instantiate import build, check
from vla_rl.config.policy_node import policy_node
from vla_rl.errors import UserError
from vla_rl.evaluation.plan import checkpoint_name
from vla_rl.training.trainer import make_trainer
from vla_rl.types import Policy


def main(argv: list[str]) -> None:
    options, config = serve_arguments(argv)
    check_options(options)
    check(config)
    trainer = make_trainer(config, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    L.seed_everything(config.seed, verbose=False)
    node = policy_node(config.policy or {}, options.checkpoint)
    policy: Policy = build(node, "policy").to(trainer.strategy.root_device).eval()
    policy.check_can_act()
    if options.window is not None:
        check_count("window", options.window, policy.chunk_steps, most=policy.chunk_steps)
    answered = asyncio.run(serve(policy, options, config, checkpoint_name(node)))
    print(f"stopped after {answered} answers", flush=True)


def check_options(options: ServeConfig) -> None:
    """Raise UserError where a value is out of its range."""
    check_count("port", options.port, 8000, least=0, most=65535)
    check_count("max_batch", options.max_batch, 8)
    check_count("max_clients", options.max_clients, 64)
    check_number("max_message_mb", options.max_message_mb, 16, above=0)
    check_number("requests_per_s", options.requests_per_s, 100, above=0)


async def serve(policy: Policy, options: ServeConfig, config: Config, name: str) -> int:
    """Serve until a signal; how many requests were answered."""
    try:
        from vla_rl.serving.batcher import Batcher
        from vla_rl.serving.request import Expected
        from vla_rl.serving.server import Limits, PolicyServer
    except ModuleNotFoundError as e:
        raise UserError(f"serving needs {e.name}, which is not installed: pip install 'vla-rl[serve]'") from e

    temperature = 0.0 if options.decoding == "greedy" else config.rollout.temperature
    batcher = Batcher(policy, temperature=temperature, max_batch=options.max_batch)
    expected = Expected(policy.images, policy.proprio_dims, options.turned)
    limits = Limits(int(options.max_message_mb * 1e6), options.requests_per_s, options.max_clients)
    metadata = {
        "policy": name,
        "vla_rl": vla_rl.__version__,
        "chunk_steps": policy.chunk_steps,
        "window": options.window or policy.chunk_steps,
        "images": policy.images,
        "state_dims": policy.proprio_dims,
        "turned": options.turned,
        "decoding": options.decoding,
        "temperature": temperature if options.decoding == "sampled" else None,
    }
    server = PolicyServer(batcher, expected, limits, metadata=metadata, window=options.window, seed=config.seed)
    stop = asyncio.Event()
    for sent in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(sent, stop.set)

    def started(port: int) -> None:
        print(f"serving {name} on ws://{options.host}:{port}", flush=True)

    await server.run(options.host, options.port, stop, started)
    return server.answered


if __name__ == "__main__":
    run_entry(main)
