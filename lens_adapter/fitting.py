"""A readout from a handful of examples: heads are chosen, weighted, and judged on pictures that had no part in it.

1. The base reads every example once, with all heads that can be read. Where no example names nothing, a prompt about
   another picture is read beside it.
2. Heads are ranked by how much hotter they are inside the masks than outside. How deep in the decoder to look for the
   best few is chosen by cross-validation over pictures: the shallowest depth that is no worse than the best one, so
   that reading stops early.
3. Weights make a cell that is drawn by softmax of the heat likely to lie in the mask. Small fits beside it turn heat
   into probabilities, and say whether a prompt names several things, and whether it names anything at all.
4. All this is done anew without each fold of the pictures, and judged on that fold. Pointing that may be chance is
   refused. What is kept is fitted on all pictures.

That a linear reading of a frozen model's attention points well was measured on the built-in model only:
docs/first-head.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil, sqrt
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor
from tqdm import tqdm
from transformers.utils import logging

from lens_adapter.config import LensConfig
from lens_adapter.errors import FitError, InputError
from lens_adapter.head.fusion import attended_tokens
from lens_adapter.head.keypoints import find_keypoints
from lens_adapter.head.raster import rasterize
from lens_adapter.head.readout import (
    SINK,
    Readout,
    cells_of,
    coverage,
    head_facts,
    heat_facts,
    log_attention,
    presence_facts,
    set_readout,
    standardized,
)
from lens_adapter.vlm.base import FrozenBase

logger = logging.get_logger(__name__)

# Measured on validation scenes of the built-in world: choosing the number of heads by cross-validation, too, was worse.
HEADS = 16  # that are read
PENALTY = 20.0  # of squared weights, over the number of examples
ACCEPTED = 0.96  # share of held-out prompts with a target that the score threshold lets pass
LEAST_IMAGES = 4
FOLDS = 4  # of the cross-validation that chooses the depth
_NEXT_TO_NOTHING = 0.01  # of correlation: not worth a deeper reading
_LUCK = 0.01  # probability of such pointing, or better, by chance, above which a fit is refused
_BRIEF = 40  # steps of a fit


class Labelled(Protocol):
    """One prompt about one picture and the pixels that it names, as `lens_adapter.data.examples.Example`."""

    @property
    def image(self) -> Image: ...
    @property
    def prompt(self) -> str: ...
    @property
    def mask(self) -> np.ndarray: ...


@dataclass(frozen=True)
class FitReport:
    """What a fit found, and how good it is where it had not looked.

    Attributes:
        heads: the chosen (layer, head), best first.
        examples: prompts with a target; `absent`: prompts without one.
        images: pictures.
        pointing: share of held-out prompts whose hottest point, the first click, lies in the mask; `chance`: of a
            random point.
        present_accepted: share of held-out prompts with a target whose score is not below the threshold.
        absent_refused: share of the others whose score is; None: there were none.
        score_threshold: chosen on held-out prompts.
        by_depth: {deepest layer that may be read: correlation of heat and mask under cross-validation}.
        reliability: of held-out scores, from low to high: (mean score, share of prompts with a target, prompts).
        data: what the examples were.
    """

    heads: list[tuple[int, int]]
    examples: int
    absent: int
    images: int
    pointing: float
    chance: float
    present_accepted: float
    absent_refused: float | None
    score_threshold: float
    by_depth: dict[int, float] = field(default_factory=dict)
    reliability: list[tuple[float, float, int]] = field(default_factory=list)
    data: str = "examples of one's own"

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        facts = asdict(self)
        facts |= {name: [list(row) for row in facts[name]] for name in ("heads", "reliability")}
        return {**facts, "by_depth": {str(layer): value for layer, value in self.by_depth.items()}}

    def summary(self) -> str:
        """What a person wants to read."""
        chosen = ", ".join(f"{layer}.{head}" for layer, head in self.heads)
        refused = "not known" if self.absent_refused is None else f"{self.absent_refused:.3f}"
        lines = [
            f"Fitted on {self.examples} prompts about {self.images} pictures ({self.data}).",
            f"{len(self.heads)} heads (layer.head): {chosen}",
            "On pictures that the reading had not seen:",
            f"  hottest point in the mask  {self.pointing:.3f}   (a random point: {self.chance:.3f})",
            f"  present prompts accepted   {self.present_accepted:.3f}",
            f"  absent prompts refused     {refused}   ({self.absent} asked)",
            "How well heat and mask agree, by how deep the base is read (cross-validation):",
        ]
        lines[-1:-1] = [
            f"  of {count:<4} prompts with a score of about {score:.2f}, {share:.0%} named something"
            for score, share, count in self.reliability
        ]
        lines += [f"  up to layer {layer:<3} {value:6.3f}" for layer, value in self.by_depth.items()]
        return "\n".join(lines)


@dataclass
class Seen:
    """What the base's heads say about one prompt.

    Attributes:
        logs: float32 (H, h, w), log attention of every readable head over the picture.
        cover: float32 (h, w), the share of each cell that the mask covers; all 0: it names nothing.
        mask: bool (H, W), the mask itself.
        several: whether the mask has several parts.
        group: number of its picture.
        yes: the base's own answer to whether it is there, as the logit of yes over no; 0: it was not asked.
    """

    logs: Tensor
    cover: Tensor
    mask: np.ndarray
    several: bool
    group: int
    yes: float = 0.0

    @property
    def present(self) -> bool:
        return bool(self.cover.max() > 0)


def fit_readout(
    base: FrozenBase, config: LensConfig, examples: Iterable[Labelled], *, validation: float = 0.25, data: str = ""
) -> tuple[FitReport, LensConfig, Readout]:
    """Choose heads and weights.

    Args:
        base: attached; only forwards of it are run.
        config: of the readout that is to be; it is left as it is. The fitted one has no `presence_question` where the
            base cannot be asked, which is said in a warning.
        examples: prompts with masks; those with an empty mask name nothing.
        validation: share of the pictures that each fold holds out.
        data: what the examples are, for the report.

    Returns:
        The report, the config of the fitted readout, and the readout.

    Raises:
        InputError: too few pictures or prompts with a target.
        FitError: it points no better than chance on pictures that it had not seen.
    """
    if not 0 < validation <= 0.5:
        raise InputError(f"validation must be a share of the pictures, above 0 and at most 0.5; got {validation!r}.")
    names = [(layer, head) for layer in base.anatomy.readable for head in range(base.anatomy.num_heads[layer])]
    given = list(examples)
    if config.presence_question and given:
        try:
            base.yes_over_no([given[0].image], [given[0].prompt], config.presence_question)
        except InputError as error:
            logger.warning(f"The base is not asked whether a thing is there: {error}")
            config = LensConfig.from_dict({**config.to_dict(), "presence_question": None})
    seen = read_examples(base, given, ask=config.presence_question is not None)
    return choose_and_judge(names, config, seen, validation=validation, data=data)


def choose_and_judge(
    names: Sequence[tuple[int, int]],
    config: LensConfig,
    seen: Sequence[Seen],
    *,
    validation: float,
    data: str = "",
    heads: int = HEADS,
) -> tuple[FitReport, LensConfig, Readout]:
    """As `fit_readout`, of what was read before.

    Args:
        names: (layer, head) of each of the H heads that were read.
        config, validation, data: as for `fit_readout`.
        seen: of every prompt.
        heads: how many to choose, at most.
    """
    present, groups = [one for one in seen if one.present], sorted({one.group for one in seen})
    if len({one.group for one in present}) < LEAST_IMAGES:
        raise InputError(
            "A readout is chosen on some pictures and judged on others: expected prompts with a target about at least "
            f"{LEAST_IMAGES} pictures, got {len(present)} such prompts about {len({one.group for one in present})}. "
            "Twenty are a good start."
        )
    folds = [groups[k :: ceil(1 / validation)] for k in range(ceil(1 / validation))]
    judged = [_Fit(names, config, [one for one in seen if one.group not in fold], heads) for fold in map(set, folds)]
    held_out = [(one, fit) for fold, fit in zip(folds, judged, strict=True) for one in seen if one.group in set(fold)]
    heats = [(one, *fit.read(one)) for one, fit in held_out]  # (what was seen, logits (h, w), presence)
    hits = [float(_points_at(one.mask, logits)) for one, logits, _ in heats if one.present]
    chances = [float(one.mask.mean()) for one, _, _ in heats if one.present]
    pointing, chance = float(np.mean(hits)), float(np.mean(chances))
    if _luck(chances, int(sum(hits))) > _LUCK:
        raise FitError(
            f"On pictures that the reading had not seen, its hottest point lies in the mask {pointing:.1%} of the time "
            f"and a random one {chance:.1%}, over {len(hits)} prompts: that may be chance. Nothing was changed. Look "
            "at the masks; give more examples, of things that the model knows; or train a head (lens-adapter train)."
        )
    scores = {kind: [score for one, _, score in heats if one.present == kind] for kind in (True, False)}
    threshold = float(np.quantile(scores[True], 1 - ACCEPTED)) if scores[False] else 0.0
    final = _Fit(names, config, seen, heads)
    report = FitReport(
        heads=final.heads,
        examples=len(present),
        absent=len(seen) - len(present),
        images=len(groups),
        pointing=pointing,
        chance=chance,
        present_accepted=float(np.mean([score >= threshold for score in scores[True]])),
        absent_refused=float(np.mean([score < threshold for score in scores[False]])) if scores[False] else None,
        score_threshold=threshold,
        by_depth=final.by_depth,
        reliability=reliability([score for *_, score in heats], [one.present for one, *_ in heats]),
        data=data or FitReport.data,
    )
    fitted = final.config(report)
    readout = Readout(fitted)
    set_readout(readout, final.tensors)
    return report, fitted, readout.eval()


@torch.no_grad()
def read_examples(base: FrozenBase, examples: Iterable[Labelled], *, ask: bool = True) -> list[Seen]:
    """Read every example once, all heads, with a prompt of another picture beside it where no example names nothing."""
    given = list(examples)
    empty = sum(not one.mask.any() for one in given)
    others = empty < len(given) / 4
    layers = base.anatomy.readable
    numbers: dict[Any, int] = {}
    seen: list[Seen] = []
    for index, one in enumerate(tqdm(given, desc="reading the base", unit="prompt")):
        group = numbers.setdefault(getattr(one, "image_id", "") or id(one.image), len(numbers))
        prompts, masks = [one.prompt], [one.mask]
        if others and one.mask.any() and (other := _other_prompt(given, index)) is not None:
            prompts, masks = [one.prompt, other], [one.mask, np.zeros_like(one.mask)]
        reading = base.read([one.image] * len(prompts), prompts, layers=layers, ask=ask)
        raster = rasterize(reading.layouts, "cpu")
        rows = torch.cat([reading.signals.attention[layer][:, :, -1].cpu().float() for layer in layers], dim=1)
        logs = log_attention(rows, attended_tokens(reading.signals).cpu(), raster)
        for row, mask in enumerate(masks):
            size = raster.size[row].tolist()
            cover = coverage(torch.from_numpy(mask), size)
            own = logs[row, :, : size[0], : size[1]].clone()
            yes = 0.0 if reading.yes is None else float(reading.yes[row])
            seen.append(Seen(own, cover, mask, count_parts(mask) > 1, group, yes))
    return seen


def reliability(scores: Sequence[float], present: Sequence[bool], bins: int = 5) -> list[tuple[float, float, int]]:
    """Prompts by score, in equal parts of [0, 1] that hold any: (mean score, share with a target, prompts).

    Scores that are probabilities have the two alike.
    """
    score, truth = np.asarray(scores), np.asarray(present)
    part = np.minimum((score * bins).astype(int), bins - 1)
    return [
        (float(score[part == k].mean()), float(truth[part == k].mean()), int((part == k).sum()))
        for k in sorted(set(part.tolist()))
    ]


def count_parts(mask: np.ndarray, side: int = 64) -> int:
    """Parts of a bool mask (H, W) that do not touch, but for those under a tenth of the largest part's area."""
    small = coverage(torch.from_numpy(mask), (min(side, mask.shape[0]), min(side, mask.shape[1]))) > 0.5
    labels = torch.arange(1.0, small.numel() + 1).view_as(small) * small
    while True:  # the largest number of a part spreads over all of it
        spread = F.max_pool2d(labels[None, None], 3, 1, 1)[0, 0] * small
        if torch.equal(spread, labels):
            break
        labels = spread
    areas = labels[small].unique(return_counts=True)[1]
    return int((areas >= 0.1 * areas.max()).sum()) if len(areas) else 0


