"""From an observation to what a flow model reads, and from its numbers to commands: lerobot's rules (0.6.1), in torch.

    pictures     turned by 180 degrees, resized without distortion, padded, in [-1, 1]
    state        normalised, then padded with zeros, or written into the prompt (pi0.5)
    instruction  with a newline, or as `Task: ..., State: ...;\\nAction: `, then token ids
    actions      the first columns of the model's numbers, un-normalised

Shapes: see `vla_rl.policy.flow.model`, and
    A, P  real columns of actions and of the state
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vla_rl.errors import UserError
from vla_rl.policy.flow.model import Inputs
from vla_rl.policy.tokenizer import read_tokenizer
from vla_rl.types import Observation

STATE_BINS = 256
BOS = "<bos>"
Mode = Literal["IDENTITY", "MEAN_STD", "QUANTILES", "QUANTILE10", "MIN_MAX"]
STATISTICS_OF: dict[Mode, tuple[str, ...]] = {
    "IDENTITY": (),
    "MEAN_STD": ("mean", "std"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
    "MIN_MAX": ("min", "max"),
}


@dataclass(frozen=True, slots=True)
class Normaliser:
    """Of a state or an action. A feature without statistics passes unchanged.

    Args:
        statistics: by name, float32 [dims] each.
        eps: added to a standard deviation, and in place of a range of 0.
    """

    mode: Mode
    statistics: Mapping[str, Tensor]
    eps: float = 1e-8

    @property
    def complete(self) -> bool:
        """It has what its mode needs."""
        return all(name in self.statistics for name in STATISTICS_OF[self.mode])

    def normalize(self, value: Tensor) -> Tensor:
        """MEAN_STD: (x - mean) / (std + eps); the others: 2 (x - low) / (high - low) - 1. Nothing is clipped."""
        if not self._known:
            return value
        first, second = self._known
        if self.mode == "MEAN_STD":
            return (value - first) / (second + self.eps)
        return 2 * (value - first) / self._span(first, second) - 1

    def unnormalize(self, value: Tensor) -> Tensor:
        """The inverse; MEAN_STD without eps."""
        if not self._known:
            return value
        first, second = self._known
        if self.mode == "MEAN_STD":
            return value * second + first
        return (value + 1) * self._span(first, second) / 2 + first

    @property
    def _known(self) -> list[Tensor]:
        return [self.statistics[name] for name in STATISTICS_OF[self.mode]] if self.complete else []

    def _span(self, low: Tensor, high: Tensor) -> Tensor:
        return torch.where(high == low, self.eps, high - low)


@dataclass(frozen=True, slots=True)
class PromptRules:
    """How an instruction becomes token ids.

    Args:
        with_state: the state is written into it, as pi0.5 reads it.
        slots: tokens that it is cut to.
        padded: always to `slots` tokens; else to the longest of the batch.
        state_numbers: written of the state, zeros appended; None = the real ones. lerobot up to 0.4.4 wrote 32.
    """

    with_state: bool
    slots: int
    padded: bool = True
    state_numbers: int | None = None


class Processors:
    """Both ways between observations, commands and a flow model.

    Args:
        kind: "pi0", "pi05" or "smolvla".
        cameras: names of the cameras that an observation brings, in the order of its frame's channels.
        missing: cameras that the model was trained with and an observation lacks: pictures of -1, masked, at the end.
        picture_px: height and width of the model's pictures.
        state, action: normalisers; the number of real columns is `proprio_dims`, `action_dims`.
        state_width: columns that the state is padded to.
        tokenizer: content of a tokenizer.json.
        vocabulary: tokens that the model embeds.

    Raises:
        UserError: the tokenizer is none, or not the model's.
    """

    def __init__(
        self,
        kind: str,
        *,
        cameras: Sequence[str],
        missing: int,
        picture_px: tuple[int, int],
        proprio_dims: int,
        action_dims: int,
        state: Normaliser,
        action: Normaliser,
        state_width: int,
        prompt: PromptRules,
        tokenizer: str,
        vocabulary: int,
    ) -> None:
        self.kind, self.cameras, self.missing, self.picture_px = kind, tuple(cameras), missing, picture_px
        self.proprio_dims, self.action_dims = proprio_dims, action_dims
        self.state, self.action, self.state_width, self.prompt = state, action, state_width, prompt
        self._tokenizer = read_tokenizer(tokenizer, vocabulary, sample="Task:\n", special_tokens=True)
        bos = None if kind == "smolvla" else self._tokenizer.token_to_id(BOS)
        self._before = [] if bos is None else [bos]  # pi0 and pi0.5 begin with it, SmolVLA does not
        self._ids: dict[str, list[int]] = {}  # an evaluation asks for the same few prompts thousands of times

    @property
    def images(self) -> int:
        return len(self.cameras)

    def inputs(self, observation: Observation, device: torch.device) -> Inputs:
        """What the model reads of N observations, on `device`.

        Raises:
            UserError: another number of cameras or of proprioception, or no statistics of the state.
        """
        n = len(observation.instruction_N)
        self._check(observation)
        pixels = self.pictures(observation.frame_NHWC.to(device))
        mask_NV = torch.ones(n, len(pixels), dtype=torch.bool, device=device)
        pixels += [torch.full_like(pixels[0], -1.0)] * self.missing
        mask_NV = F.pad(mask_NV, (0, self.missing), value=False)
        state_NP = observation.proprio_NP.cpu().float() if self.proprio_dims else torch.zeros(n, 0)
        state_NP = self.state.normalize(state_NP)
        ids_NT, mask_NT = self.tokens(self.prompts(observation.instruction_N, state_NP))
        state_ND = None if self.prompt.with_state else pad_columns(state_NP, self.state_width).to(device)
        return Inputs(pixels, mask_NV, ids_NT.to(device), mask_NT.to(device), state_ND)

    def _check(self, observation: Observation) -> None:
        images, dims = observation.frame_NHWC.shape[3] // 3, observation.proprio_NP.shape[1]
        if images != self.images:
            raise UserError(
                f"the policy reads {self.images} cameras ({', '.join(self.cameras)}), an observation has {images}: "
                f"policy.cameras=[{','.join(self.cameras[:images])}]"
            )
        if self.proprio_dims not in (0, dims):
            raise UserError(
                f"the checkpoint reads {self.proprio_dims} numbers of proprioception, an observation has {dims}: it is "
                "of another robot (policy.checkpoint=FOLDER)"
            )
        if self.proprio_dims:
            _check_complete(self.state, "observation.state")

    def check_complete(self) -> None:
        """Raise UserError where statistics of the state or of actions are missing."""
        if self.proprio_dims:
            _check_complete(self.state, "observation.state")
        _check_complete(self.action, "action")

    def pictures(self, frame_NHWC: Tensor) -> list[Tensor]:
        """Of each camera, [N, 3, h, w] in [-1, 1]: both axes turned, as the demonstrations of LIBERO lie."""
        images = frame_NHWC.permute(0, 3, 1, 2).flip(2, 3).float() / 255
        # SmolVLA pads on the left and on top
        return [resize_with_padding(image, *self.picture_px, centred=self.kind != "smolvla") * 2 - 1
                for image in images.split(3, dim=1)]  # fmt: skip

    def prompts(self, instruction_N: Sequence[str], state_NP: Tensor) -> list[str]:
        """The texts, of normalised states."""
        if not self.prompt.with_state:
            return [text if text.endswith("\n") else f"{text}\n" for text in instruction_N]
        if self.prompt.state_numbers is not None:
            state_NP = pad_columns(state_NP, self.prompt.state_numbers)
        tasks = [text.strip().replace("_", " ").replace("\n", " ") for text in instruction_N]
        states = [" ".join(map(str, bins)) for bins in state_bins(state_NP).tolist()]
        return [f"Task: {task}, State: {state};\nAction: " for task, state in zip(tasks, states, strict=True)]

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids [N, T], cut and padded on the right, and which are real."""
        rows = [self._encode(text) for text in texts]
        length = self.prompt.slots if self.prompt.padded else max(map(len, rows))
        ids_NT = torch.zeros(len(rows), length, dtype=torch.int64)
        mask_NT = torch.zeros(len(rows), length, dtype=torch.bool)
        for n, row in enumerate(rows):
            ids_NT[n, : len(row)] = torch.tensor(row)
            mask_NT[n, : len(row)] = True
        return ids_NT, mask_NT

    def _encode(self, text: str) -> list[int]:
        if self.prompt.with_state and self.proprio_dims:  # hardly ever the same text again
            return self._encode_now(text)
        if text not in self._ids:
            self._ids[text] = self._encode_now(text)
        return self._ids[text]

    def _encode_now(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text).ids
        before = [] if ids[:1] == self._before else self._before  # some files add it themselves
        return (before + ids)[: self.prompt.slots]

    def fit(self, command_TA: Tensor, state_TP: Tensor) -> dict[str, Tensor]:
        """Normalise by the statistics of demonstrations what has none; these, by the names that checkpoints use."""
        measured = {}
        if not self.action.complete:
            measured["action"] = measure(command_TA)
            self.action = replace(self.action, statistics=measured["action"])
        if self.proprio_dims and not self.state.complete:
            measured["observation.state"] = measure(state_TP)
            self.state = replace(self.state, statistics=measured["observation.state"])
        return {f"{feature}.{name}": value for feature, of in measured.items() for name, value in of.items()}

    def commands(self, action_NLA: Tensor) -> Tensor:
        """What the simulator executes for the model's real columns, float32 [N, L, A].

        Raises:
            UserError: no statistics of actions.
        """
        _check_complete(self.action, "action")
        return self.action.unnormalize(action_NLA).clip(-1, 1)

    def targets(self, command_NLA: Tensor, width: int) -> Tensor:
        """Commands as the model's numbers [N, L, width], zeros in the padded columns."""
        return pad_columns(self.action.normalize(command_NLA.cpu().float()), width)


