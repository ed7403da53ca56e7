"""Draw, step by step, how a prompt becomes a mask: image tokens, raw attention, heatmap and keypoints, mask.

    python examples/how_it_works.py docs/how-it-works.png

Shown for the models that ship with the package. With a model and a head of your own, load those in the place of
`builtin.load_base()` and `builtin.load_head()`; nothing else changes.
"""

import sys
from textwrap import fill

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle
from PIL import Image

from lens_adapter import LensAdapter, builtin
from lens_adapter.builtin.demo import SHOWN
from lens_adapter.pictures.overlays import heatmap_overlay, mask_overlay

TITLES = (
    "image and prompt",
    "where each image\ntoken looks",
    "the frozen model's\nattention",
    "the head's heatmap,\nits keypoints",
    "SAM's mask",
)
FONT_SIZE = 16  # is read at half the size on a page
LINE = 3.2  # pixels of the picture, which is shown at half its size too


def draw_steps(adapter: LensAdapter, image: Image.Image, prompts: list[str]) -> plt.Figure:
    """A row per prompt, a column per step."""
    figure, axes = plt.subplots(len(prompts), len(TITLES), figsize=(14, 3 * len(prompts) + 0.6), layout="constrained")
    out = adapter.segment(image, prompts)
    layer = adapter.config.attention_layers[-1]
    for row, prompt in zip(range(len(prompts)), prompts, strict=True):
        reading = adapter.base.read([image], [prompt], layers=[layer])
        (layout,), attention = reading.layouts, reading.signals.attention[layer]  # (1, heads, 1, T)
        raw = attention[0, :, 0].mean(0)[layout.positions].view(layout.grid)
        steps = (
            image,
            image,
            heatmap_overlay(image, raw / raw.max()),
            heatmap_overlay(image, out.heatmaps[row], out.keypoints[row], unit=LINE),
            mask_overlay(image, out.masks[row : row + 1], colors=[row], fade=0.55, fill=0.15, unit=LINE),
        )
        for ax, picture in zip(axes[row], steps, strict=True):
            ax.imshow(picture)
            ax.set(xticks=[], yticks=[])
        for x0, y0, x1, y1 in (layout.boxes * torch.tensor([image.width, image.height] * 2)).tolist():
            axes[row, 1].add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color="white", linewidth=0.8))
        axes[row, 0].set_xlabel(fill(f"“{prompt}”", 20), fontsize=FONT_SIZE)
        axes[row, 4].set_xlabel(f"score {out.scores[row]:.2f}", fontsize=FONT_SIZE)
    for ax, title in zip(axes[0], TITLES, strict=True):
        ax.set_title(title, fontsize=FONT_SIZE)
    return figure


if __name__ == "__main__":
    shown = SHOWN[0]
    with builtin.load_head("lite").attach(*builtin.load_base()) as adapter:
        figure = draw_steps(adapter, shown.scene().draw(384), list(shown.prompts))
    figure.savefig(sys.argv[1], dpi=80)
    print(f"Wrote {sys.argv[1]}")
