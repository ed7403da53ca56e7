"""How good masks are: the field's metrics, and the built-in models measured on their test split.

Per expression: IoU = intersection / union in pixels of the original image; an empty union counts as 1. gIoU is the
mean of IoUs, cIoU the sum of intersections over the sum of unions, P@0.5 the share of IoUs above 0.5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from tqdm import tqdm

from lens_adapter import builtin
from lens_adapter.data.expressions import EXPRESSION_KINDS, Expression, Question, Speaker
from lens_adapter.data.scenes import Scene, sample_scene
from lens_adapter.head.keypoints import find_keypoints
from lens_adapter.head.raster import rasterize
from lens_adapter.vlm.inputs import build_inputs

if TYPE_CHECKING:
    from lens_adapter.adapter import LensAdapter

PICTURE_SIZE = 384  # pixels at which test scenes are drawn and masks are compared
QUESTION_KINDS = ("attributes", "existence", "superlatives", "counting", "relations", "where")
EXPRESSIONS = {"attribute": 2, "spatial": 2, "ordinal": 1, "several": 1, "absent": 1}  # asked per scene
VALIDATION_SCENES = 40  # to choose the baselines' layer and threshold on
_COARSE = 4  # every fourth pixel is enough to find the inside of a mask
_ATTEMPTS = 8  # a random expression of a kind may not exist in a scene; so often is tried


@dataclass(frozen=True)
class Case:
    """One expression about one scene, with its truth."""

    scene: int
    expression: Expression
    mask: np.ndarray  # bool (H, W)


@dataclass(frozen=True)
class Overlap:
    """Pixels in common and in either."""

    intersection: int
    union: int

    @property
    def iou(self) -> float:
        return self.intersection / self.union if self.union else 1.0


def overlap(found: np.ndarray, truth: np.ndarray) -> Overlap:
    """Two bool masks of one shape."""
    return Overlap(int((found & truth).sum()), int((found | truth).sum()))


def mask_metrics(overlaps: Sequence[Overlap]) -> dict[str, float]:
    """gIoU, cIoU and P@0.5 of at least one overlap."""
    ious = np.array([o.iou for o in overlaps])
    union = sum(o.union for o in overlaps)
    return {
        "giou": float(ious.mean()),
        "ciou": sum(o.intersection for o in overlaps) / union if union else 1.0,
        "precision_at_0.5": float((ious > 0.5).mean()),
    }


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rho: the correlation of the ranks, ties sharing their mean rank."""
    ranks = []
    for values in (np.asarray(a), np.asarray(b)):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[inverse])
    return float(np.corrcoef(*ranks)[0, 1])


# -- the built-in world -----------------------------------------------------------------------------------------------


def evaluate_builtin(scenes: int = 500, batch_size: int = 32) -> dict[str, float]:
    """Measure everything the package ships on its test split.

    Args:
        scenes: number of test scenes; the published figures use 500.
        batch_size: rows run through the models together.

    Returns:
        Figures by dotted name, each a fraction: `answers.KIND`, `heads.HEAD.METRIC.KIND`, `baselines.NAME.METRIC.KIND`.
    """
    model, processor = builtin.load_base()
    figures = {f"answers.{kind}": value for kind, value in _answers(model, processor, scenes, batch_size).items()}
    cases = make_cases(range(scenes), "test")
    pictures = [sample_scene(i, "test").draw(PICTURE_SIZE) for i in tqdm(range(scenes), desc="drawing")]
    for name in builtin.HEADS:
        with builtin.load_head(name).attach(model, processor) as adapter:
            figures |= {f"heads.{name}.{key}": v for key, v in _head(adapter, pictures, cases, batch_size, name).items()}
    with builtin.load_head("lite").attach(model, processor) as adapter:
        baselines = Baselines(adapter, batch_size)
        baselines.choose()
        for name, masks in baselines.masks(pictures, cases).items():
            figures |= {f"baselines.{name}.{key}": value for key, value in _by_kind(masks, cases).items()}
    return figures


def make_cases(indices: Iterable[int], split: str) -> list[Case]:
    """The expressions asked about these scenes: the same ones each time."""
    cases = []
    for index in indices:
        scene = sample_scene(index, split)
        masks = scene.masks(PICTURE_SIZE)
        speaker = Speaker(scene, np.random.default_rng([scene.seed, 7]))
        said: dict[str, Expression] = {}
        for kind, count in EXPRESSIONS.items():
            for made in _tries(speaker.expression, kind, count):
                said.setdefault(made.text, made)
        for expression in said.values():
            truth = masks[list(expression.targets)].any(axis=0)
            cases.append(Case(index, expression, truth))
    return cases


def _tries(make: Callable[[str], Any], kind: str, count: int) -> list[Any]:
    made = [one for _ in range(_ATTEMPTS * count) if (one := make(kind)) is not None]
    return list({one.text: one for one in made}.values())[:count]


