"""Which layout which architecture has: data, one row each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    "gemma3n": LayoutRow(square_grid, {"tokens": "vision_soft_tokens_per_image"}),
    "glm5_next": _VARIABLE,
    "qwen2_vl": _VARIABLE,
    "qwen2_5_vl": _VARIABLE,
    "qwen3_vl": _VARIABLE,
    "qwen3_vl_moe": _VARIABLE,
    "qwen4_exp": _VARIABLE,
}


def register_layout(architecture: str, row: LayoutRow) -> None:
    """Teach the adapter the layout of another architecture (its `config.model_type`), or replace a row."""
    LAYOUTS[architecture] = row
