"""Which layout which architecture has: data, one row each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lens_adapter.vlm.windows import Family, fixed_grid, variable_grid


@dataclass(frozen=True)
class LayoutRow:
    """A model's layout.

    Attributes:
        family: the function that reads its windows off the processor's outputs.
        fields: values that the family takes by name, and where in the model's config they stand (dotted paths).
        constants: values that the family takes by name, the same for every checkpoint.
    """

    family: Family
    fields: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)


_FIXED = LayoutRow(
    fixed_grid,
    {
        "patch": "vision_config.patch_size",
        "tower": "vision_config.model_type",
        "features": "vision_feature_select_strategy",
    },
)
_VARIABLE = LayoutRow(variable_grid, {"merge": "vision_config.spatial_merge_size"})

LAYOUTS: dict[str, LayoutRow] = {
    "llava": _FIXED,
    **dict.fromkeys(
        (
            *("cohere_compass", "cosmos3_edge", "cosmos3_omni", "dots3_note", "ernie4_5_vl_moe", "exaone4_5", "glm46v"),
            *("glm4v", "glm4v_moe", "glm_ocr", "glmga", "hyperclovax_vision_v2", "lfm3_vl", "minimax_m3_vl"),
            *("qwen2_5_omni_thinker", "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_omni_moe_thinker"),
            *("qwen3_vl", "qwen3_vl_moe"),
        ),
        _VARIABLE,
    ),
    **dict.fromkeys(
        ("muse_glimmer", "muse_spark"),
        LayoutRow(variable_grid, {"merge": "vision_config.merge_size"}, {"blocks": False}),
    ),
    "inkling2": LayoutRow(variable_grid, constants={"merge": 1, "channels": -1}),
    "kimi_k25": LayoutRow(
        variable_grid, {"merge": "vision_config.merge_kernel_size"}, {"blocks": False, "channels": 1}
    ),
    "paddleocr_vl": replace(_VARIABLE, constants={"blocks": False, "channels": 1}),
    "video_llama_3": LayoutRow(variable_grid, constants={"merge": "image_merge_sizes"}),
}


def register_layout(architecture: str, row: LayoutRow) -> None:
    """Teach the adapter the layout of another architecture (its `config.model_type`), or replace a row."""
    LAYOUTS[architecture] = row