def _other_prompt(given: Sequence[Labelled], index: int) -> str | None:
    """A prompt about another picture that is not asked about this one."""
    here = {one.prompt for one in given if one.image is given[index].image}
    around = (given[(index + step) % len(given)] for step in range(1, len(given)))
    return next((one.prompt for one in around if one.prompt not in here and one.mask.any()), None)


def _luck(chances: Sequence[float], hits: int) -> float:
    """Probability of at least so many hits, each of its own chance."""
    exactly = np.ones(1)  # probability of 0, 1, ... hits
    for chance in chances:
        exactly = np.convolve(exactly, [1 - chance, chance])
    return float(exactly[hits:].sum())


def _points_at(mask: np.ndarray, logits: Tensor) -> bool:
    """Whether the hottest point of heat (h, w) lies in a mask (H, W)."""
    found = find_keypoints(logits.sigmoid()[None], torch.tensor([logits.shape]), count=1, radius=0.0, threshold=0.0)
    x, y = found.points[0, 0].tolist()
    height, width = mask.shape
    return bool(mask[min(int(y * height), height - 1), min(int(x * width), width - 1)])


class _Fit:
    """Heads and weights from some of what was seen.

    Attributes:
        heads: chosen, best first.
        by_depth: as in `FitReport`.
        tensors: of a `Readout` with these heads.
    """

    def __init__(self, names: Sequence[tuple[int, int]], config: LensConfig, seen: Sequence[Seen], heads: int):
        self.base_config = config
        present = [one for one in seen if one.present]
        chosen, self.by_depth = _choose(names, present, heads)
        self.chosen, self.heads = chosen, [names[index] for index in chosen]
        pixels = torch.cat([one.logs[chosen].flatten(1) for one in seen], dim=1)  # (H, all cells)
        self.mean, self.deviation = pixels.mean(1), pixels.std(1).clamp(min=1e-6)
        described = [self._described(one) for one in present]
        self.weight = _listwise(described, [one.cover.flatten() for one in present], PENALTY / len(present))
        heat = torch.cat([cells @ self.weight for cells in described])
        self.calibration = _logistic_line(heat, torch.cat([one.cover.flatten() for one in present]))
        facts = [head_facts(one.logs[None, chosen], _everywhere(one)) for one in seen]
        here = torch.tensor([one.present for one in seen])
        spreads, peaks = torch.cat([fact.std for fact in facts]), torch.cat([fact.peak for fact in facts])
        self.several = _logistic(spreads[here], torch.tensor([one.several for one in present]), 0.03)
        heats = torch.cat([heat_facts(self.logits(one)[None], _everywhere(one)) for one in seen])
        values = presence_facts(heats, peaks, torch.tensor([one.yes for one in seen]))
        self.presence = _logistic(values, here, 0.01)

    def _described(self, one: Seen) -> Tensor:
        """(cells, H * 5), as the readout describes them."""
        logs = standardized(one.logs[None, self.chosen], self.mean, self.deviation)
        cells = cells_of(logs, torch.tensor([one.cover.shape]))[0]  # (H, 5, h, w)
        return cells.flatten(0, 1).flatten(1).T

    def logits(self, one: Seen) -> Tensor:
        """Heat (h, w), as logits."""
        heat = (self._described(one) @ self.weight).view(one.cover.shape)
        return self.calibration[0] * heat + self.calibration[1]

    def read(self, one: Seen) -> tuple[Tensor, float]:
        """Heat as logits (h, w), and the presence."""
        logits = self.logits(one)
        peaks = head_facts(one.logs[None, self.chosen], _everywhere(one)).peak
        heat = heat_facts(logits[None], _everywhere(one))
        values = presence_facts(heat, peaks, torch.tensor([one.yes]))[0]
        return logits, float((values @ self.presence[:-1] + self.presence[-1]).sigmoid())

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {
            "mean": self.mean,
            "deviation": self.deviation,
            "weight": self.weight.view(len(self.heads), -1),
            "calibration": self.calibration,
            "several_weight": self.several,
            "presence_weight": self.presence,
        }

    def config(self, report: FitReport) -> LensConfig:
        """That of the fitted readout."""
        layers = sorted({layer for layer, _ in self.heads})
        fitted: LensConfig = LensConfig.from_dict(
            {
                **self.base_config.to_dict(),
                "attention_layers": layers,
                "tap_layer": layers[-1],
                "score_threshold": report.score_threshold,
                "readout": report.to_dict(),
            }
        )
        return fitted


