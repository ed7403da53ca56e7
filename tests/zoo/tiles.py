"""Architectures that cut an image into square tiles, and add a thumbnail of the whole."""

from __future__ import annotations

from typing import Any

import transformers

from tests.zoo.specimen import Specimen
from tests.zoo.stitched import LLAMA, specimen, words

TILE = 56  # pixels; 4 x 4 patches of 14, which make 2 x 2 tokens
SIZE = {"height": TILE, "width": TILE}
TILES = {"size": SIZE, "crop_to_patches": True, "max_patches": 6}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": TILE,
    "patch_size": 14,
}
SIGLIP = {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False}
QWEN = {**LLAMA, "model_type": "qwen2"}
COHERE = {**LLAMA, "model_type": "cohere2"}
FIRST_ID = 267  # of the tokens that `words` adds

INTERNVL_TOKENS = ("<IMG_CONTEXT>", "<img>", "</img>")
AYA_TOKENS = ("<|IMG_PATCH|>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>")
OVIS_TOKENS = ("<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
IDEFICS_TOKENS = ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>")
LLAMA4_TOKENS = (
    *("<|patch|>", "<|image|>", "<|image_start|>", "<|image_end|>"),
    *("<|tile_x_separator|>", "<|tile_y_separator|>"),
)


def make(name: str, **settings: Any) -> Any:
    """An image processor by its name in transformers 5; transformers 4 calls some of them fast."""
    return (getattr(transformers, name, None) or getattr(transformers, f"{name}Fast"))(**settings)


def internvl_words() -> Any:
    return words(
        *INTERNVL_TOKENS,
        context_image_token="<IMG_CONTEXT>",
        start_image_token="<img>",
        end_image_token="</img>",
        video_token="<|video_pad|>",
    )


def internvl_config() -> dict[str, Any]:
    return {"text_config": QWEN, "vision_config": VISION, "image_token_id": FIRST_ID, "image_seq_length": 4}


def idefics_config() -> dict[str, Any]:
    return {"text_config": LLAMA, "vision_config": VISION, "image_token_id": 259, "scale_factor": 2}


def idefics_images(name: str, tile: int) -> Any:
    return make(name, size={"longest_edge": 3 * tile}, max_image_size={"longest_edge": tile})


SPECIMENS: dict[str, Specimen] = {
    # 2 rows of 3 tiles, then the thumbnail.
    "internvl": specimen(
        "internvl",
        internvl_config,
        # The image processor cuts nothing by itself: the processor tells it to.
        lambda: transformers.InternVLProcessor(
            make("GotOcr2ImageProcessor", size=SIZE, max_patches=6),
            internvl_words(),
            transformers.InternVLVideoProcessor(),
            image_seq_length=4,
        ),
        image_token="<IMG_CONTEXT>",
        image=(100, 150),
    ),
    "qianfan_ocr": specimen(
        "qianfan_ocr",
        internvl_config,
        lambda: transformers.QianfanOCRProcessor(
            make("GotOcr2ImageProcessor", size=SIZE, max_patches=6), internvl_words(), image_seq_length=4
        ),
        image=(150, 100),
    ),
    "aya_vision": specimen(
        "aya_vision",
        lambda: {"text_config": COHERE, "vision_config": SIGLIP, "image_token_index": FIRST_ID},
        lambda: transformers.AyaVisionProcessor(
            make("GotOcr2ImageProcessor", size=SIZE, max_patches=6),
            words(*AYA_TOKENS),
            patch_size=14,
            img_size=TILE,
            downsample_factor=2,
        ),
        image=(100, 150),
    ),
    # Tiles of 60 pixels, of which patches cover 56.
    "cohere2_vision": specimen(
        "cohere2_vision",
        lambda: {
            "text_config": COHERE,
            "vision_config": {**SIGLIP, "image_size": 60},
            "image_token_id": FIRST_ID,
            "alignment_intermediate_size": 64,
        },
        lambda: transformers.Cohere2VisionProcessor(
            make("Cohere2VisionImageProcessor", size={"height": 60, "width": 60}, max_patches=6, patch_size=2),
            words(
                *AYA_TOKENS,
                image_token="<|IMG_PATCH|>",
                boi_token="<|START_OF_IMG|>",
                eoi_token="<|END_OF_IMG|>",
                img_line_break_token="<|IMG_LINE_BREAK|>",
            ),
        ),
        image_token="<|IMG_PATCH|>",
        image=(100, 170),
    ),
    # The thumbnail, then 2 rows of 3 tiles.
    "perception_lm": specimen(
        "perception_lm",
        lambda: {
            "text_config": LLAMA,
            "vision_config": {
                "architecture": "vit_pe_lang_large_patch14_448",
                "model_args": {
                    "embed_dim": 32,
                    "num_heads": 2,
                    "depth": 1,
                    "img_size": [TILE, TILE],
                    "ref_feat_shape": [4, 4],
                    "global_pool": "",
                },
            },
            "projector_pooling_ratio": 2,
            "image_token_id": 259,
            "video_token_id": 266,
        },
        lambda: transformers.PerceptionLMProcessor(
            transformers.PerceptionLMVideoProcessor(),
            make("PerceptionLMImageProcessor", tile_size=TILE, max_num_tiles=6),
            words(image_token="<image>", video_token="<|video_pad|>"),
            patch_size=14,
            pooling_ratio=2,
        ),
        image=(100, 150),
        requires=("timm",),
    ),
    "ovis2": specimen(
        "ovis2",
        lambda: {
            "text_config": QWEN,
            "vision_config": {**VISION, "hidden_stride": 2, "vocab_size": 64},
            "image_token_id": FIRST_ID,
            "visual_indicator_token_ids": list(range(FIRST_ID + 1, FIRST_ID + 6)),
            "hidden_size": 32,
            "vocab_size": 300,
        },
        lambda: transformers.Ovis2Processor(
            make("Ovis2ImageProcessor", **TILES, use_covering_area_grid=False), words(*OVIS_TOKENS), image_seq_length=4
        ),
        image=(100, 150),
    ),
    "idefics3": specimen(
        "idefics3",
        idefics_config,
        lambda: transformers.Idefics3Processor(
            idefics_images("Idefics3ImageProcessor", TILE), words(*IDEFICS_TOKENS), image_seq_len=4
        ),
        image=(100, 150),
    ),
    # Patches do not cover all of a tile.
    "smolvlm": specimen(
        "smolvlm",
        idefics_config,
        lambda: transformers.SmolVLMProcessor(
            idefics_images("SmolVLMImageProcessor", TILE + 4),
            words(*IDEFICS_TOKENS),
            transformers.SmolVLMVideoProcessor(),
            image_seq_len=4,
        ),
        image=(150, 100),
        requires=("num2words",),
    ),
    "granite_docling": specimen(
        "granite_docling",
        lambda: {
            "text_config": {**LLAMA, "model_type": "granite_docling_text"},
            "vision_config": {
                **VISION,
                "out_hidden_size": 32,
                "scale_factor": 2,
                "deepstack_visual_indexes": [0],
            },
            "image_token_id": 259,
        },
        lambda: transformers.GraniteDoclingProcessor(
            make("GraniteDoclingImageProcessor", **TILES), words(*IDEFICS_TOKENS), image_seq_len=4
        ),
        image=(100, 150),
    ),
    # The tiles to the right and below end in padding.
    "llama4": specimen(
        "llama4",
        lambda: {
            "text_config": {
                **LLAMA,
                "model_type": "llama4_text",
                "head_dim": 8,
                "intermediate_size_mlp": 48,
                "num_local_experts": 2,
            },
            "vision_config": {
                **VISION,
                "model_type": "llama4_vision_model",
                "intermediate_size": 64,
                "projector_input_dim": 32,
                "projector_output_dim": 32,
                "vision_output_dim": 32,
            },
            "dtype": "bfloat16",  # as its pixels are
            "image_token_index": FIRST_ID,
            "boi_token_index": FIRST_ID + 2,
            "eoi_token_index": FIRST_ID + 3,
        },
        lambda: transformers.Llama4Processor(
            make("Llama4ImageProcessor", size=SIZE, max_patches=6), words(*LLAMA4_TOKENS)
        ),
        image_token="<|image|>",
        image=(100, 160),
    ),
}
