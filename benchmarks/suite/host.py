"""What the CPU does for a picture beside the models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from itertools import count
from typing import Any

import torch
import transformers
from PIL.Image import Image
from transformers import AutoConfig, BatchFeature, ProcessorMixin

from benchmarks import bases
from benchmarks.harness import Comparison, Stage, Work
from benchmarks.suite.registry import PROMPTS, benchmark, picture
from lens_adapter.signals import TokenLayout
from lens_adapter.vlm.anatomy import Anatomy, auto_class, find_anatomy
from lens_adapter.vlm.images import load_image
from lens_adapter.vlm.inputs import build_inputs
from lens_adapter.vlm.layout import tokens

SIZES = {0.3: (480, 640), 2.0: (1200, 1600), 12.0: (3000, 4000)}  # megapixels: (H, W)
REFERENCE, NEW, FIRST = "processor", "layout, a new size", "layout, the first size of all"
CLIP = bases._clip(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
LLAMA = {
    **{"model_type": "llama", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64},
    **{"num_hidden_layers": 1, "num_attention_heads": 4},
}
TALL_AND_WIDE = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]
UP_TO_36 = [(384 * rows, 384 * columns) for rows in range(1, 7) for columns in range(1, 7)]


def _llava() -> tuple[dict[str, Any], ProcessorMixin]:
    return {**bases._LLAVA, "text_config": LLAMA, "vision_config": CLIP}, bases._llava_processor()


def _llava_next() -> tuple[dict[str, Any], ProcessorMixin]:
    images = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": 336}, crop_size=336, image_grid_pinpoints=TALL_AND_WIDE
    )
    facts = {"image_token_index": bases.SPECIAL.index("<image>"), "image_grid_pinpoints": TALL_AND_WIDE}
    return {"model_type": "llava_next", "text_config": LLAMA, "vision_config": CLIP, **facts}, _asked_as_llava(
        transformers.LlavaNextProcessor, images, patch_size=14, num_additional_image_tokens=1
    )


def _llava_onevision() -> tuple[dict[str, Any], ProcessorMixin]:
    images = transformers.LlavaOnevisionImageProcessor(
        size={"height": 384, "width": 384}, image_grid_pinpoints=UP_TO_36
    )
    tower = {**CLIP, "model_type": "siglip_vision_model", "image_size": 384, "vision_use_head": False}
    facts = {"image_token_index": bases.SPECIAL.index("<image>"), "image_grid_pinpoints": UP_TO_36}
    text = {**LLAMA, "model_type": "qwen2", "num_key_value_heads": 4}
    return {"model_type": "llava_onevision", "text_config": text, "vision_config": tower, **facts}, _asked_as_llava(
        transformers.LlavaOnevisionProcessor,
        images,
        video_processor=transformers.LlavaOnevisionVideoProcessor(),
        num_image_tokens=27**2,
    )


def _qwen() -> tuple[dict[str, Any], ProcessorMixin]:
    facts = dict(bases.BASES["qwen2.5-vl-7b"].config)
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3]}
    text = {**LLAMA, "model_type": "qwen2_5_vl_text", "num_key_value_heads": 4, "rope_scaling": rope}
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64, "depth": 1}
    processor = bases._qwen_processor()
    processor.image_processor = transformers.Qwen2VLImageProcessor()  # its own bounds: up to 12.8 megapixels
    return {**facts, "text_config": text, "vision_config": tower}, processor


def _asked_as_llava(kind: type, images: Any, **settings: Any) -> ProcessorMixin:
    words = bases.tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    return kind(
        image_processor=images,
        tokenizer=words,
        vision_feature_select_strategy="default" if "patch_size" in settings else "full",
        chat_template=bases.LLAVA_TEMPLATE,
        **settings,
    )


KINDS: dict[str, Callable[[], tuple[dict[str, Any], ProcessorMixin]]] = {
    "LLaVA-1.5": _llava,
    "LLaVA-NeXT": _llava_next,
    "LLaVA-OneVision": _llava_onevision,
    "Qwen2.5-VL": _qwen,
}


@benchmark
def host(stage: Stage) -> Iterator[Comparison]:
    """What the CPU does for a picture beside the models, against the processor's own work on it, by released
    processors' real classes and sizes, whatever the base. A new size is one that was not seen before, of a class of
    sizes (sides between the same powers of 2) that was; the first size of all also pays for what is found out once
    about a processor. No goal is set for that."""
    decoder = stage.adapter().decoder
    side = decoder.sam["image_size"] // decoder.sam["patch_size"] * 4
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    disc = (0.25 - x**2 - y**2)[None]  # (1, 4g, 4g): a mask that covers a part of the picture
    for kind in KINDS:
        for megapixels, size in SIZES.items():
            pictures, file = laid(kind, size), BytesIO()
            pictures.image.save(file, "JPEG", quality=90)
            ways: dict[str, Work] = {
                REFERENCE: partial(pictures.process, pictures.image),
                "decode a JPEG": partial(load_image, file.getvalue()),
                "layout, a known size": pictures.known,
                NEW: pictures.new,
                FIRST: pictures.known,
                "SAM's preprocessing": partial(decoder.preprocess, [pictures.image]),
                "a mask at the picture's size": partial(decoder.masks, disc, size, mask_threshold=0.5),
            }
            before = {NEW: pictures.renew, FIRST: tokens._cache.clear}
            title = f"{kind}: {megapixels:g} megapixels"
            found = stage.compare(title, ways, REFERENCE, goals={NEW: 1.0}, before=before)
            yield found.place(dict.fromkeys(ways, megapixels))


def laid(kind: str, size: tuple[int, int]) -> Laid:
    """Pictures of a size, and the processor of a kind for them; of its model there is nothing but the shape."""
    facts, processor = KINDS[kind]()
    with torch.device("meta"):
        config = AutoConfig.for_model(facts.pop("model_type"), **facts)
        model = auto_class(config).from_config(config).eval()
    return Laid(find_anatomy(model), processor, size)


class Laid:
    """Layouts of pictures of one size, and of sizes beside it."""

    def __init__(self, anatomy: Anatomy, processor: ProcessorMixin, size: tuple[int, int]) -> None:
        self.anatomy, self.processor, self.size, self.image = anatomy, processor, size, picture(size=size)
        self.inputs, self.less = self.process(self.image), count(1)
        self.renew()

    def process(self, image: Image) -> BatchFeature:
        return build_inputs(self.processor, [image], PROMPTS[:1], "{prompt}")

    def renew(self) -> None:
        """Another size, of as many pixels but for a few."""
        less = next(self.less)
        self.beside = (self.size[0] - less, self.size[1] - 2 * less)
        self.inputs_beside = self.process(picture(size=self.beside))

    def known(self) -> list[TokenLayout]:
        return tokens.token_layouts(self.anatomy, self.processor, self.inputs, [self.size])

    def new(self) -> list[TokenLayout]:
        return tokens.token_layouts(self.anatomy, self.processor, self.inputs_beside, [self.beside])