def _everywhere(one: Seen) -> Tensor:
    return torch.ones(1, *one.cover.shape, dtype=torch.bool)


def _choose(
    names: Sequence[tuple[int, int]], present: Sequence[Seen], count: int
) -> tuple[list[int], dict[int, float]]:
    """Indices of the heads to read, best first; and how well the best ones up to each layer agree with the masks."""
    contrast = torch.stack([_contrast(one) for one in present])  # (examples, heads)
    # The mean over its error, which is not believed to be smaller than the usual one: few examples may agree by luck.
    error = contrast.std(0) / sqrt(len(present))
    ranked = (contrast.mean(0) / (error + error.median())).argsort(descending=True).tolist()

    def best_up_to(depth: int) -> list[int]:
        return [index for index in ranked if names[index][0] <= depth][:count]

    depths = sorted({names[index][0] for index in best_up_to(max(layer for layer, _ in names))})
    agreement = {depth: _cross_validated(best_up_to(depth), present) for depth in depths}
    best = max(depths, key=lambda depth: float(agreement[depth].mean()))
    depth = next(depth for depth in depths if _no_worse(agreement[depth], agreement[best]))
    return best_up_to(depth), {depth: float(values.mean()) for depth, values in agreement.items()}


def _contrast(one: Seen) -> Tensor:
    """(heads,) how much hotter each is inside the mask than outside, in its own deviations over this picture.

    Deviations are cut: a sink, which is hot whatever is asked, is no more than a hot cell.
    """
    logs, cover = one.logs.flatten(1), one.cover.flatten()
    logs = ((logs - logs.mean(1, keepdim=True)) / logs.std(1, keepdim=True).clamp(min=1e-6)).clamp(-SINK, SINK)
    inside = logs @ cover / cover.sum()
    return inside - logs @ (1 - cover) / (1 - cover).sum().clamp(min=1e-6)