def ask(model: Any, processor: Any, pictures: Sequence[Image], questions: Sequence[str]) -> list[str]:
    """Greedy answers of a vision-language model, one image and one question each."""
    inputs = build_inputs(processor, pictures, questions, "{prompt}", model.device)
    with torch.no_grad():
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=24)
    return processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _answers(model: Any, processor: Any, scenes: int, batch_size: int) -> dict[str, float]:
    asked: list[tuple[Scene, Question]] = []
    for index in range(scenes):
        scene = sample_scene(index, "test")
        speaker = Speaker(scene, np.random.default_rng([scene.seed, 8]))
        asked += [(scene, question) for kind in QUESTION_KINDS for question in _tries(speaker.question, kind, 1)]
    right: dict[str, list[bool]] = {kind: [] for kind in (*QUESTION_KINDS, "where_within_one_cell")}
    for start in tqdm(range(0, len(asked), batch_size), desc="answers"):
        batch = asked[start : start + batch_size]
        pictures = [scene.draw(PICTURE_SIZE) for scene, _ in batch]
        for (_, question), answer in zip(batch, ask(model, processor, pictures, [q.text for _, q in batch]), strict=True):
            right[question.kind].append(answer.strip() == question.answer)
            if question.kind == "where":
                right["where_within_one_cell"].append(_near(answer, question.answer))
    return {kind: float(np.mean(hits)) for kind, hits in right.items()}


def _near(answer: str, truth: str) -> bool:
    """Are two places ("x3 y5") at most one column and one row apart?"""
    said, meant = ([word for word in text.split() if word[1:].isdigit()] for text in (answer, truth))
    if [word[0] for word in said] != [word[0] for word in meant]:
        return False
    return all(abs(int(a[1:]) - int(b[1:])) <= 1 for a, b in zip(said, meant, strict=True))


def _by_kind(masks: Sequence[np.ndarray], cases: Sequence[Case]) -> dict[str, float]:
    """"metric.kind" -> figure, for every kind that has targets."""
    figures = {}
    for kind in EXPRESSION_KINDS:
        overlaps = [
            overlap(mask, case.mask)
            for mask, case in zip(masks, cases, strict=True)
            if case.expression.kind == kind and case.expression.targets
        ]
        if overlaps:
            figures |= {f"{metric}.{kind}": value for metric, value in mask_metrics(overlaps).items()}
    return figures


def _grouped(cases: Sequence[Case]) -> list[tuple[int, list[str]]]:
    groups: dict[int, list[str]] = {}
    for case in cases:
        groups.setdefault(case.scene, []).append(case.expression.text)
    return list(groups.items())


