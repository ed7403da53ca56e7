"""Architectures whose image tokens are one square grid of fixed size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from packaging import version
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

from lens_adapter.vlm.anatomy import auto_class
from tests.tiny import processors
from tests.tiny.pairs import tiny_pair
from tests.zoo.specimen import Specimen, ask_processor

VOCAB_SIZE = 320  # the bytes, the special tokens of `processors`, and room for a model's own
TEXT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": processors.TOKEN_IDS["<pad>"],
    "bos_token_id": processors.TOKEN_IDS["<s>"],
    "eos_token_id": processors.TOKEN_IDS["</s>"],
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
SLIDING = {**TEXT, "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]}
SLIDING |= {"sliding_window": 16}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
CLIP = {"model_type": "clip_vision_model", "projection_dim": 16, "initializer_factor": 0.2, **TOWER}
SIGLIP = {"model_type": "siglip_vision_model", **TOWER}
# One layer of attention over all patches mixes little, and small weights still less.
SAM = {**TOWER, "output_channels": 8, "mlp_dim": 32, "global_attn_indexes": [0], "window_size": 0, "patch_size": 16}
PICTURE = {"size": {"height": 56, "width": 56}}
WIDE = (70, 140)  # (H, W) of an image that is squeezed, cropped or padded into a square


def words(kind: type = PreTrainedTokenizerFast, **roles: str) -> PreTrainedTokenizerFast:
    """The byte tokenizer, with tokens that processors look for by their roles (`image_token`, `boi_token`, ...).

    `kind`: for processors of transformers 4, which check it.
    """
    usual = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    own = {role: roles.pop(role) for role in list(roles) if role in (*usual, "sep_token")}
    return processors.tokenizer(kind, **{**usual, **own}, extra_special_tokens=roles)


def chat(image: str) -> str:
    """A chat template that writes `image` for an image."""
    return processors.LLAVA_TEMPLATE.replace("<image>", image)


def random_model(architecture: str, seed: int = 0, **facts: Any) -> PreTrainedModel:
    """A model of the real class, in eval mode under its default attention implementation."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(architecture, **facts)
    return auto_class(config).from_config(config).eval()


def token_id(processor: Any, token: str) -> int:
    return processor.tokenizer.convert_tokens_to_ids(token)


def specimen(
    architecture: str,
    processor: Callable[[], Any],
    facts: dict[str, Any],
    token: str = "<image>",
    prepare: Callable[[PreTrainedModel], None] = lambda model: None,
    id_name: str = "image_token_id",
    **rest: Any,
) -> dict[str, Specimen]:
    """A specimen whose model has the id that `token` has in its processor's tokenizer; `prepare` edits its weights."""

    def build() -> tuple[PreTrainedModel, Any]:
        made = processor()
        own = {id_name: token_id(made, token)}
        if "vocabulary_map" in facts:
            own = {"vocabulary_map": {"<image>": token_id(made, token), **facts["vocabulary_map"]}}
        model = random_model(architecture, **{**facts, **own})
        prepare(model)
        return model, made

    return {architecture: Specimen(build, **{"image": WIDE, **rest})}


def gemma3_processor() -> Any:
    """`ShieldGemma2Processor` asks nothing but its own policies; the questions of others go through Gemma 3's."""
    tokens = words(image_token="<soft>", boi_token="<boi>", eoi_token="<eoi>")
    images = transformers.Gemma3ImageProcessor(size={"height": 112, "width": 112})
    return transformers.Gemma3Processor(images, tokens, chat_template=chat("<boi>"), image_seq_length=16)


def draw_projection(model: PreTrainedModel) -> None:
    """Gemma 3 starts this one matrix at zero, which would make all images alike."""
    for name, parameter in model.named_parameters():
        if name.endswith("mm_input_projection_weight"):
            nn.init.normal_(parameter)