def _no_worse(values: Tensor, best: Tensor) -> bool:
    """Whether values of the same examples are within one standard error of the best ones, or next to equal."""
    lost = best - values
    return float(lost.mean()) <= max(float(lost.std() / sqrt(len(lost))), _NEXT_TO_NOTHING)


def _cross_validated(heads: Sequence[int], present: Sequence[Seen]) -> Tensor:
    """(examples,) correlation of each mask with what these heads say of it, by a ridge regression on other pictures."""
    groups = sorted({one.group for one in present})
    fold = torch.tensor([groups.index(one.group) % FOLDS for one in present])
    cells, covers = [], []
    for one in present:
        logs = one.logs[None, list(heads)]
        logs = (logs - logs.mean((2, 3), keepdim=True)) / logs.std((2, 3), keepdim=True).clamp(min=1e-6)
        described = cells_of(logs.clamp(-SINK, SINK), torch.tensor([one.cover.shape]))[0].flatten(0, 1).flatten(1).T
        cells.append(described - described.mean(0))  # (cells, H * 5)
        covers.append(one.cover.flatten() - one.cover.mean())
    grams = torch.stack([x.T @ x / len(x) for x in cells])
    targets = torch.stack([x.T @ y / len(x) for x, y in zip(cells, covers, strict=True)])
    weights = []
    for k in range(FOLDS):
        others = fold != k
        gram, target = grams[others].mean(0), targets[others].mean(0)
        # Heads that look nowhere in particular say nothing, and must not make the system singular.
        ridge = (gram.diagonal().mean().clamp(min=1e-6) / int(others.sum())) * torch.eye(len(gram))
        weights.append(torch.linalg.solve(gram + ridge, target))
    values = []
    for k, described, cover in zip(fold.tolist(), cells, covers, strict=True):
        heat = described @ weights[k]
        values.append(heat @ cover / (heat.norm() * cover.norm()).clamp(min=1e-9))
    return torch.stack(values)