def _check_complete(normaliser: Normaliser, feature: str) -> None:
    if not normaliser.complete:
        raise UserError(
            f"the checkpoint has no statistics of {feature}, which {normaliser.mode} needs: train it on demonstrations "
            "first (python -m vla_rl.sft), or take one that was trained for this robot (policy.checkpoint=FOLDER)"
        )


def measure(value_TD: Tensor) -> dict[str, Tensor]:
    """Statistics of each column over all control steps, float32."""
    value_TD = value_TD.double()
    found = {
        "mean": value_TD.mean(0),
        "std": value_TD.std(0, correction=0),
        "min": value_TD.amin(0),
        "max": value_TD.amax(0),
        "q01": value_TD.quantile(0.01, dim=0),
        "q10": value_TD.quantile(0.10, dim=0),
        "q90": value_TD.quantile(0.90, dim=0),
        "q99": value_TD.quantile(0.99, dim=0),
    }
    return {name: value.float() for name, value in found.items()}


def pad_columns(value: Tensor, width: int) -> Tensor:
    """Zeros appended to the last axis up to `width`."""
    return F.pad(value, (0, width - value.shape[-1]))


def state_bins(state_NP: Tensor) -> Tensor:
    """The bin of each normalised number: 0..255 in [-1, 1], 255 above, -1 below; as numpy.digitize, minus 1.

    Example:
        >>> state_bins(torch.tensor([[-1.5, -1.0, 0.0, 0.9922, 7.0]])).tolist()
        [[-1, 0, 128, 255, 255]]
    """
    edges = torch.linspace(-1, 1, STATE_BINS + 1, dtype=torch.float64)[:-1]
    return torch.bucketize(state_NP.double(), edges, right=True) - 1


def resize_with_padding(image_NCHW: Tensor, height: int, width: int, *, centred: bool) -> Tensor:
    """Pictures in [0, 1], made as large as fits without distortion, zeros around them.

    The size is truncated; bilinear with half-pixel centres, without antialiasing, as the published models were trained.

    Args:
        centred: the padding is on both sides, the odd pixel to the right and below; else on the left and on top.

    Example: 25 x 40 for 28 x 28: the ratio is 40 / 28, the new size 17 x 28, 5 rows above and 6 below.
    """
    h, w = image_NCHW.shape[2:]
    if (h, w) == (height, width):
        return image_NCHW
    ratio = max(w / width, h / height)
    new_h, new_w = int(h / ratio), int(w / ratio)
    resized = F.interpolate(image_NCHW, (new_h, new_w), mode="bilinear", align_corners=False)
    down, right = height - new_h, width - new_w
    top, left = (down // 2, right // 2) if centred else (down, right)
    return F.pad(resized.clip(0, 1), (left, right - left, top, down - top))