@torch.no_grad()
def quieten(model: PreTrainedModel) -> None:
    """Patches tell each other little, so that each token shows its own place first."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) == 3:
            module.weight.mul_(own_taps(module))
        elif "vision" in name and name.endswith(("attn.out_proj", "attn.proj")):
            module.weight.mul_(0.1)


def own_taps(convolution: nn.Conv2d | nn.Conv3d) -> Tensor:
    """(height, width): 1 for the taps of a kernel that see the place its output stands for, less for its neighbors."""
    rows, columns = convolution.kernel_size[-2:]
    weights = torch.full((rows, columns), 0.1)
    first = rows // 2 if convolution.stride[-1] == 1 else convolution.padding[-1]
    own = slice(first, first + convolution.stride[-1])
    weights[own, own] = 1
    return weights


def clip_processor(kind: str) -> Any:
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=PICTURE["size"])
    video = {}
    if kind == "VideoLlavaProcessor":
        images = transformers.VideoLlavaImageProcessor(size={"shortest_edge": 56}, crop_size=PICTURE["size"])
        video["video_processor"] = transformers.VideoLlavaVideoProcessor()
    return getattr(transformers, kind)(
        image_processor=images,
        tokenizer=words(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat("<image>"),
        **video,
    )


def janus_processor(family: str) -> Any:
    sizes = {} if "Hybrid" not in family else {"high_res_size": {"height": 64, "width": 64}}
    images = getattr(transformers, f"{family}ImageProcessor")(**PICTURE, **sizes)
    tokens = words(transformers.LlamaTokenizerFast, image_token="<image>", boi_token="<boi>", eoi_token="<eoi>")
    kind = getattr(transformers, f"{family}Processor")
    made = kind(images, tokens, chat_template=chat("<image>"), num_image_tokens=16)
    made.num_image_tokens = 16  # Janus' of transformers 4 insists on 576
    return made


def paligemma_processor() -> Any:
    images = transformers.SiglipImageProcessor(**PICTURE)
    images.image_seq_length = 16
    tokens = words(transformers.GemmaTokenizerFast, image_token="<image>")
    return transformers.PaliGemmaProcessor(images, tokens, chat_template=chat("<image>"))


OLD = version.parse(transformers.__version__).major < 5


def ask_in_full(processor: Any, images: Sequence[Image.Image]) -> dict[str, Tensor]:
    """GOT's processor of transformers 4 leaves a text as it is, so that has to hold all image tokens."""
    return processor(images=list(images), text=["<imgpad>" * 16 + "cat"] * len(images), return_tensors="pt")


def got_processor(family: str, template: str) -> Any:
    images = getattr(transformers, f"{family}ImageProcessor")(size={"height": 256, "width": 256})
    made = getattr(transformers, f"{family}Processor")(images, words(image_token="<imgpad>"), chat_template=template)
    made.num_image_tokens = 16
    return made


def chameleon_processor() -> Any:
    images = transformers.ChameleonImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    tokens = words(transformers.LlamaTokenizerFast, sep_token="<sep>", boi_token="<boi>", eoi_token="<eoi>")
    made = transformers.ChameleonProcessor(images, tokens, image_seq_length=16)
    made.chat_template = chat("<image>")
    return made


def fast_vlm_processor() -> Any:
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 128}, crop_size={"height": 128, "width": 128})
    return transformers.LlavaProcessor(
        images, words(), patch_size=32, vision_feature_select_strategy="full", chat_template=chat("<image>")
    )


def codes(name: str, count: int) -> dict[str, int]:
    """The ids of `count` image codes, from `VOCAB_SIZE` on; a code's number is written in letters for Chameleon."""
    letters = str.maketrans("0123456789", "ABCDEFGHIJ") if name.startswith("IMG") else {}
    return {name.format(str(number).translate(letters)): VOCAB_SIZE + number for number in range(count)}


@torch.no_grad()
def learn_codes(model: PreTrainedModel, size: tuple[int, int]) -> None:
    """What training does for an image tokenizer, so that codes tell what the tower sees where they stand.

    Convolutions keep the signal's strength and look at their own place first; residual blocks add nothing, as at the
    start of many trainings. The codes are what the tower makes of some pictures, and each means itself: its word
    embedding is its own vector.
    """
    for name, module in model.model.vqmodel.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.zeros_(module.bias)
            nn.init.orthogonal_(module.weight.flatten(1))
            module.weight.mul_(0 if "conv2" in name else own_taps(module))
        elif name.endswith("proj_out") or name.endswith("out_proj"):
            nn.init.zeros_(module.weight)
    tower, words = model.model.vqmodel, model.get_input_embeddings().weight
    seen: list[Tensor] = []
    handle = tower.quantize.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    pictures = torch.rand(64, 3, *size) - 0.5 + nn.Upsample(size)(torch.rand(64, 1, 4, 4) * 2 - 1)
    options = {"image_sizes": [size] * len(pictures)} if hasattr(tower, "vision_spatial_factor") else {}
    tower.encode(pictures, **options)
    handle.remove()
    codebook = tower.quantize.embedding.weight  # (codes, channels)
    vectors = seen[0].movedim(-3, -1).flatten(0, -2)  # (places, channels)
    channels = codebook.shape[1]
    codebook.copy_(vectors[torch.randperm(len(vectors))[: len(codebook)]])
    words[VOCAB_SIZE : VOCAB_SIZE + len(codebook)] = nn.functional.pad(codebook, (0, words.shape[1] - channels))


