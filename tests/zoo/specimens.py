"""All specimens, by architecture (`config.model_type`)."""

from __future__ import annotations

import transformers
from transformers.models.auto import modeling_auto

from tests.zoo import elsewhere, square, stitched, tiles, uneven, variable

ZOO = {
    **square.SPECIMENS,
    **uneven.SPECIMENS,
    **variable.SPECIMENS,
    **stitched.SPECIMENS,
    **tiles.SPECIMENS,
    **elsewhere.SPECIMENS,
}


def architectures() -> set[str]:
    """What AutoModelForImageTextToText of transformers 5, or AutoModelForVision2Seq of transformers 4, can load."""
    if int(transformers.__version__.partition(".")[0]) >= 5:
        return set(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    return set(modeling_auto.MODEL_FOR_VISION_2_SEQ_MAPPING_NAMES)
