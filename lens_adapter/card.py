"""The model card that travels with a checkpoint."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from lens_adapter.config import LensConfig

_BODY = """---
{card_data}
---

# LENS head for {base}

A segmentation head that attaches to a **frozen** vision-language model and turns its attention into masks, after
LENS ([arXiv 2510.16785](https://arxiv.org/abs/2510.16785)). The base model is not part of this repository and is never
changed: it chats exactly as before.

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

from lens_adapter import LensAdapter

model = AutoModelForImageTextToText.from_pretrained("{base}")
processor = AutoProcessor.from_pretrained("{base}")
adapter = LensAdapter.from_pretrained("<this repository>").attach(model, processor)
adapter.segment("picture.jpg", "the dog on the left").save("overlay.png")
```

| | |
|---|---|
| fusion | {fusion}, {fusion_layers} layers |
| reads | the input of decoder layer {tap_layer} of {num_hidden_layers}; attention rows of layers {attention_layers} |
| prompt | `{prompt_template}` |
| keypoints | up to {num_keypoints} |
| mask decoder | SAM {sam}; image encoder {encoder} |

{results}
"""
_NO_RESULTS = "No evaluation results are recorded in this card."


def model_card(config: LensConfig, results: str | None = None) -> ModelCard:
    """The card of a head: what it is, what it was made for, how to use it.

    Args:
        config: of the head.
        results: Markdown to end with (data, measured figures, limits).
    """
    base = config.base_model_name_or_path or "the base model"
    data = ModelCardData(
        base_model=config.base_model_name_or_path,
        library_name="lens-adapter",
        license="apache-2.0",
        pipeline_tag="image-segmentation",
        tags=["lens", "referring-segmentation", "adapter", "frozen-base"],
        base_model_relation="adapter" if config.base_model_name_or_path else None,
    )
    text = _BODY.format(
        card_data=data.to_yaml(),
        base=base,
        fusion=config.fusion,
        fusion_layers=config.fusion_layers,
        tap_layer=config.tap_layer,
        num_hidden_layers=config.num_hidden_layers,
        attention_layers=", ".join(map(str, config.attention_layers)) or "none",
        prompt_template=config.prompt_template,
        num_keypoints=config.num_keypoints,
        sam=config.sam["variant"],
        encoder="included" if config.sam["include_image_encoder"] else f"from `{config.sam['weights']}`",
        results=results or _NO_RESULTS,
    )
    return ModelCard(text)


def write_model_card(folder: Path, config: LensConfig) -> None:
    """Write `README.md` into `folder` unless there is one: a card somebody wrote is worth more than ours."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "README.md"
    if not path.exists():
        model_card(config).save(path)
