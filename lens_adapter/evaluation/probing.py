"""Which layers of a frozen model already point at what a prompt names, before anything is trained.

Every example gives, per layer and head, the attention of the last token to the image tokens. Two questions are asked
of it. The pointing game: does the hottest token's box have its centre in the mask? The mass ratio: how much of the
attention falls into the mask, against what attention spread evenly over the image tokens would put there?

How `tap_layer` follows: a mirror tapped at layer k starts as a copy of layers k, k + 1, ..., and its heat is the
head-mean attention of the first copy; a lite head tapped there reads, by default, the attention of layers k - 1 and k.
So the layer to tap is the one whose own head-mean attention points best, which is what is measured here, untrained.
Layers are ranked by the mass ratio, and by the pointing game where that is equal. A useful peak may lie one token
beside the mask, which the pointing game calls a miss: in a causal decoder later tokens can gather what earlier ones
show. (The built-in model, on which this was seen, looks just below what it means.) It is a rule of thumb all the same:
where two layers are close, train a head on each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lens_adapter.builtin.world.labelled import labelled_scenes
from lens_adapter.config import LensConfig
from lens_adapter.data.formats import DataSource
from lens_adapter.errors import InputError, LensError
from lens_adapter.fitting import Labelled
from lens_adapter.pictures.saving import save_picture
from lens_adapter.vlm.base import FrozenBase

_LEAST = 1e-12  # what no attention is divided by less than


@dataclass(frozen=True)
class Score:
    """How well one row of attention points.

    Attributes:
        pointing: share of the examples in which the hottest token's centre lies in the mask, in [0, 1].
        mass_ratio: attention inside the mask over that of an even spread, both summed over examples; 1: it does not
            know where the target is.
    """

    pointing: float
    mass_ratio: float


@dataclass(frozen=True)
class ProbeResult:
    """What `probe` measured.

    Attributes:
        layers: {layer: score of its head-mean attention}, of every decoder layer whose attention can be read.
        heads: {(layer, head): score}.
        chance: pointing of a random image token.
        examples: how many were measured; `skipped` more name nothing in their image.
        num_layers: of the decoder.
        default_tap_layer: what `LensConfig` takes when it is told nothing.
    """

    layers: dict[int, Score]
    heads: dict[tuple[int, int], Score]
    chance: float
    examples: int
    skipped: int
    num_layers: int
    default_tap_layer: int

    @property
    def ranked_layers(self) -> list[int]:
        """Best first."""
        return _ranked(self.layers)

    @property
    def ranked_heads(self) -> list[tuple[int, int]]:
        """Best first. The best of many heads is partly luck: measure it again on other examples."""
        return _ranked(self.heads)

    @property
    def recommended_tap_layer(self) -> int:
        """The best layer: that whose attention a mirror would start from, and a lite head would read."""
        return self.ranked_layers[0]

    def to_dict(self) -> dict[str, Any]:
        """Every figure, ready for JSON."""
        heads = {layer: [self.heads[key] for key in sorted(self.heads) if key[0] == layer] for layer in self.layers}
        return {
            "recommended_tap_layer": self.recommended_tap_layer,
            "default_tap_layer": self.default_tap_layer,
            "ranked_layers": self.ranked_layers,
            "examples": self.examples,
            "skipped": self.skipped,
            "chance_pointing": self.chance,
            "layers": [
                {"layer": layer, **vars(score), "heads": [vars(head) for head in heads[layer]]}
                for layer, score in self.layers.items()
            ],
        }

    def summary(self, heads: int = 5) -> str:
        """Text: layers and the best heads, best first, pointing with its standard error; and the recommendation."""
        rows = [(f"layer {layer}", self.layers[layer]) for layer in self.ranked_layers]
        rows += [(f"layer {layer} head {head}", self.heads[layer, head]) for layer, head in self.ranked_heads[:heads]]
        lines = [f"{'head means, then the best heads':<34} {'pointing':>15} {'mass ratio':>11}"]
        for name, score in rows:
            error = sqrt(score.pointing * (1 - score.pointing) / self.examples)
            lines.append(f"{name:<34} {score.pointing:7.3f} ± {error:.3f} {score.mass_ratio:11.2f}")
        lines.append(f"{'chance':<34} {self.chance:7.3f} {1:19.2f}")
        lines.append(f"\n{self.examples} examples; {self.skipped} more name nothing in their image.")
        tap = self.recommended_tap_layer
        lines.append(f"Recommended: tap_layer {tap} (a new head's default is {self.default_tap_layer}).")
        room, depth = self.num_layers - tap, LensConfig(fusion="lite").fusion_layers
        if room < depth:
            lines.append(
                f"A mirror finds fewer layers there than its default of {depth}: give it fusion_layers={room}."
            )
        return "\n".join(lines)

    def plot(self) -> Image.Image:
        """Layers by heads in color; head means at the left, a mark at the recommended layer."""
        return _draw(self)

    def save(self, path: str | Path) -> None:
        """Write `plot()` to `path`, whole or not at all; the format follows the suffix.

        Raises:
            InputError: the suffix is of no picture, or the file cannot be written.
        """
        save_picture(self.plot(), path)


def probe(
    model: Any,
    processor: Any = None,
    data: str | Path | Mapping[str, Any] | Iterable[Labelled] | None = None,
    *,
    count: int = 100,
    prompt_template: str | None = None,
) -> ProbeResult:
    """Rank the layers and heads of a frozen model by how well its own attention points; nothing is trained or changed.

    Args:
        model: as `LensAdapter.attach` takes it.
        processor: as `LensAdapter.attach` takes it.
        data: as `LensAdapter.fit` takes examples; some hundred tell layers apart. None: `count` prompts about scenes of
            the built-in world. Whether what points there points in photographs, too, is not known.
        count: how many, where no data are given.
        prompt_template: what is asked; default: that of `LensConfig`.

    Raises:
        UnsupportedModelError: the model cannot be read.
        LensConfigError: a template without {prompt}.
        InputError: no processor; data that cannot be used, or has no target at all.
    """
    if data is None:
        data = (scene for scene in labelled_scenes(count) if scene.mask.any())
    if isinstance(data, (str, Path, Mapping)):
        data = DataSource.of(data).examples()
    given = {} if prompt_template is None else {"prompt_template": prompt_template}
    config = LensConfig.from_model(model, fusion="lite", **given)
    base = FrozenBase(model, processor, config)
    base.require_processor()
    tally, skipped = Tally(), 0
    for example in tqdm(data, desc="examples"):
        if example.mask.any():
            tally.add(*_look(base, example))
        else:
            skipped += 1
    if not tally.even:
        raise InputError(
            f"probe needs examples with a target that the model sees; got {tally.examples} whose target lies outside "
            f"all image tokens, and {skipped} without any. Look at the masks, and at what the processor crops away."
        )
    layers, heads = tally.scores()
    return ProbeResult(
        layers=layers,
        heads=heads,
        chance=tally.chance / tally.examples,
        examples=tally.examples,
        skipped=skipped,
        num_layers=config.num_hidden_layers,
        default_tap_layer=config.tap_layer,
    )


def _look(base: FrozenBase, example: Labelled) -> tuple[dict[int, Tensor], Tensor, Tensor]:
    """{layer: (heads, n) attention of the last token to the image tokens}, and `tokens_in` of the mask."""
    reading = base.read([example.image], [example.prompt], layers=base.anatomy.readable)
    (layout,), attention = reading.layouts, reading.signals.attention
    rows = {layer: heads[0, :, 0].cpu()[:, layout.positions.cpu()] for layer, heads in attention.items()}
    return rows, *tokens_in(layout.boxes.cpu(), example.mask)


def tokens_in(boxes: Tensor, mask: np.ndarray) -> tuple[Tensor, Tensor]:
    """Boxes (n, 4) in fractions, bool mask (H, W) -> which have their centre in it, how much of each is in it: (n,)."""
    pixels = torch.from_numpy(mask)
    scale = torch.tensor([mask.shape[1], mask.shape[0]])
    start, end = (boxes.float().view(-1, 2, 2) * scale[None, None]).unbind(1)  # (n, 2) each, x y in pixels
    x, y = ((start + end) / 2).long().minimum(scale - 1).unbind(1)
    columns, rows = (_overlap(start[:, axis], end[:, axis], int(scale[axis])) for axis in (0, 1))
    covered = ((rows @ pixels.float()) * columns).sum(1)
    return pixels[y, x].float(), covered / (rows.sum(1) * columns.sum(1))


def _overlap(start: Tensor, end: Tensor, count: int) -> Tensor:
    """Intervals (n,) and pixels [0, 1], [1, 2], ... -> length of each overlap (n, count)."""
    low = torch.arange(count)
    return (end[:, None].clamp(max=low + 1) - start[:, None].clamp(min=low)).clamp(min=0)


class Tally:
    """Sums over examples. `sums`: {layer: float64 (1 + heads, 2)}, hits and mass of the head mean, then each head's."""

    def __init__(self) -> None:
        self.sums: dict[int, Tensor] = {}
        self.examples, self.chance, self.even = 0, 0.0, 0.0

    def add(self, rows: dict[int, Tensor], inside: Tensor, covered: Tensor) -> None:
        self.examples += 1
        self.chance += float(inside.mean())
        self.even += float(covered.mean())
        for layer, heads in rows.items():
            if not heads.isfinite().all():
                raise LensError(f"The attention of layer {layer} is not finite. Load the model in float32 or bfloat16.")
            heat = torch.cat([heads.mean(0, keepdim=True), heads])  # (1 + heads, n)
            hottest = (heat == heat.amax(1, keepdim=True)).float()  # equal tokens share the hit
            hits = hottest @ inside / hottest.sum(1)
            mass = heat @ covered / heat.sum(1).clamp(min=_LEAST)  # none where the image is not attended to
            self.sums[layer] = self.sums.get(layer, 0) + torch.stack([hits, mass], dim=1).double()

    def scores(self) -> tuple[dict[int, Score], dict[tuple[int, int], Score]]:
        layers: dict[int, Score] = {}
        heads: dict[tuple[int, int], Score] = {}
        for layer, sums in self.sums.items():
            first, *others = (Score(hits / self.examples, mass / self.even) for hits, mass in sums.tolist())
            layers[layer] = first
            heads |= {(layer, head): score for head, score in enumerate(others)}
        return layers, heads


