from __future__ import annotations

import numpy as np
import pytest
import torch

from lens_adapter.errors import LensError
from lens_adapter.pictures.colors import color_of
from lens_adapter.pictures.samples import COLORS, FOUND, HEAT, TRUTH, Sample, sample_grid
from tests.tiny.outputs import painted_output, pixels


def a_sample(width: int = 60, height: int = 40, prompt: str = "a cup") -> Sample:
    """What was found is at the left, the truth right of it."""
    output = painted_output(width, height)
    found, truth = output.masks
    return Sample(output.image, prompt, truth, found, output.heatmaps[1], output.keypoints[0], "IoU 0.00")


def test_a_sample_shows_truth_and_mask_beside_each_other():
    shown = a_sample().pictures(300)
    assert [*shown] == [TRUTH, FOUND, HEAT] and {picture.size for picture in shown.values()} == {(300, 200)}
    for name, (left, right) in ((FOUND, (0, 75)), (TRUTH, (75, 150))):
        _, columns = np.nonzero((pixels(shown[name]) == color_of(COLORS[name])).all(-1))
        assert len(columns) > 50 and left - 3 <= columns.min() and columns.max() <= right + 3


@pytest.mark.parametrize("count", [1, 2, 6])
def test_a_page_of_samples_is_of_a_sane_shape(count):
    page = sample_grid([a_sample(prompt="a cup that is " + "very " * 40 + "large")] * count, title="Step 100")
    assert 0.5 < page.width / page.height < 5 and page.width < 1700 and page.height < 1300
    white = (pixels(page) == 255).all(-1)
    assert white[:, :20].all() and white[:, -20:].all() and white[-20:].all()


def test_a_page_takes_samples_of_any_shape():
    samples = [a_sample(400, 20), a_sample(20, 400), a_sample(33, 33)]
    samples[2] = Sample(
        **{**vars(samples[2]), "mask": torch.zeros(33, 33, dtype=torch.bool), "keypoints": torch.zeros(0, 2)}
    )
    assert sample_grid(samples, title="Step 1").height < 1300
    with pytest.raises(LensError, match="at least one sample"):
        sample_grid([], title="Step 1")