def _minimized(loss: Any, start: Tensor) -> Tensor:
    """Where a smooth loss of a vector is least."""
    with torch.enable_grad():
        weight = start.clone().requires_grad_()
        steps = torch.optim.LBFGS([weight], max_iter=_BRIEF, line_search_fn="strong_wolfe", tolerance_grad=1e-6)

        def closure() -> Any:
            steps.zero_grad()
            value = loss(weight)
            value.backward()
            return value

        steps.step(closure)
    return weight.detach()


def _listwise(described: Sequence[Tensor], covers: Sequence[Tensor], penalty: float) -> Tensor:
    """(F,) weights under which softmax over each picture's cells falls into its mask."""
    shares = [cover / cover.sum() for cover in covers]
    alike = len({cells.shape for cells in described}) == 1
    if alike:
        cells, share = torch.stack(list(described)).double(), torch.stack(shares).double()

        def loss(weight: Tensor) -> Tensor:
            fit = -(share * (cells @ weight).log_softmax(1)).sum(1).mean()
            return fit + 0.5 * penalty * weight @ weight
    else:
        pairs = [(cells.double(), share.double()) for cells, share in zip(described, shares, strict=True)]

        def loss(weight: Tensor) -> Tensor:
            fits = [-(share * (cells @ weight).log_softmax(0)).sum() for cells, share in pairs]
            return torch.stack(fits).mean() + 0.5 * penalty * weight @ weight

    return _minimized(loss, torch.zeros(described[0].shape[1], dtype=torch.double)).float()


