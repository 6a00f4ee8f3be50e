"""From what the simulator gives to what the model reads: prompts to token ids, uint8 frames to normalised pixels.

Both resizes of the published image path (lanczos3 to the model's size; centre crop, stretched back bilinearly) are
linear and treat rows and columns alike, so one fixed matrix does both for a whole batch: pixels = M frame M^T.
`PublishedPixels` is that path step by step, with its JPEG round trip and its roundings.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn

from vla_rl.errors import UserError
from vla_rl.policy.entries import check_numbers, check_positive
from vla_rl.policy.openvla_oft.config import BOS_ID, STOP_ID, OpenVLAConfig
from vla_rl.policy.tokenizer import read_tokenizer

PROMPT = "In: What action should the robot take to {instruction}?\nOut:"
FINAL_TOKEN = "▁"  # id 29871 of Llama-2: the published prompts end in it
JPEG_QUALITY = 95
DEFAULT_CROP_AREA = 0.9  # of published checkpoints, whose preprocessor_config.json does not say


class Prompts:
    """Instructions to token ids without BOS, padded on the left.

    The model puts BOS and `</s>` around the prompt itself, so what a tokenizer.json says about special tokens,
    truncation and padding is not applied.

    Args:
        tokenizer_json: content of the checkpoint's `tokenizer.json`.

    Raises:
        UserError: it is no tokenizer, or not one of this model.
    """

    def __init__(self, tokenizer_json: str, config: OpenVLAConfig) -> None:
        self._tokenizer = _tokenizer(tokenizer_json, config)
        self._config = config
        self._final_id = self._tokenizer.token_to_id(FINAL_TOKEN)
        self._unknown_id = self._tokenizer.token_to_id("<unk>")
        self._ids: dict[str, list[int]] = {}  # an evaluation asks for the same few instructions thousands of times

    def __call__(self, instruction_N: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids int64 [N, T] and their mask, bool [N, T] with False for padding.

        Raises:
            UserError: an instruction with words the tokenizer does not know, or too long for the checkpoint.
        """
        rows = [self._encode(text) for text in instruction_N]
        length = self._config.prompt_tokens or max(map(len, rows))
        ids = torch.full((len(rows), length), self._config.pad_id)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for n, row in enumerate(rows):
            ids[n, length - len(row) :] = torch.tensor(row)
            mask[n, length - len(row) :] = True
        return ids, mask

    def _encode(self, instruction: str) -> list[int]:
        if instruction not in self._ids:
            row = self._tokenizer.encode(PROMPT.format(instruction=instruction.lower()), add_special_tokens=False).ids
            if self._unknown_id in row:
                raise UserError(f"the checkpoint's tokenizer does not know every word of {instruction!r}")
            row += [cast(int, self._final_id)] if row[-1] != self._final_id else []
            if 0 < self._config.prompt_tokens < len(row):
                raise UserError(
                    f"{instruction!r} takes {len(row)} tokens, the checkpoint's prompts {self._config.prompt_tokens}"
                )
            self._ids[instruction] = row
        return self._ids[instruction]


def _tokenizer(content: str, config: OpenVLAConfig) -> Tokenizer:
    tokenizer = read_tokenizer(content, config.llama.vocab, sample=PROMPT, special_tokens=False)
    if tokenizer.token_to_id(FINAL_TOKEN) is None:
        raise UserError(f"tokenizer.json has no token {FINAL_TOKEN!r}, which every prompt ends in: is it a Llama-2's?")
    for token, model_id in (("<s>", BOS_ID), ("</s>", STOP_ID)):
        own_id = tokenizer.token_to_id(token)
        if own_id not in (None, model_id):
            raise UserError(f"tokenizer.json: the id of {token!r} is {own_id}, the model's is {model_id}")
    return tokenizer