SPECIMENS: dict[str, Specimen] = {
    "llava": Specimen(
        lambda: tiny_pair("llava", attention="sdpa", num_hidden_layers=1, initializer_factor=0.2), image=WIDE
    ),
    **specimen(
        "vipllava",
        lambda: clip_processor("LlavaProcessor"),
        {"text_config": {"model_type": "llama", **TEXT}, "vision_config": CLIP, "vision_feature_layers": [-1]},
        id_name="image_token_index",
    ),
    **specimen(
        "video_llava",
        lambda: clip_processor("VideoLlavaProcessor"),
        {"text_config": {"model_type": "llama", **TEXT}, "vision_config": CLIP, "vision_feature_layer": -1},
        id_name="image_token_index",
    ),
    **specimen(
        "deepseek_vl",
        lambda: janus_processor("DeepseekVL"),
        {"text_config": {"model_type": "llama", **TEXT}, "vision_config": SIGLIP, "tie_word_embeddings": False},
    ),
    **specimen(
        "deepseek_vl_hybrid",
        lambda: janus_processor("DeepseekVLHybrid"),
        {
            "text_config": {"model_type": "llama", **TEXT},
            "vision_config": SIGLIP,
            "high_res_vision_config": {"model_type": "sam_vision_model", **SAM, "image_size": 64},
            "tie_word_embeddings": False,
        },
    ),
    **specimen(
        "janus",
        lambda: janus_processor("Janus"),
        {
            "text_config": {"model_type": "llama", **TEXT},
            "vision_config": {**TOWER, "projection_dim": 32, "num_image_tokens": 16, "mlp_ratio": 2.0},
            "vq_config": {
                "base_channels": 32,
                "num_res_blocks": 1,
                "channel_multiplier": [1, 1],
                "latent_channels": 8,
                "num_embeddings": 16,
                "projection_dim": 32,
                "image_token_embed_dim": 32,
            },
            "tie_word_embeddings": False,
        },
    ),
    **specimen(
        "gemma3",
        gemma3_processor,
        {"text_config": SLIDING, "vision_config": {**SIGLIP, "image_size": 112}, "mm_tokens_per_image": 16},
        "<soft>",
        draw_projection,
        id_name="image_token_index",
    ),
    **specimen(
        "shieldgemma2",
        gemma3_processor,
        {
            "text_config": {"model_type": "gemma3_text", **SLIDING},
            "vision_config": {**SIGLIP, "image_size": 112},
            "mm_tokens_per_image": 16,
            "yes_token_index": 5,
            "no_token_index": 6,
        },
        "<soft>",
        draw_projection,
        id_name="image_token_index",
        note="through Gemma3Processor: its own processor asks its own questions",
    ),
    **specimen(
        "paligemma",
        paligemma_processor,
        {
            "text_config": {"model_type": "gemma", **TEXT, "vocab_size": 1500},
            "vision_config": {**SIGLIP, "vision_use_head": False},
            "projection_dim": 32,
        },
        prepare=quieten,
        id_name="image_token_index",
    ),
    **specimen(
        "got_ocr2",
        lambda: got_processor("GotOcr2", chat("<imgpad>")),
        {"text_config": {"model_type": "qwen2", **TEXT}, "vision_config": {**SAM, "image_size": 256}},
        "<imgpad>",
        prepare=quieten,
        id_name="image_token_index",
        ask=ask_in_full if OLD else ask_processor,
        no_segment="the processor of transformers 4 puts no image tokens into a text of ours" if OLD else None,
    ),
    **specimen(
        "pp_chart2table",
        lambda: got_processor("PPChart2Table", chat("<imgpad>" * 16)),
        {"text_config": {"model_type": "qwen2", **TEXT}, "vision_config": {**SAM, "image_size": 256}},
        "<imgpad>",
        id_name="image_token_index",
    ),
    **specimen(
        "fast_vlm",
        fast_vlm_processor,
        {
            "text_config": {"model_type": "qwen2", **TEXT},
            "vision_config": {
                "model_type": "timm_wrapper",
                "architecture": "test_convnext",
                "do_pooling": False,
                "hidden_size": 64,
            },
            "image_seq_length": 16,
        },
        id_name="image_token_index",
        requires=("timm",),
    ),
    **specimen(
        "chameleon",
        chameleon_processor,
        {
            **TEXT,
            "vocab_size": VOCAB_SIZE + 512,
            "vocabulary_map": codes("IMGIMG{}Z", 512),
            "vq_config": {
                "embed_dim": 4,
                "num_embeddings": 512,
                "latent_channels": 4,
                "resolution": 64,
                "base_channels": 32,
                "channel_multiplier": [1, 1, 1, 1, 1],
                "num_res_blocks": 1,
                "attn_type": "none",
            },
        },
        prepare=lambda model: learn_codes(model, (64, 64)),
        image=(80, 160),
        hits=0.9,  # 512 codes are coarse: a small change may miss a code's border in the place that was painted
    ),
}