def _ranked(scores: dict[Any, Score]) -> list[Any]:
    return sorted(scores, key=lambda key: (scores[key].mass_ratio, scores[key].pointing), reverse=True)


def _draw(result: ProbeResult) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure

    scores, tap = [*result.layers.values(), *result.heads.values()], result.recommended_tap_layer
    width = 2 + 1 + max(head for _, head in result.heads)  # head mean, a gap, the heads
    best = max(score.pointing for score in scores)
    ratio = max(2.0, *(score.mass_ratio for score in scores))
    panels = (  # both scales are safe for the color-blind
        ("pointing", f"Pointing game (chance {result.chance:.3f})", "cividis", Normalize(0, max(best, 0.1))),
        ("mass_ratio", "Attention in the mask / even spread", "PuOr_r", LogNorm(1 / ratio, ratio, clip=True)),
    )
    size = (3.4 + 2 * float(np.clip(0.3 * width, 2.6, 6)), 1.6 + float(np.clip(0.3 * result.num_layers, 1.8, 8)))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    figure.suptitle(
        f"Attention of the last token, {result.examples} examples: recommended tap_layer {tap}", fontsize=12
    )
    for axes, (name, title, colors, norm) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        cells = np.full((result.num_layers, width), np.nan)
        for layer, score in result.layers.items():
            cells[layer, 0] = getattr(score, name)
        for (layer, head), score in result.heads.items():
            cells[layer, 2 + head] = getattr(score, name)
        picture = axes.imshow(cells, colors, norm, aspect="auto", interpolation="nearest")
        for unreadable in set(range(result.num_layers)) - set(result.layers):
            axes.axhspan(unreadable - 0.5, unreadable + 0.5, color="0.85")
        axes.plot(1, tap, "<k", markersize=7)  # in the gap
        step = 1 + (width - 3) // 8
        axes.set_xticks([0, *range(2, width, step)], ["mean", *map(str, range(0, width - 2, step))])
        axes.set_yticks(range(0, result.num_layers, 1 + (result.num_layers - 1) // 16))
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("head")
        axes.set_frame_on(False)
        bar = figure.colorbar(picture, ax=axes)
        if name == "mass_ratio":
            bar.set_ticks([1 / ratio, 1, ratio], labels=[f"{1 / ratio:.2g}", "1", f"{ratio:.2g}"], minor=False)
            bar.minorticks_off()
    figure.axes[0].set_ylabel("decoder layer")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