class Pixels(nn.Module):
    """uint8 frames [N, H, W, 3] as rendered to pixels [N, 6, px, px]: rotated by 180 degrees, resized, normalised.

    Several images lie one after the other on the channels, of frames and of pixels.

    Args:
        preprocessor: content of `preprocessor_config.json`. Published means and stds are rounded to bfloat16.
    """

    means: Tensor
    stds: Tensor
    resize: Tensor | None

    def __init__(self, preprocessor: dict[str, Any], image_px: int) -> None:
        super().__init__()
        self.image_px = image_px
        self.crop_area = check_positive(
            preprocessor.get("center_crop_area", DEFAULT_CROP_AREA), "preprocessor_config.json: center_crop_area"
        )
        if self.crop_area > 1:
            raise UserError(f"preprocessor_config.json: center_crop_area must be at most 1, got {self.crop_area}")
        for name in ("means", "stds"):
            constants = torch.tensor(_per_tower(preprocessor.get(name), name)).reshape(1, 6, 1, 1)
            self.register_buffer(name, constants, persistent=False)
        if not (self.stds > 0).all():
            raise UserError(f"preprocessor_config.json: 'stds' must be above 0, got {preprocessor['stds']}")
        self.register_buffer("resize", None, persistent=False)

    def forward(self, frame_NHWC: Tensor, dtype: torch.dtype) -> Tensor:
        n, images = len(frame_NHWC), frame_NHWC.shape[3] // 3
        image = (self.resized(frame_NHWC) / 255).reshape(n * images, 3, self.image_px, self.image_px)
        pixels = (image.repeat(1, 2, 1, 1) - self.means) / self.stds
        return pixels.to(dtype).reshape(n, 6 * images, self.image_px, self.image_px)

    def resized(self, frame_NHWC: Tensor) -> Tensor:
        """Float images [N, channels, px, px] with values in 0..255, as the cameras of the training data stood."""
        frame_px = frame_NHWC.shape[1]
        image = frame_NHWC.permute(0, 3, 1, 2).flip(2, 3).float()
        if frame_px != self.image_px or self.crop_area < 1:
            matrix = self.resize
            if matrix is None or matrix.shape[1] != frame_px:
                matrix = self.resize = resize_matrix(frame_px, self.image_px, self.crop_area).to(frame_NHWC.device)
            image = (matrix @ image @ matrix.T).clip(0, 255)
        return image


class PublishedPixels(Pixels):
    """The path of the published training data and evaluation (openvla-oft's, in TensorFlow), rounding where it does.

    Rotate by 180 degrees, JPEG round trip at quality 95, lanczos3 to the model's size and round; centre crop, stretched
    back bilinearly, and round down after a scale of 255.5 / 255 (TensorFlow's float to uint8).
    """

    def resized(self, frame_NHWC: Tensor) -> Tensor:
        rotated = [frame[::-1, ::-1] for frame in frame_NHWC.cpu().numpy()]
        stored = torch.from_numpy(np.stack([_jpeg_round_trip(frame) for frame in rotated]))
        image = stored.to(frame_NHWC.device).permute(0, 3, 1, 2).float()
        if image.shape[2] != self.image_px:
            shrink = lanczos3_matrix(image.shape[2], self.image_px).float().to(image.device)
            image = (shrink @ image @ shrink.T).round().clip(0, 255)
        if self.crop_area < 1:
            crop = crop_matrix(self.image_px, self.crop_area).float().to(image.device)
            image = (crop @ image @ crop.T * (255.5 / 255)).floor().clip(0, 255)
        return image


def _per_tower(value: Any, name: str) -> list[list[float]]:
    entry = f"preprocessor_config.json: {name!r}"
    if not isinstance(value, list) or len(value) != 2:
        raise UserError(f"{entry} must hold 3 numbers for each of the two towers, got {value!r}")
    return [check_numbers(row, f"{entry} of tower {n}", 3) for n, row in enumerate(value)]


PIPELINES = {"fast": Pixels, "oft": PublishedPixels}


def _jpeg_round_trip(frame_HWC: np.ndarray) -> np.ndarray:
    images = []
    for first in range(0, frame_HWC.shape[2], 3):
        buffer = io.BytesIO()
        one = np.ascontiguousarray(frame_HWC[..., first : first + 3])
        Image.fromarray(one).save(buffer, "JPEG", quality=JPEG_QUALITY)
        images.append(np.asarray(Image.open(buffer)))
    return np.concatenate(images, axis=-1)


def resize_matrix(frame_px: int, image_px: int, crop_area: float) -> Tensor:
    """float32 [image_px, frame_px]: lanczos3 to image_px, then the centre crop of `crop_area`, stretched back.

    Example:
        >>> resize_matrix(2, 2, crop_area=1.0)
        tensor([[1., 0.],
                [0., 1.]])
    """
    return (crop_matrix(image_px, crop_area) @ lanczos3_matrix(frame_px, image_px)).float()


def lanczos3_matrix(frame_px: int, image_px: int) -> Tensor:
    """float64 [image_px, frame_px]: lanczos3 with antialiasing, half-pixel centres, rows normalised to sum 1."""
    scale = frame_px / image_px
    width = max(scale, 1.0)  # shrinking widens the kernel
    centre = (torch.arange(image_px, dtype=torch.float64)[:, None] + 0.5) * scale - 0.5
    x = (torch.arange(frame_px, dtype=torch.float64) - centre) / width
    weight = torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), 0.0)
    return weight / weight.sum(1, keepdim=True)


def crop_matrix(image_px: int, crop_area: float) -> Tensor:
    """float64 [image_px, image_px]: centre crop with side sqrt(crop_area), bilinear back with corners aligned."""
    side = crop_area**0.5
    at = (torch.linspace(-0.5, 0.5, image_px, dtype=torch.float64) * side + 0.5) * (image_px - 1)
    distance = (at[:, None] - torch.arange(image_px, dtype=torch.float64)).abs()
    return (1 - distance).clip(min=0)
