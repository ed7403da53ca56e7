"""From what a user asks to `LensOutput`: pairing, batching, decoding, and back to each image's own size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from numbers import Real
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image
from torch import Tensor

from lens_adapter.errors import InputError
from lens_adapter.output import LensOutput, is_found
from lens_adapter.signals import LensSignals, TokenLayout
from lens_adapter.vlm.inputs import build_inputs, load_image
from lens_adapter.vlm.shared_prefix import can_share, share_inputs

if TYPE_CHECKING:
    from lens_adapter.adapter import LensAdapter

Request = tuple[Image, list[str]]  # an RGB image and its prompts

# Prompts of one image that run together if nothing else is asked. Each has a copy of the image's keys and values in
# every layer up to the tap (of LLaVA-1.5-7B: 140 MB), and that the image runs anew for the next ones is little by then.
PROMPTS_TOGETHER = 32


@dataclass(frozen=True)
class Draft:
    """One prompt's result before it is brought to its image's size; points in fractions of the image.

    The logits are where the decoder is, all else is on the CPU.
    """

    logits: Tensor
    score: Tensor
    points: Tensor
    point_scores: Tensor
    heatmap: Tensor


def read_requests(images: Any, prompts: Any) -> list[Request]:
    """What the user gave -> one (RGB image, prompts) per image."""
    if not isinstance(images, (list, tuple)):
        images, prompts = [images], [prompts]
    elif not isinstance(prompts, (list, tuple)) or len(prompts) != len(images):
        got = f"{len(prompts)} entries" if isinstance(prompts, (list, tuple)) else repr(prompts)
        raise InputError(
            f"segment got {len(images)} images and {got} in prompts; give one entry per image, each a prompt or a list."
        )
    pairs = []
    for image, wanted in zip(images, prompts, strict=True):
        texts = [wanted] if isinstance(wanted, str) else wanted
        if not isinstance(texts, (list, tuple)) or not texts:
            raise InputError(f"Prompts of an image must be a text or a list of at least one; got {wanted!r}.")
        pairs.append((load_image(image), list(texts)))
    return pairs


def require_thresholds(**thresholds: Any) -> None:
    """Refuse what no probability or score can be compared with."""
    for key, value in thresholds.items():
        if not isinstance(value, Real) or not 0 <= float(value) < 1:
            raise InputError(f"{key} must be a number in [0, 1); got {value!r}.")


def draft_all(adapter: LensAdapter, requests: Sequence[Request], batch_size: int | None) -> list[list[Draft]]:
    """Every prompt's result, by image; each image goes through SAM's encoder once at most."""
    rows = [(i, prompt) for i, (_, prompts) in enumerate(requests) for prompt in prompts]
    drafts: list[list[Draft]] = [[] for _ in requests]
    embeddings: dict[int, Tensor] = {}
    for batch in _batches(rows, batch_size):
        used = list(dict.fromkeys(i for i, _ in batch))
        if new := [i for i in used if i not in embeddings]:
            embeddings.update(zip(new, _encode(adapter, [requests[i][0] for i in new]), strict=True))
        embeddings = {i: embeddings[i] for i in used}  # rows are in order: earlier images are done
        stacked = torch.stack(list(embeddings.values()))  # (images, C, g, g)
        for run in _runs(adapter, batch):
            index = torch.tensor([used.index(i) for i, _ in run], device=adapter.device)
            pictures, texts = [requests[i][0] for i, _ in run], [text for _, text in run]
            for (i, _), draft in zip(run, _draft_run(adapter, pictures, texts, stacked, index), strict=True):
                drafts[i].append(draft)
    return drafts


def _encode(adapter: LensAdapter, pictures: list[Image]) -> Iterable[Tensor]:
    """SAM's embedding (C, g, g) of each picture."""
    if adapter.embedding_cache is None:
        return adapter.decoder.encode_images(pictures)
    return adapter.embedding_cache.encode(adapter.decoder, pictures)


def _runs(adapter: LensAdapter, batch: list[tuple[int, str]]) -> list[list[tuple[int, str]]]:
    """The rows that run through the base together: several prompts of one image share its tokens if they can."""
    by_image = [list(group) for _, group in groupby(batch, key=itemgetter(0))]
    if not _can_share(adapter):
        return [batch]
    alone = [row for group in by_image if len(group) == 1 for row in group]
    return [group for group in by_image if len(group) > 1] + ([alone] if alone else [])