def _head(
    adapter: LensAdapter, pictures: Sequence[Image], cases: Sequence[Case], batch_size: int, name: str
) -> dict[str, float]:
    masks: list[np.ndarray] = []
    scores: list[float] = []
    peaks: list[bool] = []
    step = max(batch_size // 4, 1)
    groups = _grouped(cases)
    for start in tqdm(range(0, len(groups), step), desc=f"head {name}"):
        chunk = groups[start : start + step]
        outputs = adapter.segment([pictures[i] for i, _ in chunk], [t for _, t in chunk], batch_size=batch_size)
        for output in outputs:
            masks += list(output.masks.numpy())
            scores += output.scores.tolist()
            peaks += [tuple(points[0].tolist()) if len(points) else None for points in output.keypoints]
    figures = _by_kind(masks, cases)
    present = np.array([bool(case.expression.targets) for case in cases])
    refused = np.array([not mask.any() for mask in masks]) | (np.array(scores) < adapter.config.score_threshold)
    ious = [overlap(mask, case.mask).iou for mask, case in zip(masks, cases, strict=True)]
    hit = [_hits(peak, case.mask) for peak, case in zip(peaks, cases, strict=True)]
    figures["no_target_accuracy"] = float(refused[~present].mean())
    figures["target_accepted"] = float(1 - refused[present].mean())
    figures["keypoint_on_target"] = float(np.mean([h for h, there in zip(hit, present, strict=True) if there]))
    figures["score_rank_correlation"] = rank_correlation(
        [s for s, there in zip(scores, present, strict=True) if there],
        [i for i, there in zip(ious, present, strict=True) if there],
    )
    return figures


def _hits(point: tuple[float, float] | None, mask: np.ndarray) -> bool:
    if point is None:
        return False
    height, width = mask.shape
    return bool(mask[min(int(point[1]), height - 1), min(int(point[0]), width - 1)])


class Baselines:
    """What the same frozen parts reach without a trained head.

    - random_object: the mask of a random object of the scene.
    - raw_attention: the last token's head-mean attention to the image in the best layer, cut at a share of its peak.
    - raw_keypoint: its highest peak as a click for the pre-trained SAM.
    - oracle_keypoint: a click on the inmost pixel of the true mask, for the same SAM.

    Layer and share are chosen on validation scenes (`choose`).
    """

    def __init__(self, adapter: LensAdapter, batch_size: int):
        from lens_adapter.head.decoder import SamDecoder

        self.adapter, self.batch_size = adapter, batch_size
        self.sam = SamDecoder(adapter.config.sam).eval()
        self.sam.load_weights(builtin.SAM)
        self.layer, self.share = 0, 0.5

    def choose(self) -> None:
        """Take the layer and the share of the peak with the best gIoU on attribute and spatial expressions."""
        kept = [c for c in make_cases(range(VALIDATION_SCENES), "validation") if c.expression.targets]
        pictures = [sample_scene(i, "validation").draw(PICTURE_SIZE) for i in range(VALIDATION_SCENES)]
        best = -1.0
        for layer in range(self.adapter.config.num_hidden_layers):
            heat = self._heat(pictures, kept, layer)
            for share in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7):
                masks = [self._cut(h, share) for h in heat]
                giou = mask_metrics([overlap(m, c.mask) for m, c in zip(masks, kept, strict=True)])["giou"]
                if giou > best:
                    best, self.layer, self.share = giou, layer, share

    def masks(self, pictures: Sequence[Image], cases: Sequence[Case]) -> dict[str, list[np.ndarray]]:
        """Baseline -> one mask per case."""
        rng = np.random.default_rng(9)
        heat = self._heat(pictures, cases, self.layer)
        size = torch.tensor([heat.shape[1:]] * len(heat))
        peaks = find_keypoints(heat, size, count=1, radius=1.0, threshold=0.0).points[:, 0]  # (N, 2)
        inmost = torch.tensor([_inmost(case.mask) for case in cases])
        random_masks = []
        for case in cases:
            objects = sample_scene(case.scene, "test").masks(PICTURE_SIZE)
            random_masks.append(objects[rng.integers(len(objects))])
        return {
            "random_object": random_masks,
            "raw_attention": [self._cut(h, self.share) for h in heat],
            "raw_keypoint": self._click(pictures, cases, peaks, "raw keypoint"),
            "oracle_keypoint": self._click(pictures, cases, inmost, "oracle keypoint"),
        }

    def _heat(self, pictures: Sequence[Image], cases: Sequence[Case], layer: int) -> Tensor:
        """(N, h, w), each divided by its peak."""
        heat = []
        for start in tqdm(range(0, len(cases), self.batch_size), desc=f"attention of layer {layer}", leave=False):
            batch = cases[start : start + self.batch_size]
            images = [pictures[case.scene] for case in batch]
            texts = [case.expression.text for case in batch]
            inputs = build_inputs(self.adapter.processor, images, texts, self.adapter.config.prompt_template)
            raster = rasterize(self.adapter.layout(inputs, [(PICTURE_SIZE, PICTURE_SIZE)] * len(batch)))
            rows = self.adapter.prefill(inputs, layers=[layer]).attention[layer][:, :, 0].mean(1)  # (B, T)
            heat.append(raster.spread(rows.gather(1, raster.positions)))
        joined = torch.cat(heat)
        return joined / joined.amax(dim=(1, 2), keepdim=True)

    def _cut(self, heat: Tensor, share: float) -> np.ndarray:
        size = (PICTURE_SIZE, PICTURE_SIZE)
        smooth = torch.nn.functional.interpolate(heat[None, None], size, mode="bilinear", align_corners=False)
        return (smooth[0, 0] > share).numpy()

    @torch.no_grad()
    def _click(self, pictures: Sequence[Image], cases: Sequence[Case], points: Tensor, name: str) -> list[np.ndarray]:
        masks = []
        side = self.sam.sam["image_size"]
        for start in tqdm(range(0, len(cases), self.batch_size), desc=name, leave=False):
            batch = cases[start : start + self.batch_size]
            used = list(dict.fromkeys(case.scene for case in batch))
            embeddings = self.sam.encode_images([pictures[i] for i in used])
            clicks = points[start : start + len(batch), None] * side  # square pictures fill SAM's square
            label = torch.ones(clicks.shape[:2], dtype=torch.int)
            sparse, _ = self.sam.prompt_encoder(points=(clicks, label), boxes=None, masks=None)
            index = torch.tensor([used.index(case.scene) for case in batch])
            logits, _ = self.sam(embeddings, index, sparse)
            masks += list((self.sam.upsample(logits, (PICTURE_SIZE, PICTURE_SIZE)) > 0).numpy())
        return masks


def _inmost(mask: np.ndarray) -> tuple[float, float]:
    """x, y in fractions of the image: far inside the mask; the image's center for an empty mask."""
    last = inside = mask[::_COARSE, ::_COARSE]
    while inside.any():
        last = inside
        padded = np.pad(inside, 1)
        inside = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    rows, columns = np.nonzero(last)
    if not len(rows):
        return 0.5, 0.5
    return (columns[0] * _COARSE + 0.5) / mask.shape[1], (rows[0] * _COARSE + 0.5) / mask.shape[0]
