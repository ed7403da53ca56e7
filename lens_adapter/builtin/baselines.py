"""What the frozen parts reach without a trained head: the figures to read a head's against."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lens_adapter import builtin
from lens_adapter.adapter import LensAdapter
from lens_adapter.builtin.exam import Case, Exam
from lens_adapter.evaluation import overlap
from lens_adapter.head.keypoints import find_keypoints
from lens_adapter.head.raster import rasterize
from lens_adapter.sam.segment_anything import SamDecoder

SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


class Baselines:
    """Masks for the cases that have a target, by four means of which none was trained to find it.

    - random_object: the mask of a random object of the scene.
    - raw_attention: the last token's head-mean attention to the image in one layer, cut at a share of its peak.
    - raw_keypoint: its peak as a click for the pre-trained SAM.
    - oracle_keypoint: a click on the innermost pixel of the true mask, for the same SAM.

    Args:
        adapter: attached to the base; its processor, prompt template and layout are used, its head is not.

    Attributes:
        layer, share: of raw_attention and raw_keypoint; `choose` sets them.
    """

    def __init__(self, adapter: LensAdapter):
        self.adapter = adapter
        self.sam = SamDecoder(adapter.config.sam).eval()
        self.sam.load_weights(builtin.SAM)
        self.layer, self.share = 0, 0.5

    def choose(self, exams: Iterable[Exam]) -> None:
        """Take the layer and the share of the peak whose cut has the best gIoU over these exams."""
        layers = range(self.adapter.config.num_hidden_layers)
        ious: dict[tuple[int, float], list[float]] = defaultdict(list)
        for exam in exams:
            cases = with_target(exam)
            for layer, heat in self._attention(exam, cases, layers).items():
                smooth = _resize(heat, exam)
                for share in SHARES:
                    found = (smooth > share).numpy()
                    ious[layer, share] += [overlap(m, c.truth).iou for m, c in zip(found, cases, strict=True)]
        self.layer, self.share = max(ious, key=lambda choice: fmean(ious[choice]))

    @torch.no_grad()
    def masks(self, exam: Exam) -> dict[str, list[np.ndarray]]:
        """Baseline -> bool (H, W) for each of `with_target(exam)`."""
        cases = with_target(exam)
        rng = np.random.default_rng([exam.seed, 9])
        heat = self._attention(exam, cases, [self.layer])[self.layer]
        size = torch.tensor([heat.shape[1:]] * len(heat))
        peaks = find_keypoints(heat, size, count=1, radius=0.0, threshold=0.0).points[:, 0]  # (N, 2)
        innermost = torch.tensor([innermost_point(case.truth) for case in cases])
        embedding = self.sam.encode_images([exam.picture])
        return {
            "random_object": [exam.objects[rng.integers(len(exam.objects))] for _ in cases],
            "raw_attention": list((_resize(heat, exam) > self.share).numpy()),
            "raw_keypoint": self._click(exam, embedding, peaks),
            "oracle_keypoint": self._click(exam, embedding, innermost),
        }

    def _attention(self, exam: Exam, cases: Sequence[Case], layers: Sequence[int]) -> dict[int, Tensor]:
        """Layer -> (N, h, w), each map divided by its peak."""
        texts = [case.expression.text for case in cases]
        reading = self.adapter.base.read([exam.picture] * len(cases), texts, layers=layers)
        raster = rasterize(reading.layouts)
        heat = {}
        for layer in layers:
            rows = reading.signals.attention[layer][:, :, 0].mean(1)  # (N, T), over heads
            spread = raster.spread(rows.gather(1, raster.positions))
            heat[layer] = spread / spread.amax(dim=(1, 2), keepdim=True)
        return heat

    def _click(self, exam: Exam, embedding: Tensor, points: Tensor) -> list[np.ndarray]:
        """SAM's masks for one click each: points (N, 2) in fractions of the picture."""
        size = (exam.picture.height, exam.picture.width)
        sparse = self.sam.clicks(points[:, None], [size] * len(points))
        logits, *_ = self.sam(embedding, torch.zeros(len(points), dtype=torch.long), sparse)
        return list((self.sam.upsample(logits, size) > 0).numpy())


def with_target(exam: Exam) -> list[Case]:
    """The cases of an exam that name something."""
    return [case for case in exam.cases if case.has_target]


def innermost_point(mask: np.ndarray) -> tuple[float, float]:
    """x, y in fractions of the image: a pixel that survives longest as the mask (not empty) is peeled."""
    kept = mask
    while (inside := _peel(kept)).any():
        kept = inside
    rows, columns = np.nonzero(kept)
    middle = len(rows) // 2
    return (columns[middle] + 0.5) / mask.shape[1], (rows[middle] + 0.5) / mask.shape[0]


def _peel(mask: np.ndarray) -> np.ndarray:
    """The pixels whose four neighbors are all in the mask."""
    wide = np.pad(mask, 1)
    return mask & wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]


def _resize(heat: Tensor, exam: Exam) -> Tensor:
    """(N, h, w) -> (N, H, W), at the size of the exam's picture."""
    size = (exam.picture.height, exam.picture.width)
    return F.interpolate(heat[:, None], size, mode="bilinear", align_corners=False)[:, 0]
