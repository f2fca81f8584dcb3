"""Augmentation against a plain loop over images."""

import pytest
import torch

from cl.augment import augment
from cl.seeding import generator


def by_hand(x, kinds, rng):
    b, _, h, w = x.shape
    ph, pw = (max(1, h // 8), max(1, w // 8)) if "crop" in kinds else (0, 0)
    dy = torch.randint(2 * ph + 1, (b, 1), generator=rng)[:, 0].tolist()
    dx = torch.randint(2 * pw + 1, (b, 1), generator=rng)[:, 0].tolist()
    flips = (torch.rand(b, 1, generator=rng) < 0.5)[:, 0].tolist() if "flip" in kinds else [0] * b
    out = torch.zeros_like(x)
    for k in range(b):
        big = torch.zeros(x.shape[1], h + 2 * ph, w + 2 * pw, dtype=x.dtype)
        big[:, ph : ph + h, pw : pw + w] = x[k]
        cut = big[:, dy[k] : dy[k] + h, dx[k] : dx[k] + w]
        out[k] = cut.flip(-1) if flips[k] else cut
    return out


@pytest.mark.parametrize("kinds", [["crop"], ["flip"], ["crop", "flip"], ["flip", "crop"]])
@pytest.mark.parametrize("shape", [(16, 3, 32, 32), (9, 1, 8, 8), (5, 3, 10, 23)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_augmenting_a_batch_equals_a_loop_over_images(kinds, shape, dtype):
    x = torch.randint(0, 256, shape).to(dtype)
    expected = by_hand(x, kinds, generator(3, "a"))
    assert torch.equal(augment(x, kinds, generator(3, "a")), expected)


def test_every_offset_and_both_directions_occur_about_equally():
    x = torch.zeros(4000, 1, 8, 8, dtype=torch.uint8)
    x[:, :, 4, 2] = 1  # one pixel: where it lands tells offset and direction
    out = augment(x, ["crop", "flip"], generator(0, "a"))
    places = out.flatten(1).argmax(1)
    counts = torch.bincount(places)
    assert (counts > 0).sum() == 3 * 6  # 3 rows; 3 columns, and 3 mirrored ones
    assert counts[counts > 0].min() > 0.7 * 4000 / 18
