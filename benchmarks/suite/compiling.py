"""What makes the same modules faster, if it does: torch.compile, another memory layout, another attention kernel."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, SamConfig, SamModel

from benchmarks.harness import Comparison, Stage, Work
from benchmarks.suite.registry import benchmark, picture
from benchmarks.suite.steps import Steps
from lens_adapter.sam.weights import rename_from_sam_model

AS_IT_IS = "as it is"
KERNELS = ("eager", "sdpa")  # of transformers' SamModel
OPTIONS: dict[str, Any] = {}  # of torch.compile


@benchmark
def compile(stage: Stage) -> Iterator[Comparison]:
    """torch.compile of head, mask decoder and image encoder (by `module.compile()`, which a user can call on those of
    an adapter), channels-last, and scaled_dot_product_attention in SAM, which transformers' `SamModel` has and
    segment-anything has not. All ways have the same weights; how far their results lie apart is said."""
    adapter = stage.adapter()
    sam, theirs = adapter.config.sam, {kernel: transformers_sam(adapter.config.sam, kernel) for kernel in KERNELS}
    for parameter in theirs["eager"].parameters():
        if parameter.dim() > 1:  # drawn small, attention would hardly show in the results
            parameter.normal_(std=parameter[0].numel() ** -0.5)
    weights = rename_from_sam_model(theirs["eager"].state_dict())
    for name in ("image_encoder", "mask_decoder"):
        part = getattr(adapter.decoder, name)
        part.load_state_dict({key: weights[f"{name}.{key}"] for key in part.state_dict()})
    for kernel in KERNELS:
        theirs[kernel].load_state_dict(theirs["eager"].state_dict())
        theirs[kernel].to(stage.device).eval()

    encoder = adapter.decoder.image_encoder
    pixels, _ = adapter.decoder.preprocess([picture()])
    last = copy.deepcopy(encoder).to(memory_format=torch.channels_last)
    ways: dict[str, Work] = {
        AS_IT_IS: lambda: encoder(pixels),
        "compiled": _compiled(encoder, pixels),
        "channels-last": lambda: last(pixels.to(memory_format=torch.channels_last)),
        **{
            f"transformers' SamModel, {kernel}": lambda model=model: model.vision_encoder(pixels)[0]
            for kernel, model in theirs.items()
        },
    }
    yield _judged(stage, "SAM's image encoder", ways)

    decoder, grid = adapter.decoder.mask_decoder, sam["image_size"] // sam["patch_size"]
    torch.manual_seed(0)
    embedding, places = torch.randn(2, 1, sam["out_channels"], grid, grid, device=stage.device)
    sparse = torch.randn(4, adapter.config.num_keypoints + 1, sam["out_channels"], device=stage.device)
    dense = torch.zeros_like(embedding).expand(4, -1, -1, -1)
    given = {
        "image_embeddings": embedding,
        "image_pe": places,
        "sparse_prompt_embeddings": sparse,
        "dense_prompt_embeddings": dense,
        "multimask_output": False,
    }
    ways = {
        AS_IT_IS: lambda: decoder(**given)[0],
        "compiled": _compiled(decoder, **given),
        **{
            f"transformers' SamModel, {kernel}": lambda model=model: model.mask_decoder(
                embedding, places, sparse[None], dense[:1], multimask_output=False
            )[0]
            for kernel, model in theirs.items()
        },
    }
    yield _judged(stage, "SAM's mask decoder, 4 prompts about one image", ways)

    steps, faster = Steps(adapter), copy.deepcopy(adapter.head)
    faster.fusion.compile(**OPTIONS)
    faster.descriptors.compile(**OPTIONS)
    ways = {
        AS_IT_IS: lambda: steps.point().point_vectors,
        "fusion and descriptors compiled": lambda: steps.point(faster).point_vectors,
    }
    yield _judged(stage, "Lite head", ways)
    torch.compiler.reset()


def transformers_sam(sam: dict[str, Any], kernel: str) -> SamModel:
    """transformers' SamModel of the dimensions in `LensConfig.sam`, with random weights."""
    torch.manual_seed(0)
    vision = {
        "hidden_size": sam["embed_dim"],
        "output_channels": sam["out_channels"],
        "num_hidden_layers": sam["depth"],
        "num_attention_heads": sam["num_heads"],
        "image_size": sam["image_size"],
        "patch_size": sam["patch_size"],
        "mlp_ratio": sam["mlp_ratio"],
        "mlp_dim": int(sam["embed_dim"] * sam["mlp_ratio"]),
        "window_size": sam["window_size"],
        "global_attn_indexes": list(sam["global_attention_layers"]),
        "use_rel_pos": sam["relative_position"],
        "num_pos_feats": sam["out_channels"] // 2,
    }
    prompts = {
        "hidden_size": sam["out_channels"],
        "image_size": sam["image_size"],
        "patch_size": sam["patch_size"],
        "mask_input_channels": sam["mask_in_channels"],
    }
    decoder = {
        "hidden_size": sam["out_channels"],
        "mlp_dim": sam["decoder_mlp_dim"],
        "num_hidden_layers": sam["decoder_depth"],
        "num_attention_heads": sam["decoder_num_heads"],
        "iou_head_hidden_dim": sam["iou_head_dim"],
        "layer_norm_eps": 1e-5,  # segment-anything's
    }
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    return AutoModel.from_config(config, attn_implementation=kernel)


def _compiled(module: nn.Module, *args: Any, **kwargs: Any) -> Work:
    """A compiled copy at work."""
    module = copy.deepcopy(module)
    module.compile(**OPTIONS)

    def work() -> Tensor:
        result = module(*args, **kwargs)
        return result[0] if isinstance(result, tuple) else result

    return work


def _judged(stage: Stage, title: str, ways: dict[str, Work]) -> Comparison:
    """The comparison, with notes on how far results lie apart and on how long compiling took."""
    results, seconds = {}, {}
    for name, work in [*ways.items(), (AS_IT_IS, ways[AS_IT_IS])]:  # the last once more, as it is warm then
        start = time.perf_counter()
        results[name] = work()
        seconds[name] = time.perf_counter() - start
    expected = results.pop(AS_IT_IS)
    notes = []
    for name, result in results.items():
        apart = (result.reshape(expected.shape) - expected).norm() / expected.norm()
        notes.append(f"{name}: the result differs by {apart:.1g} of its length.")
        if "compiled" in name:
            notes[-1] += (
                f" The first run took as long as {seconds[name] / seconds[AS_IT_IS]:.0f} of those that are not."
            )
    return stage.compare(title, ways, AS_IT_IS, notes)