def _logistic_line(heat: Tensor, cover: Tensor) -> Tensor:
    """(2,) scale and offset under which sigmoid(heat) is the share of a cell that is covered."""
    x, y = heat.double(), cover.double()

    def loss(line: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(line[0] * x + line[1], y)

    line = _minimized(loss, torch.tensor([1.0, -2.0], dtype=torch.double)).float()
    return torch.stack([line[0].clamp(min=1e-3), line[1]])


def _logistic(values: Tensor, truth: Tensor, penalty: float) -> Tensor:
    """(F + 1,) weights and bias that tell the true rows from the others; where all are alike, a bias that says so."""
    if bool(truth.all()) or not bool(truth.any()):
        constant = torch.zeros(values.shape[1] + 1)
        constant[-1] = 10.0 if bool(truth.all()) else -10.0
        return constant
    mean, deviation = values.mean(0), values.std(0).clamp(min=1e-6)
    x, y = ((values - mean) / deviation).double(), truth.double()

    def loss(weight: Tensor) -> Tensor:
        fit = F.binary_cross_entropy_with_logits(x @ weight[:-1] + weight[-1], y)
        return fit + 0.5 * penalty * weight[:-1] @ weight[:-1]

    weight = _minimized(loss, torch.zeros(values.shape[1] + 1, dtype=torch.double)).float()
    scaled = weight[:-1] / deviation
    return torch.cat([scaled, (weight[-1] - scaled @ mean)[None]])
