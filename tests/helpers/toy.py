"""A world small enough to check by hand, where the simulator itself is not what a test is about.

`ToyPool` fulfils `SimulatorPool` in this process: an episode lasts as long as its initial state says and succeeds when
its commands were positive enough by then. `ToyPolicy` fulfils `Policy` with one linear layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vla_rl.functional.token_scores import token_entropy, token_score_sq
from vla_rl.types import ActionChunk, ChunkBatch, Episode, Observation, Policy, SlotEvent

L, A, BINS = 2, 3, 4
HORIZON = 12  # control steps


class ToyPool:
    """Slots step one after the other, in an order that depends on `slots`: results must not."""

    def __init__(self, slots: int = 2, tasks: tuple[int, ...] = (0, 1)) -> None:
        self.slots, self.tasks, self.max_chunks = slots, list(tasks), HORIZON // L
        self.chunk_steps, self.init_states, self.images = L, None, 1
        self.started: list[Episode] = []
        self._state: dict[int, tuple[Episode, int, float]] = {}  # slot -> episode, steps so far, score
        self._ready: list[SlotEvent] = []

    def start(self, slot: int, episode: Episode) -> None:
        assert slot not in self._state, "a slot is started twice"
        assert episode.task in self.tasks, f"task {episode.task} is not one of the pool's, {self.tasks}"
        self.started.append(episode)
        self._state[slot] = (episode, 0, 0.0)
        self._push(slot, executed=0, done=False, success=False)

    def step(self, slot: int, command_LA: Tensor) -> None:
        episode, steps, score = self._state[slot]
        length = 4 + episode.init_state % 5  # an episode that would succeed ends after 4..8 steps, else at the horizon
        executed = 0
        success = False
        for command_A in command_LA:
            executed += 1
            steps += 1
            score += float(command_A[0])
            if success := steps >= length and score > 2:
                break
            if steps >= HORIZON:
                break
        self._state[slot] = (episode, steps, score)
        done = success or steps >= HORIZON
        self._push(slot, executed=executed, done=done, success=success)
        if done:
            del self._state[slot]

    def abandon(self, slot: int) -> None:
        del self._state[slot]

    def wait(self) -> list[SlotEvent]:
        assert self._ready, "wait() would block for ever"
        events, self._ready = self._ready[::-1], []
        return events

    def preferred_slot(self, free: list[int], episode: Episode) -> int:
        return free[-1]

    def close(self) -> None:
        pass

    def _push(self, slot: int, *, executed: int, done: bool, success: bool) -> None:
        episode, steps, score = self._state[slot]
        observed = torch.tensor([1.0, steps / HORIZON, score, episode.init_state / 10])
        frame_HWC = torch.full((2, 2, 3), steps, dtype=torch.uint8)
        self._ready.append(
            SlotEvent(slot, executed, success, done, frame_HWC, observed, instruction=f"task {episode.task}")
        )


class ToyPolicy(Policy):
    chunk_steps = L
    OFFERS = frozenset({"score_sq", "hidden", "state"})
    state_dims = L * A * BINS
    action_code = "toy"

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, L * A * BINS)
        with torch.no_grad():
            self.head.weight.copy_(torch.linspace(-1, 1, self.head.weight.numel()).view_as(self.head.weight))
            self.head.bias.zero_()

    def _log_softmax(self, proprio_NP: Tensor, temperature: float) -> Tensor:
        return (self.head(proprio_NP).view(-1, L, A, BINS) / temperature).log_softmax(-1)

    @torch.no_grad()
    def act(self, observation: Observation, seed_N: list[int], temperature: float) -> ActionChunk:
        # row by row, so that a row's floats do not depend on who else waits
        rows = [self._act(p, seed, temperature) for p, seed in zip(observation.proprio_NP, seed_N, strict=True)]
        token, logprob, entropy, score_sq = (torch.stack(parts) for parts in zip(*rows, strict=True))
        action = token.float() / (BINS - 1) * 2 - 1
        state = torch.cat([self.head(p[None]) for p in observation.proprio_NP])
        offers = {"score_sq": score_sq, "hidden": observation.proprio_NP.repeat(1, 2), "state": state}
        extras = {name: offers[name] for name in self.extras}
        return ActionChunk({"token": token}, logprob, action, action, entropy, extras)

    def _act(self, proprio_P: Tensor, seed: int, temperature: float) -> tuple[Tensor, ...]:
        logp = self._log_softmax(proprio_P[None], temperature or 1.0)[0]
        if not temperature:
            token = logp.argmax(-1)
        else:
            generator = torch.Generator().manual_seed(seed)
            token = torch.multinomial(logp.exp().view(-1, BINS), 1, generator=generator).view(L, A)
        return token, logp.gather(-1, token[..., None])[..., 0], token_entropy(logp), token_score_sq(logp, token)

    def log_prob(self, batch: ChunkBatch, temperature: float) -> tuple[Tensor, Tensor]:
        logprob_NLA, entropy_NLA, _ = self._score(batch, temperature)
        return logprob_NLA, entropy_NLA

    def log_prob_and_state(self, batch: ChunkBatch, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        return self._score(batch, temperature)

    def _score(self, batch: ChunkBatch, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        # neither calls the other: where the policy is sharded, each is a forward of its own
        logits_ND = self.head(batch.proprio_NP)
        logp = (logits_ND.view(-1, L, A, BINS) / temperature).log_softmax(-1)
        token_NLA1 = batch.actions.drawn["token"][..., None]
        return logp.gather(-1, token_NLA1)[..., 0], -(logp.exp() * logp).sum(-1), logits_ND


class ChunkPool(ToyPool):
    """As `ToyPool`, for policies of OpenVLA-OFT's interface: chunks of 8 control steps, 8 proprioceptive numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.chunk_steps, self.max_chunks = 8, 2

    def _push(self, slot: int, **outcome) -> None:
        super()._push(slot, **outcome)
        event = self._ready[-1]
        event.proprio_P = event.proprio_P.repeat(2)
        event.instruction = "pick up the alphabet soup and place it in the basket"  # words that its tokenizer knows
