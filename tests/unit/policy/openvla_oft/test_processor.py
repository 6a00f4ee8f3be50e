import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from vla_rl.policy import load_policy
from vla_rl.policy.openvla_oft.processor import Pixels, PublishedPixels, crop_matrix, lanczos3_matrix, resize_matrix


def test_prompts_are_padded_on_the_left_and_end_in_the_final_token(tiny_policy):
    ids, mask = tiny_policy.prompts(["put the bowl on the plate", "turn on the stove"])
    # before, 6 and 4 words, after, final token; BOS is not among them
    assert mask.sum(1).tolist() == [9, 7]
    assert ids.shape == (2, 24)
    assert mask[:, -1].all()
    assert not mask[:, 0].any()
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


# ---------------------------------------------------------------------------------------------- the published pipeline


def picture(px):
    """Edges, a ramp, and a texture, in colour."""
    y, x = np.mgrid[:px, :px]
    frame = np.stack([x * 255 // px, y * 255 // px, 128 + 90 * np.sin(x / 5) * np.cos(y / 7)], axis=-1)
    frame[px // 4 : px // 2, px // 3 : px // 2] = (250, 20, 30)
    frame[(x - px // 2) ** 2 + (y - px // 2) ** 2 < (px // 8) ** 2] = (5, 200, 90)
    return frame.astype(np.uint8)


def independently(frame):
    """OpenCV's JPEG, Pillow's lanczos, scipy's interpolation between the pixels of the crop."""
    turned = cv2.rotate(frame, cv2.ROTATE_180)
    _, jpeg = cv2.imencode(".jpg", turned[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    turned = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)[..., ::-1]
    small = np.asarray(Image.fromarray(np.ascontiguousarray(turned)).resize((224, 224), Image.LANCZOS))
    edge = 223 * (1 - 0.9**0.5) / 2
    at = np.linspace(edge, 223 - edge, 224)
    rows, columns = np.meshgrid(at, at, indexing="ij")
    channels = [ndimage.map_coordinates(small[..., c].astype(float), [rows, columns], order=1) for c in range(3)]
    return np.floor(np.stack(channels) / 255 * 255.5).clip(0, 255)  # TensorFlow's float to uint8


@pytest.fixture(scope="module")
def preprocessor():
    return {"means": [[0.0] * 3] * 2, "stds": [[1.0] * 3] * 2}  # the published crop is the default


def test_the_published_pipeline_is_that_of_an_independent_implementation(preprocessor):
    frame = picture(256)
    pixels = PublishedPixels(preprocessor, 224)(torch.from_numpy(frame)[None], torch.float32)
    difference = (pixels[0, :3] - torch.from_numpy(independently(frame) / 255)).abs()
    assert difference.max() <= 1.001 / 255
    assert torch.equal(pixels[0, :3], pixels[0, 3:])
    torch.testing.assert_close(pixels * 255, (pixels * 255).round(), atol=1e-4, rtol=0)  # it ends in whole numbers


def test_the_fast_pipeline_differs_by_the_jpeg_alone(preprocessor):
    frame = torch.from_numpy(picture(256))[None]
    fast, published = (kind(preprocessor, 224)(frame, torch.float32) for kind in (Pixels, PublishedPixels))
    difference = (fast - published).abs() * 255
    assert 0.2 < difference.mean() < 2  # of 255: rounding, and JPEG at quality 95
    assert difference.max() > 2


def test_both_pipelines_are_chosen_by_name():
    assert type(load_policy(None).pixels) is Pixels
    policy = load_policy(None, image_pipeline="oft")
    assert type(policy.pixels) is PublishedPixels
    with pytest.raises(ValueError, match="no image_pipeline named 'tf'. Choices: fast, oft .policy.image_pipeline="):
        load_policy(None, image_pipeline="tf")
