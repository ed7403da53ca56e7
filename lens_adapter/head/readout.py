"""A linear reading of chosen attention heads: nothing is trained through a network, and nothing large is kept.

Attention of the last token to the image tokens, of a few heads that were chosen for how well they point, is laid over
the picture as `log(attention * tokens + floor)`; a cell is described by that value in itself and in its four neighbors;
a weight for each makes heat. `lens_adapter.fitting` finds heads and weights from a handful of examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lens_adapter.config import LensConfig
from lens_adapter.errors import LensError
from lens_adapter.head.fusion import attended_tokens
from lens_adapter.head.keypoints import find_keypoints
from lens_adapter.head.raster import Raster, rasterize
from lens_adapter.signals import Keypoints, LensSignals, Reading, SparsePrompts

ATTENTION_FLOOR = 1e-2  # of uniform attention; keeps the logarithm of an unattended token near
NEIGHBOR_SCALE = 0.3  # a neighbor's value counts less than the cell's own, for the same weight
CELL = 5  # values that describe a cell: of itself, and of the cells above, to the left, to the right and below
HEAT_FACTS = 3  # of a whole heatmap: its peak, its mass (log-sum-exp), its spread
SINK = 3.0  # deviations that attention is cut at
CERTAIN = 20.0  # logits that the base's own yes or no is cut at
ALONE = 1.0  # cells; around one thing there is one keypoint
_OTHERS = 0.1  # where a prompt names several things: a keypoint is kept above this share of the peak


class Readout(nn.Module):
    """The head of `fusion="readout"`: heat, points for an untouched SAM to click on, and whether anything is there.

    Its tensors are set by a fit, and are no parameters that learn. H is the number of chosen heads.

    Args:
        config: `config.readout["heads"]` are the chosen ones, (layer, head) each; None: not fitted yet.
    """

    mean: Tensor
    deviation: Tensor
    weight: Tensor
    calibration: Tensor
    several_weight: Tensor
    presence_weight: Tensor

    def __init__(self, config: LensConfig):
        super().__init__()
        self.config = config
        self.heads = [(layer, head) for layer, head in (config.readout or {}).get("heads", [])]
        count = len(self.heads)
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("deviation", torch.ones(count))
        self.register_buffer("weight", torch.zeros(count, CELL))
        self.register_buffer("calibration", torch.tensor([1.0, 0.0]))  # heat = sigmoid(first * reading + second)
        self.register_buffer("several_weight", torch.zeros(count + 1))  # the last one is the bias
        self.register_buffer("presence_weight", torch.zeros(count + HEAT_FACTS + 2))

    def forward(self, reading: Reading, keypoint_dropout: float = 0.0) -> SparsePrompts:
        """Heat and keypoints of N prompts; no vectors, so that the decoder takes the points as clicks.

        Args:
            reading: of the frozen base, with the rows of the chosen heads.
            keypoint_dropout: of no effect: nothing here learns.

        Raises:
            LensError: not fitted yet, or the signals lack a chosen head's layer.
            InputError: a row without image tokens.
        """
        if not self.heads:
            raise LensError(
                "This readout was not fitted yet: call adapter.fit(examples), or adapter.fit() for scenes that come "
                "with the package, before it is asked for masks."
            )
        device = self.weight.device
        raster = rasterize(reading.layouts, device)
        rows = self._chosen(reading.signals).to(device)  # (N, H, T)
        logs = log_attention(rows, attended_tokens(reading.signals).to(device), raster)  # (N, H, rows, columns)
        logits = (
            cells_of(standardized(logs, self.mean, self.deviation), raster.size) * self.weight[:, :, None, None]
        ).sum((1, 2))  # (N, h, w)
        logits = self.calibration[0] * logits + self.calibration[1]
        inside = inside_grid(raster)
        heatmap = torch.where(inside, logits.sigmoid(), 0.0)
        facts = head_facts(logs, inside)  # (N, H)
        several = _linear(facts.std, self.several_weight) > 0
        known = presence_facts(heat_facts(logits, inside), facts.peak, reading.yes)
        presence = _linear(known, self.presence_weight).sigmoid()
        keypoints, shown = self._keypoints(heatmap, raster, several)
        return SparsePrompts(keypoints, shown, None, None, heatmap, raster.size, presence)

    def _chosen(self, signals: LensSignals) -> Tensor:
        """Attention of the last token by the chosen heads, float32 (N, H, T)."""
        if missing := sorted({layer for layer, _ in self.heads} - set(signals.attention)):
            raise LensError(
                f"The readout reads heads of layers {self.config.attention_layers}; the signals hold layers "
                f"{sorted(signals.attention)} and lack {missing}. Read with `layers=`."
            )
        return torch.stack([signals.attention[layer][:, head, -1].float() for layer, head in self.heads], dim=1)

    def _keypoints(self, heatmap: Tensor, raster: Raster, several: Tensor) -> tuple[Keypoints, Tensor]:
        """Peaks of the heat; shown is the hottest alone, or where a prompt names several things, all that are hot."""
        config = self.config
        found = find_keypoints(
            heatmap,
            raster.size,
            count=config.num_keypoints,
            radius=ALONE,
            threshold=min(_OTHERS, config.keypoint_threshold),
        )
        first = torch.arange(found.valid.shape[1], device=several.device) == 0
        shown = found.valid & (first | several[:, None])
        return Keypoints(found.points, torch.where(shown, found.scores, 0.0), shown), shown


def log_attention(rows: Tensor, tokens: Tensor, raster: Raster) -> Tensor:
    """Attention rows on the grid over the picture, in proportion to even attention, as logarithms.

    Args:
        rows: float32 (N, H, T), softmax rows over all tokens.
        tokens: long (N,), how many tokens each row could attend to.
        raster: where the image tokens look.

    Returns:
        float32 (N, H, rows, columns); log(floor) where no token looks.
    """
    heads = rows.shape[1]
    on_image = rows.gather(2, raster.positions[:, None].expand(-1, heads, -1)) * tokens[:, None, None]  # (N, H, n)
    logs = torch.log(on_image + ATTENTION_FLOOR)
    grid = torch.einsum("nrt,nht,nct->nhrc", raster.rows, logs, raster.columns) / raster.total[:, None]
    seen = torch.einsum("nrt,nct->nrc", raster.rows, raster.columns)[:, None] > 0
    floor = torch.log(torch.tensor(ATTENTION_FLOOR, device=grid.device))
    return torch.where(seen, grid, floor)


def standardized(logs: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Log attention (N, H, rows, columns) with mean 0 and deviation 1 over the cells of the fit, cut at SINK.

    A sink (a token that is hot whatever is asked) is then no hotter than a hot cell.
    """
    return ((logs - mean[:, None, None]) / deviation[:, None, None]).clamp(-SINK, SINK)


