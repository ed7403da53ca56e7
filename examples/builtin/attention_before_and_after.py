"""Draw docs/attention.png: where the frozen model looks at a prompt, and where the heads that read it look.

Before: the head-mean attention of the last token in the layer that a head taps, as the frozen model has it; of this
layer an untrained mirror starts as a copy. After: the head's heatmap with its keypoints.

    python examples/builtin/attention_before_and_after.py
"""

from __future__ import annotations

import argparse
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
from PIL import Image
from torch import Tensor

from lens_adapter import LensAdapter, builtin
from lens_adapter.builtin.world import sample_scene
from lens_adapter.pictures.overlays import heatmap_overlay, mask_overlay

OUTPUT = Path(__file__).parents[2] / "docs" / "attention.png"
SCENE = 58341  # of the test split, behind those of the figures
PROMPTS = ("the dog left of the pizza", "everything you can drink from", "the vegetable")
BLUE = 5  # in the palette: nothing in the scene is
LINE = 3.6  # pixels of the picture, which is shown at less than half its size
HEADS = {"mirror": "the paper's head", "lite": "ours"}


def raw_attention(adapter: LensAdapter, image: Image.Image, prompt: str) -> Tensor:
    """(h, w) in [0, 1]: what the last token attends to in the tapped layer of the frozen model, over its peak."""
    layer = adapter.config.tap_layer
    reading = adapter.base.read([image], [prompt], layers=[layer])
    (layout,), rows = reading.layouts, reading.signals.attention[layer]  # (1, heads, 1, T)
    heat = rows[0, :, 0].mean(0)[layout.positions].view(layout.grid)
    return heat / heat.max()


def draw(adapters: dict[str, LensAdapter], image: Image.Image) -> plt.Figure:
    """A row per prompt: before, after and mask of every head."""
    figure, axes = plt.subplots(
        len(PROMPTS), 1 + 3 * len(adapters), figsize=(15, 2.3 * len(PROMPTS) + 0.6), layout="constrained"
    )
    columns = iter(axes.T)
    for ax, prompt in zip(next(columns), PROMPTS, strict=True):
        ax.imshow(image)
        ax.set_xlabel(fill(f"“{prompt}”", 22), fontsize=13)
    for name, adapter in adapters.items():
        before, after, masks = next(columns), next(columns), next(columns)
        before[0].set_title(f"frozen model,\nlayer {adapter.config.tap_layer}", fontsize=14)
        after[0].set_title(f"{name},\n{HEADS[name]}", fontsize=14)
        masks[0].set_title("its mask", fontsize=14)
        out = adapter.segment(image, list(PROMPTS))
        for row, prompt in enumerate(PROMPTS):
            before[row].imshow(heatmap_overlay(image, raw_attention(adapter, image, prompt)))
            after[row].imshow(heatmap_overlay(image, out.heatmaps[row], out.keypoints[row], unit=LINE))
            mask = mask_overlay(image, out.masks[row : row + 1], colors=[BLUE], fade=0.55, fill=0.15, unit=LINE)
            masks[row].imshow(mask)
            masks[row].set_xlabel(f"score {out.scores[row]:.2f}", fontsize=13)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    model, processor = builtin.load_base()
    adapters = {name: builtin.load_head(name).attach(model, processor) for name in HEADS}
    draw(adapters, sample_scene(SCENE, "test").draw(384)).savefig(args.output, dpi=80)
    print(f"Wrote {args.output}")


if __name__ == "__main__":
    main()
