"""What the CPU does for a picture beside the models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from itertools import count
from time import process_time
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import AutoConfig, BatchFeature, ProcessorMixin

from benchmarks import bases
from benchmarks.harness import Comparison, Stage, Work
from benchmarks.suite.registry import PROMPTS, benchmark, picture
from lens_adapter.sam.embeddings import _content
from lens_adapter.signals import TokenLayout
from lens_adapter.vlm.anatomy import Anatomy, auto_class, find_anatomy
from lens_adapter.vlm.images import load_image
from lens_adapter.vlm.inputs import build_inputs
from lens_adapter.vlm.layout import tokens

SIZES = {0.3: (480, 640), 2.0: (1200, 1600), 12.0: (3000, 4000)}  # megapixels: (H, W)
BEFORE = 9  # sizes that were met before a new one
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
    bounds = {"shortest_edge": 4 * 28**2, "longest_edge": 16384 * 28**2}  # of its released checkpoints
    processor.image_processor = transformers.Qwen2VLImageProcessor(size=bounds)
    return {**facts, "text_config": text, "vision_config": tower}, processor


def _internvl() -> tuple[dict[str, Any], ProcessorMixin]:
    roles = {"context_image_token": "<IMG_CONTEXT>", "start_image_token": "<img>", "end_image_token": "</img>"}
    words = bases.tokenizer(
        eos_token="</s>", pad_token="<pad>", extra_special_tokens=roles | {"video_token": "<video>"}
    )
    images = transformers.GotOcr2ImageProcessor(size={"height": 448, "width": 448}, max_patches=12)
    template = bases.LLAVA_TEMPLATE.replace("<image>", roles["context_image_token"])
    processor = transformers.InternVLProcessor(
        images, words, transformers.InternVLVideoProcessor(), image_seq_length=16**2, chat_template=template
    )
    tower = {**CLIP, "model_type": "internvl_vision", "image_size": [448, 448], "patch_size": [14, 14]}
    text = {**LLAMA, "model_type": "qwen2", "num_key_value_heads": 4}
    token = words.convert_tokens_to_ids(roles["context_image_token"])
    return {"model_type": "internvl", "text_config": text, "vision_config": tower, "image_token_id": token}, processor


def _smolvlm() -> tuple[dict[str, Any], ProcessorMixin]:
    words = bases.tokenizer(eos_token="</s>", pad_token="<pad>")
    words.add_special_tokens({"additional_special_tokens": ["<fake_token_around_image>", "<global-img>"]})
    images = transformers.Idefics3ImageProcessor(size={"longest_edge": 1536}, max_image_size={"longest_edge": 384})
    processor = transformers.Idefics3Processor(images, words, image_seq_len=81, chat_template=bases.LLAVA_TEMPLATE)
    tower = {
        **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"image_size": 384, "patch_size": 14},
    }
    facts = {"image_token_id": bases.SPECIAL.index("<image>"), "scale_factor": 3}
    text = {**LLAMA, "pad_token_id": bases.SPECIAL.index("<pad>")}
    return {"model_type": "idefics3", "text_config": text, "vision_config": tower, **facts}, processor


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
    "InternVL3": _internvl,
    "Qwen2.5-VL": _qwen,
    "SmolVLM": _smolvlm,
}


@benchmark
def host(stage: Stage) -> Iterator[Comparison]:
    """What the CPU does for a picture beside the models, against the processor's own work on it, by released
    processors' real classes and sizes, whatever the base. A new size is one that was not seen before, when some like
    it were; the first size of all is measured, and for that no goal is set. Times are those of the process, not the
    clock's."""
    decoder = stage.adapter().decoder
    side = decoder.sam["image_size"] // decoder.sam["patch_size"] * 4
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    disc = (0.25 - x**2 - y**2)[None]  # (1, 4g, 4g): a mask that covers a part of the picture
    for kind in KINDS:
        for megapixels, size in SIZES.items():
            pictures, file = laid(kind, size), BytesIO()
            other = laid(kind, size)
            pictures.meet(BEFORE)
            grain = Image.effect_noise(size[::-1], 30).convert("RGB")  # as a photograph has
            Image.blend(pictures.image, grain, 0.3).save(file, "JPEG", quality=90)
            ways: dict[str, Work] = {
                REFERENCE: partial(pictures.process, pictures.image),
                "decode a JPEG": partial(load_image, file.getvalue()),
                "layout, a known size": pictures.known,
                NEW: pictures.new,
                FIRST: other.known,
                "SAM's preprocessing": partial(decoder.preprocess, [pictures.image]),
                "the key of an embedding": partial(_content, decoder.shrink(pictures.image)),
                "a mask at the picture's size": partial(decoder.masks, disc, size, mask_threshold=0.5),
            }
            before = {NEW: pictures.renew, FIRST: other.forget}
            title = f"{kind}: {megapixels:g} megapixels"
            found = stage.compare(title, ways, REFERENCE, goals={NEW: 1.0}, before=before, clock=process_time)
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

    def process(self, image: Image.Image) -> BatchFeature:
        return build_inputs(self.processor, [image], PROMPTS[:1], "{prompt}")

    def renew(self) -> None:
        """Another size, of as many pixels but for a few."""
        less = next(self.less)
        self.beside = (self.size[0] - less, self.size[1] - 2 * less)
        self.inputs_beside = self.process(picture(size=self.beside))

    def meet(self, sizes: int) -> None:
        """Lay out so many new ones."""
        for _ in range(sizes):
            self.new()
            self.renew()

    def forget(self) -> None:
        """What is known of the processor."""
        tokens._cache.pop(self.processor.image_processor, None)

    def known(self) -> list[TokenLayout]:
        return tokens.token_layouts(self.anatomy, self.processor, self.inputs, [self.size])

    def new(self) -> list[TokenLayout]:
        return tokens.token_layouts(self.anatomy, self.processor, self.inputs_beside, [self.beside])
