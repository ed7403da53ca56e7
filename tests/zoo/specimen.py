"""What a specimen of the zoo is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from lens_adapter.vlm.inputs import build_inputs

Ask = Callable[[Any, Sequence[Image.Image]], dict[str, Tensor]]


def ask_processor(processor: Any, images: Sequence[Image.Image]) -> dict[str, Tensor]:
    """What `segment` would give the model: one row per image, the same question about each."""
    return build_inputs(processor, images, ["cat"] * len(images), "Where is {prompt}?")


@dataclass(frozen=True)
class Specimen:
    """One architecture in miniature.

    Attributes:
        build: makes a tiny random model of the real class, in eval mode under its default attention implementation, and
            its real processor (or only its image processor, where no whole one can be made offline).
        image: (H, W) of the pictures it is shown; not square, and with a grid that is not, where the architecture
            allows that, so that a transposed layout shows.
        ask: makes the model's inputs of several images, one row each. The default is the road that `segment` takes.
        no_segment: why `segment` cannot be tried here (no processor can be made offline, say); else None.
        reach: how much of a token's box the probe paints, along each side.
        hits: fraction of the tokens that the probe must find exactly; below 1 only where a tower of convolutions or a
            coarse codebook blurs neighbors (then the best token is at most one cell away for all).
        since: the major version of transformers from which its attention goes through the attention interface.
        requires: modules beside the library's own requirements without which transformers cannot build it.
        note: what is worth knowing for the table of supported models.
    """

    build: Callable[[], tuple[PreTrainedModel, Any]]
    image: tuple[int, int] = (70, 140)
    ask: Ask = field(default=ask_processor)
    no_segment: str | None = None
    reach: float = 0.5
    hits: float = 1.0
    since: int = 4
    requires: tuple[str, ...] = ()
    note: str = ""