def cells_of(values: Tensor, size: Tensor) -> Tensor:
    """(N, H, rows, columns) -> (N, H, 5, rows, columns): each cell's value, and those above, left, right and below.

    At the border of a sample's own grid, `size` (N, 2), the cell stands in for the neighbor that it lacks.
    """
    height, width = values.shape[-2:]
    row, column = torch.arange(height, device=values.device), torch.arange(width, device=values.device)
    last_row, last_column = (size - 1).to(values.device).unbind(-1)  # (N,) each

    def shifted(down: int, right: int) -> Tensor:
        y = (row + down).clamp(min=0)[None].minimum(last_row[:, None].clamp(max=height - 1))  # (N, rows)
        x = (column + right).clamp(min=0)[None].minimum(last_column[:, None].clamp(max=width - 1))
        index = y[:, None, :, None].expand(-1, values.shape[1], -1, width)
        moved = values.gather(2, index)
        return moved.gather(3, x[:, None, None].expand_as(moved))

    around = [NEIGHBOR_SCALE * shifted(*step) for step in ((-1, 0), (0, -1), (0, 1), (1, 0))]
    return torch.stack([values, *around], dim=2)


def inside_grid(raster: Raster) -> Tensor:
    """bool (N, rows, columns): the cells of each sample's own grid."""
    height, width = raster.total.shape[1:]
    row = torch.arange(height, device=raster.size.device)[:, None]
    column = torch.arange(width, device=raster.size.device)
    return (row < raster.size[:, 0, None, None]) & (column < raster.size[:, 1, None, None])


class HeadFacts:
    """How each head's attention is spread over a picture, whatever lies where.

    Attributes:
        std: (N, H), deviation of the log attention over the cells.
        peak: (N, H), its maximum.
    """

    def __init__(self, std: Tensor, peak: Tensor):
        self.std, self.peak = std, peak


def head_facts(logs: Tensor, inside: Tensor) -> HeadFacts:
    """Of log attention (N, H, rows, columns) over the cells `inside` (N, rows, columns)."""
    mask = inside[:, None]
    count = mask.sum((2, 3)).clamp(min=2)
    mean = torch.where(mask, logs, 0.0).sum((2, 3)) / count
    variance = torch.where(mask, (logs - mean[..., None, None]) ** 2, 0.0).sum((2, 3)) / (count - 1)
    return HeadFacts(variance.sqrt(), logs.masked_fill(~mask, -torch.inf).amax((2, 3)))


def heat_facts(logits: Tensor, inside: Tensor) -> Tensor:
    """Peak, mass and spread of heat, given as logits (N, rows, columns), over the cells `inside`: (N, 3)."""
    low = logits.masked_fill(~inside, -torch.inf).flatten(1)
    return torch.stack([low.amax(1), low.logsumexp(1), head_facts(logits[:, None], inside).std[:, 0]], dim=1)


def presence_facts(heat: Tensor, peaks: Tensor, yes: Tensor | None) -> Tensor:
    """What tells whether anything is there.

    Args:
        heat: (N, 3), from `heat_facts`.
        peaks: (N, H), of the chosen heads.
        yes: (N,), the base's own answer; None: it was not asked.

    Returns:
        (N, 3 + H + 1); the last is 0 where the base was not asked.
    """
    said = heat.new_zeros(len(heat)) if yes is None else yes.to(heat)
    return torch.cat([heat, peaks, said.clamp(-CERTAIN, CERTAIN)[:, None]], dim=1)


def coverage(mask: Tensor, size: Sequence[int]) -> Tensor:
    """bool (H, W) -> float32 (h, w): the share of each cell of a grid over the picture that the mask covers."""
    height, width = size
    return F.adaptive_avg_pool2d(mask[None, None].float(), (height, width))[0, 0]


def _linear(values: Tensor, weight: Tensor) -> Tensor:
    return values @ weight[:-1] + weight[-1]


def set_readout(readout: Readout, tensors: Mapping[str, Tensor]) -> None:
    """Give a readout what a fit has found: tensors by the names of its buffers."""
    readout.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
