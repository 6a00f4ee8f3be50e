import pytest
import torch

from vla_rl.policy.processor import Pixels, crop_matrix, lanczos3_matrix, resize_matrix


def test_prompts_are_padded_on_the_left_and_end_in_the_final_token(tiny_policy):
    ids, mask = tiny_policy.prompts(["put the bowl on the plate", "turn on the stove"])
    # before, 6 and 4 words, after, final token; BOS is not among them
    assert mask.sum(1).tolist() == [9, 7]
    assert ids.shape == (2, 24)
    assert mask[:, -1].all() and not mask[:, 0].any()
    assert (ids[~mask] == tiny_policy.model.config.pad_id).all()
    assert ids[0, -1] == ids[1, -1] == 5
    assert ids[0, -9] == ids[1, -7] == 3
    assert (ids[mask] > 2).all()  # neither unknown nor BOS nor </s>


def test_capitals_do_not_matter(tiny_policy):
    one, other = tiny_policy.prompts(["Turn on the Stove", "turn on the stove"])[0]
    assert torch.equal(one, other)


def test_a_word_the_tokenizer_lacks(tiny_policy):
    with pytest.raises(ValueError, match="does not know every word of 'fold the towel'"):
        tiny_policy.prompts(["fold the towel"])


def test_an_instruction_too_long_for_the_checkpoint(tiny_policy):
    with pytest.raises(ValueError, match="takes 33 tokens, the checkpoint's prompts 24"):
        tiny_policy.prompts(["pick " * 30])


def test_pixels_are_rotated_and_normalised_per_tower():
    pixels = Pixels({"means": [[0.5] * 3, [0.0] * 3], "stds": [[0.5] * 3, [0.25] * 3], "center_crop_area": 1.0}, 4)
    frame = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    frame[0, 0, 1, 2] = 255  # blue at row 0, column 1: after 180 degrees at row 3, column 2
    out = pixels(frame, torch.float32)
    assert out.shape == (1, 6, 4, 4)
    assert out[0, 2, 3, 2] == 1.0  # (1 - .5) / .5
    assert out[0, 5, 3, 2] == 4.0  # (1 - 0) / .25
    assert out[0, 2].sum() == 1.0 - 15.0  # the others are (0 - .5) / .5 = -1
    assert out[0, 5].sum() == 4.0


def test_resize_keeps_a_flat_picture_and_straight_ramps():
    matrix = resize_matrix(256, 224, 0.9)
    torch.testing.assert_close(matrix.sum(1), torch.ones(224))
    # a ramp over the frame stays a ramp: centre crop of side sqrt(.9) = .948683 shows 223 * .948683 = 211.556 of the
    # 223 steps between the outer pixels' centres, each 256 / 224 frame pixels long
    ramp = matrix.double() @ torch.arange(256.0, dtype=torch.float64)
    inner = ramp[10:-10].diff()  # the border's kernel is cut off
    assert inner.mean().item() == pytest.approx(211.556 / 223 * 256 / 224, abs=1e-3)
    assert inner.std() < 0.01  # lanczos reproduces a ramp up to a ripple of about 1%
    torch.testing.assert_close(ramp + ramp.flip(0), torch.full((224,), 255.0).double(), atol=1e-3, rtol=0)


def test_lanczos3_by_hand():
    # Same size: the kernel is 1 at its centre and 0 at all other whole numbers.
    torch.testing.assert_close(lanczos3_matrix(5, 5), torch.eye(5, dtype=torch.float64))
    # 2 -> 1: the centre lies between both pixels.
    torch.testing.assert_close(lanczos3_matrix(2, 1), torch.tensor([[0.5, 0.5]], dtype=torch.float64))


def test_crop_by_hand():
    # Five pixels, a quarter of the area: half the side, from position 1 to 3 in steps of .5.
    expected = [[0, 1, 0, 0, 0], [0, 0.5, 0.5, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0.5, 0.5, 0], [0, 0, 0, 1, 0]]
    torch.testing.assert_close(crop_matrix(5, 0.25), torch.tensor(expected, dtype=torch.float64))
