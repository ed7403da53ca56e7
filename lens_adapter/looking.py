"""Where a frozen model looks when it is asked about something: heat over a picture, without a SAM."""

from __future__ import annotations

from PIL.Image import Image

from lens_adapter.config import LensConfig
from lens_adapter.errors import LensConfigError
from lens_adapter.head.head import LensHead
from lens_adapter.head.raster import rasterize
from lens_adapter.head.readout import Readout
from lens_adapter.vlm.base import FrozenBase
from lens_adapter.vlm.images import ImageInput, load_image
from lens_adapter.vlm.state import evaluation_mode


def look(
    base: FrozenBase,
    pointer: LensHead | Readout,
    config: LensConfig,
    image: ImageInput,
    prompt: str,
    *,
    layer: int | None = None,
    head: int | None = None,
) -> Image:
    """What `LensAdapter.look` shows.

    Args:
        base: the frozen model.
        pointer: the head of the adapter.
        config: of the adapter; it names the tapped layer.
        image, prompt, layer, head: as for `LensAdapter.look`, whose errors these are.
    """
    from lens_adapter.pictures.overlays import heatmap_overlay

    picture = load_image(image)
    unfitted = isinstance(pointer, Readout) and not pointer.heads
    if layer is None and head is None and not unfitted:
        with base.turn(), evaluation_mode(pointer):
            prompts = pointer(base.read([picture], [prompt], ask=False))
        height, width = prompts.size[0].tolist()
        heat = prompts.heatmap[0, :height, :width].cpu()
    else:
        layer = config.tap_layer if layer is None else layer
        reading = base.read([picture], [prompt], layers=[layer], ask=False)
        rows = reading.signals.attention[layer][0, :, -1].cpu().float()  # (heads, T)
        if head is not None and not 0 <= head < len(rows):
            raise LensConfigError(f"head must be one of layer {layer}, from 0 to {len(rows) - 1}; got {head}.")
        row = rows.mean(0) if head is None else rows[head]
        raster = rasterize(reading.layouts)
        heat = raster.spread(row[None].gather(1, raster.positions))[0]
    return heatmap_overlay(picture, heat / heat.max().clamp(min=1e-12))
