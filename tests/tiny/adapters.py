"""Tiny adapters, untrained but decisive: their masks are neither empty nor full."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from lens_adapter import LensAdapter, LensOutput
from lens_adapter.vlm.inputs import build_inputs
from tests.tiny.models import ARCHITECTURES
from tests.tiny.pairs import tiny_pair
from tests.tiny.sam import noise_image, randomize, tiny_sam

BASE_NAME = "org/tiny-base"  # where the model in memory has none: heads are published for bases that others find
FUSIONS = ("lite", "mirror")
GRID = [(architecture, fusion) for architecture in ARCHITECTURES for fusion in FUSIONS]
PAIRED = list(zip(ARCHITECTURES, FUSIONS * 2, strict=True))  # each architecture once, each fusion twice
GREEDY = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}


def tiny_adapter(
    model: PreTrainedModel, processor: ProcessorMixin | None = None, fusion: str = "lite", **fields: Any
) -> LensAdapter:
    """An adapter attached to `model`; `fields` override its config."""
    torch.manual_seed(1)
    fields = {"fusion": fusion, "fusion_width": 32, "fusion_layers": 1, "sam": tiny_sam(), **fields}
    fields = {"base_model_name_or_path": getattr(model.config, "name_or_path", "") or BASE_NAME, **fields}
    adapter = LensAdapter.from_model(model, processor, load_sam=False, **fields)
    randomize(adapter.decoder)
    with torch.no_grad():  # logits, scores and heat that differ from place to place and prompt to prompt
        for mlp in adapter.decoder.mask_decoder.output_hypernetworks_mlps:
            for parameter in mlp.layers[-1].parameters():
                parameter.mul_(60)
        adapter.decoder.mask_decoder.iou_prediction_head.layers[-1].bias.add_(0.5)
        if adapter.config.fusion == "lite":
            for parameter in adapter.head.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape).to(parameter))
    return adapter.eval()


def tiny_trio(
    architecture: str = "llava", fusion: str = "lite", *, attention: str = "eager", **fields: Any
) -> tuple[LensAdapter, PreTrainedModel, ProcessorMixin]:
    """A base, its processor and an adapter attached to it."""
    model, processor = tiny_pair(architecture, attention=attention)
    return tiny_adapter(model, processor, fusion, **fields), model, processor


def ready_inputs(processor: ProcessorMixin, *prompts: str) -> dict[str, Tensor]:
    """Processor inputs, one row per prompt, each with an image of its own."""
    prompts = prompts or ("the cat", "a dog on the left")
    images = [noise_image(50 + 10 * k, 70, seed=k) for k in range(len(prompts))]
    return build_inputs(processor, images, prompts, "{prompt}")


def learn(adapter: LensAdapter, processor: ProcessorMixin) -> None:
    """One training step of an attached adapter."""
    images = [noise_image(50, 70), noise_image(60, 44, seed=1)]
    optimizer = torch.optim.AdamW([p for p in adapter.parameters() if p.requires_grad], lr=1e-2)
    adapter.train()
    embeddings = adapter.decoder.encode_images(images)
    reading = adapter.base.read(images, ["the cat", "a dog on the left"])
    found = adapter(reading, embeddings, torch.arange(2))
    (found.logits.square().mean() + found.prompts.heatmap.mean()).backward()
    optimizer.step()
    adapter.eval()


def same_output(one: LensOutput, two: LensOutput) -> bool:
    """Bit for bit, logits included."""
    lists = zip([*one.keypoints, *one.keypoint_scores], [*two.keypoints, *two.keypoint_scores], strict=True)
    names = ("masks", "scores", "found", "heatmaps", "logits")
    return (
        one.prompts == two.prompts
        and all(torch.equal(getattr(one, name), getattr(two, name)) for name in names)
        and all(torch.equal(a, b) for a, b in lists)
    )


def assert_close(one: LensOutput, two: LensOutput, atol: float = 2e-4) -> None:
    """Equal to numerical noise, and told apart by `LensOutput.masks` only where a logit is at the threshold."""
    assert one.prompts == two.prompts
    torch.testing.assert_close(one.logits, two.logits, atol=atol, rtol=0)
    torch.testing.assert_close(one.heatmaps, two.heatmaps, atol=atol, rtol=0)
    torch.testing.assert_close(one.scores, two.scores, atol=atol, rtol=0)
    for mine, theirs in zip(one.keypoints, two.keypoints, strict=True):
        torch.testing.assert_close(mine, theirs, atol=100 * atol, rtol=0)
    assert (one.masks != two.masks).float().mean() < 1e-3


def hooks_in(model: nn.Module) -> list[str]:
    """Where there are hooks; transformers' own, which it installs at the first forward of some models, do not count."""
    return [
        f"{name}.{kind}"
        for name, module in model.named_modules()
        for kind, hooks in vars(module).items()
        if kind.endswith("_hooks")
        for hook in hooks.values()
        if not getattr(hook, "__module__", "").startswith("transformers.")
    ]


def marks_on(model: nn.Module) -> list[tuple]:
    """All that use might leave on a model beside hooks: configs, attributes, remembered tensors, modes, gradients."""
    return [
        (
            name,
            id(getattr(module, "config", None)),
            type(getattr(getattr(module, "config", None), "_attn_implementation", None)),
            module.training,
            {key: id(value) if isinstance(value, Tensor) else None for key, value in vars(module).items()},
            [(id(p), p.requires_grad, p.grad is None) for p in module.parameters(recurse=False)],
        )
        for name, module in model.named_modules()
    ]


def weights_of(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in model.state_dict().items()}