def _draft_run(
    adapter: LensAdapter, pictures: list[Image], texts: list[str], embeddings: Tensor, index: Tensor
) -> list[Draft]:
    sizes = [(picture.height, picture.width) for picture in pictures]
    signals, layouts = _read_shared(adapter, pictures, texts) or _read_each(adapter, pictures, texts)
    found = adapter(signals, layouts, embeddings, index, sizes)
    # Few numbers, all at once: on an accelerator every look at a single one would wait.
    head = found.head
    points, scores, valid, heat, size, quality = (
        tensor.cpu()
        for tensor in (
            *(head.keypoints.points, head.keypoints.scores, head.keypoints.valid),
            *(head.heatmap, head.size, found.quality),
        )
    )
    return [
        Draft(
            logits=found.logits[k],
            score=quality[k].clamp(0, 1),
            points=points[k][valid[k]],
            point_scores=scores[k][valid[k]],
            heatmap=heat[k, :height, :width],
        )
        for k, (height, width) in enumerate(size.tolist())
    ]


def _read_each(adapter: LensAdapter, pictures: list[Image], texts: list[str]) -> tuple[LensSignals, list[TokenLayout]]:
    """The base reads every prompt with its image."""
    base = adapter.attachment
    inputs = build_inputs(base.processor, pictures, texts, adapter.config.prompt_template, max_length=base.max_length)
    layouts = adapter.layout(inputs, [(picture.height, picture.width) for picture in pictures])
    return adapter.prefill(inputs), layouts


def _read_shared(
    adapter: LensAdapter, pictures: list[Image], texts: list[str]
) -> tuple[LensSignals, list[TokenLayout]] | None:
    """The base reads one image, then the prompts; None where these are about several images, or it cannot."""
    if len(texts) == 1 or any(picture is not pictures[0] for picture in pictures) or not _can_share(adapter):
        return None
    processor, max_length, template = adapter.processor, adapter.attachment.max_length, adapter.config.prompt_template
    first = build_inputs(processor, pictures[:1], texts[:1], template, max_length=max_length)
    (layout,) = adapter.layout(first, [(pictures[0].height, pictures[0].width)])
    shared = share_inputs(processor, first, int(layout.positions.max()), texts, template, max_length)
    signals = None if shared is None else adapter.prefill_shared(shared)
    return None if signals is None else (signals, [layout] * len(texts))


def _can_share(adapter: LensAdapter) -> bool:
    config = adapter.config
    return can_share(adapter.attachment.anatomy, tap_layer=config.tap_layer, layers=config.attention_layers)


def assemble(
    adapter: LensAdapter,
    request: Request,
    drafts: Sequence[Draft],
    mask_threshold: float,
    score_threshold: float,
    keep_logits: bool,
) -> LensOutput:
    """The results of one image's prompts, at its own size; what is not found has an empty mask and no keypoints."""
    picture, prompts = request
    size = (picture.height, picture.width)
    low_res, cut = (
        torch.stack([draft.logits for draft in drafts]),
        torch.logit(torch.tensor(float(mask_threshold))).item(),
    )
    logits = adapter.decoder.upsample(low_res, size).cpu() if keep_logits else None  # (N, H, W)
    masks = adapter.decoder.masks(low_res, size, cut) if logits is None else logits > cut
    scores = torch.stack([draft.score for draft in drafts]).float()
    found = torch.tensor([is_found(score, score_threshold) for score in scores.tolist()])
    masks[~found] = False
    counts = [len(draft.points) if named else 0 for draft, named in zip(drafts, found.tolist(), strict=True)]
    scale = torch.tensor([picture.width, picture.height])
    return LensOutput(
        prompts=prompts,
        image_size=size,
        masks=masks,
        scores=scores,
        keypoints=[(draft.points[:count] * scale).float() for draft, count in zip(drafts, counts, strict=True)],
        keypoint_scores=[draft.point_scores[:count].float() for draft, count in zip(drafts, counts, strict=True)],
        heatmaps=torch.stack([draft.heatmap for draft in drafts]).float(),
        logits=logits,
        image=picture,
        found=found,
    )


def _batches(rows: list[tuple[int, str]], size: int | None) -> list[list[tuple[int, str]]]:
    """Runs of `size` rows; without a size, the rows of each image apart from those of the others."""
    groups = [rows] if size is not None else [list(group) for _, group in groupby(rows, key=itemgetter(0))]
    step = PROMPTS_TOGETHER if size is None else size
    return [group[start : start + step] for group in groups for start in range(0, len(group), step)]
