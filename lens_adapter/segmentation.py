"""From what a user asks to `LensOutput`: pairing, batching, the road from base to mask, and each picture's own size."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeVar

import torch
from PIL.Image import Image
from torch import Tensor

from lens_adapter.config import Thresholds
from lens_adapter.devices import sent
from lens_adapter.errors import InputError, LensError, brief
from lens_adapter.finite import is_finite
from lens_adapter.instances import at_full_size, of_things, separate
from lens_adapter.output import Instances, LensOutput, is_found
from lens_adapter.sam.decoder import MaskDecoder
from lens_adapter.sam.square import logit
from lens_adapter.signals import Reading, SparsePrompts, sizes_of
from lens_adapter.vlm.base import FrozenBase, Prepared
from lens_adapter.vlm.images import load_image

Request = tuple[Image, list[str]]  # an RGB image and its prompts
_Rows = list[tuple[int, str]]  # which request a prompt is of, and the prompt
_Given = TypeVar("_Given")
_Made = TypeVar("_Made")

# Prompts of one image that run together if nothing else is asked. Each has a copy of the image's keys and values in
# every layer up to the tap (of LLaVA-1.5-7B: 140 MB), and that the image runs anew for the next ones is little by then.
PROMPTS_TOGETHER = 32


@dataclass(frozen=True)
class LensPrediction:
    """What `LensAdapter.forward` says about N prompts.

    Attributes:
        logits: float32 (N, g, g), mask logits over SAM's square at the decoder's own resolution.
        quality: float32 (N,), what becomes the score: `Decoded.score`, the decoder's estimate of each mask's IoU, not
            clamped, times its word on whether there is an object, where it has one; or the head's own word, where that
            has one (`SparsePrompts.presence`).
        prompts: heatmaps, keypoints and the vectors that the decoder was given.
        things: N times float32 (K_i, g, g), mask logits of each different thing, where they were decoded apart.
    """

    logits: Tensor
    quality: Tensor
    prompts: SparsePrompts
    things: list[Tensor] | None = None

    def is_finite(self) -> Tensor:
        """Whether there is no number in it that is infinite or none: bool (), where the tensors are."""
        return torch.stack([*map(is_finite, (self.logits, self.quality, self.prompts.heatmap))]).all()


@dataclass(frozen=True)
class Draft:
    """One prompt's result before it is brought to its image's size; points in fractions of the image.

    Logits are where the decoder is, all else is on the CPU. `things` are as in `LensPrediction`.
    """

    logits: Tensor
    score: Tensor
    points: Tensor
    point_scores: Tensor
    heatmap: Tensor
    things: Tensor | None = None


def read_requests(images: Any, prompts: Any) -> list[Request]:
    """What the user gave -> one (RGB image, prompts) per image."""
    if not isinstance(images, (list, tuple)):
        images, prompts = [images], [prompts]
    elif not isinstance(prompts, (list, tuple)) or len(prompts) != len(images):
        got = f"{len(prompts)} entries" if isinstance(prompts, (list, tuple)) else brief(prompts)
        raise InputError(
            f"segment got {len(images)} images and {got} in prompts; give one entry per image, each a prompt or a list."
        )
    pairs = []
    for image, wanted in zip(images, prompts, strict=True):
        texts = [wanted] if isinstance(wanted, str) else wanted
        if not isinstance(texts, (list, tuple)) or not texts:
            raise InputError(f"Prompts of an image must be a text or a list of at least one; got {brief(wanted)}.")
        pairs.append((load_image(image), list(texts)))
    return pairs


def unknown_words_of(requests: Sequence[Request], base: FrozenBase) -> list[list[list[str]]]:
    """Of every prompt of every request, by one question, so that one warning names them all."""
    words = iter(base.unknown_words([prompt for _, prompts in requests for prompt in prompts]))
    return [[next(words) for _ in prompts] for _, prompts in requests]


def read_sizes(image_sizes: Any, requests: Sequence[Request], images: Any) -> list[tuple[int, int]]:
    """(H, W) of the masks of each request: that of its picture, or that which the user says the picture had once.

    Args:
        image_sizes: what the user gave; None: nothing.
        requests: what `read_requests` made of `images`.
        images: one, or a list.

    Raises:
        InputError: not one size for each picture, or none that the picture can be a smaller copy of.
    """
    shown = [(picture.height, picture.width) for picture, _ in requests]
    if image_sizes is None:
        return shown
    given = sizes_of(image_sizes if isinstance(images, list | tuple) else [image_sizes])
    if len(given) != len(shown):
        raise InputError(
            f"image_sizes must be (H, W) of each image's original; got {brief(image_sizes)} for {len(shown)} images."
        )
    for (height, width), (h, w) in zip(given, shown, strict=True):
        if abs(w * height - h * width) > height + width:  # more than rounding to whole pixels can make of it
            raise InputError(
                f"image_sizes has (H, W) = {(height, width)} for an image of {(h, w)}; expected the same shape: the "
                "image is to be the whole original, made smaller."
            )
    return given


def segment(
    requests: Sequence[Request],
    base: FrozenBase,
    shrink: Callable[[Image], Tensor],
    encode: Callable[[list[Tensor]], Sequence[Tensor]],
    predict: Callable[[Reading, Tensor, Tensor], LensPrediction],
    batch_size: int | None = None,
) -> list[list[Draft]]:
    """The whole road, once per batch of prompts; while the models work on one, the next one is prepared.

    Args:
        requests: what is asked.
        base: the frozen model.
        shrink: a picture -> its colors at the size that the mask decoder takes, uint8 (3, h, w).
        encode: such pictures -> the mask decoder's embeddings (E, g, g) of them.
        predict: a reading of N prompts, embeddings (B, E, g, g), and which of these each prompt is about, long (N,)
            -> what head and mask decoder make of it.
        batch_size: prompts that run together, of several pictures too; None: those of one picture.

    Returns:
        A draft for every prompt, by request.
    """
    drafts: list[list[Draft]] = [[] for _ in requests]
    rows = [(k, prompt) for k, (_, prompts) in enumerate(requests) for prompt in prompts]
    batches = list(_batches(rows, batch_size))
    embeddings: dict[int, Tensor] = {}
    prepare = partial(_prepared, requests=requests, base=base, shrink=shrink, ahead=len(batches) > 1)
    pairs = list(zip(batches, [[], *batches][: len(batches)], strict=True))  # each with the one before it
    with closing(one_ahead(prepare, pairs)) as prepared:
        for batch, one in zip(batches, prepared, strict=True):
            encoded = encode(list(one.colors.values())) if one.colors else []
            found = {**embeddings, **dict(zip(one.colors, encoded, strict=True))}
            embeddings = {k: found[k] for k, _ in batch}  # those of earlier batches are let go when done
            stacked, places = torch.stack(list(embeddings.values())), list(embeddings)  # (B, E, g, g)
            for run, ready in one.runs:
                pictures, prompts = _of(run, batch, requests)
                reading = base.read(pictures, prompts, prepared=ready)
                index = sent(torch.tensor([places.index(batch[row][0]) for row in run]), stacked.device)
                prediction = predict(reading, stacked, index)
                for row, draft in zip(run, _drafts(prediction), strict=True):
                    drafts[batch[row][0]].append(draft)
    return drafts


@dataclass(frozen=True)
class _Batch:
    """Prompts before the models see them.

    Attributes:
        colors: {request: its picture, as the mask decoder takes it}, of those that the batch before did not have.
        runs: rows of the batch that are read together, and what `FrozenBase.read` takes; made while they are gone
            through, or ahead.
    """

    colors: dict[int, Tensor]
    runs: Iterable[tuple[list[int], Prepared]]


def _prepared(
    batches: tuple[_Rows, _Rows],
    requests: Sequence[Request],
    base: FrozenBase,
    shrink: Callable[[Image], Tensor],
    ahead: bool,
) -> _Batch:
    """What can be done for a batch, given with the one before it, before the models are there.

    Not `ahead`, it is asked for by models that have nothing else to do: then `runs` are made once they are needed, so
    that an accelerator has the pictures to encode meanwhile.
    """
    batch, before = batches
    known = {k for k, _ in before}
    colors = {k: shrink(requests[k][0]) for k in dict.fromkeys(k for k, _ in batch) if k not in known}
    together = base.runs([requests[k][0] for k, _ in batch])
    runs = ((run, base.prepare(*_of(run, batch, requests))) for run in together)
    return _Batch(colors, list(runs) if ahead else runs)


def _of(run: Sequence[int], batch: _Rows, requests: Sequence[Request]) -> tuple[list[Image], list[str]]:
    """Pictures and prompts of some rows of a batch."""
    return [requests[batch[row][0]][0] for row in run], [batch[row][1] for row in run]


def one_ahead(make: Callable[[_Given], _Made], items: Sequence[_Given]) -> Generator[_Made, None, None]:
    """make(item) for every item, in order: while one is used, a thread makes the next, and none beyond that.

    What `make` raises is raised where its item's turn has come.
    """
    if len(items) < 2:
        yield from map(make, items)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="prepare") as thread:
        waiting = deque([thread.submit(make, items[0])])
        for following in items[1:]:
            made = waiting.popleft().result()
            waiting.append(thread.submit(make, following))
            yield made
        yield waiting.popleft().result()


def _drafts(prediction: LensPrediction) -> list[Draft]:
    # Few numbers, all at once: on an accelerator every look at a single one would wait.
    found = prediction.prompts
    points, scores, valid, heat, size, quality, drawn = (
        tensor.cpu()
        for tensor in (
            *(found.keypoints.points, found.keypoints.scores, found.keypoints.valid),
            *(found.heatmap, found.size, prediction.quality, prediction.is_finite()),
        )
    )
    if not drawn:
        dtype = (prediction.logits if found.text_vector is None else found.text_vector).dtype
        raise LensError(
            f"Head and mask decoder, in {str(dtype).removeprefix('torch.')}, made numbers that are "
            "infinite or none (NaN) of what they read, which was finite; expected masks and scores. Load the head in "
            "bfloat16 or float32: LensAdapter.from_pretrained(..., dtype=torch.bfloat16)."
        )
    return [
        Draft(
            logits=prediction.logits[k],
            score=quality[k].clamp(0, 1),
            points=points[k][valid[k]],
            point_scores=scores[k][valid[k]],
            heatmap=heat[k, :height, :width],
            things=None if prediction.things is None else prediction.things[k],
        )
        for k, (height, width) in enumerate(size.tolist())
    ]


def assemble(
    request: Request,
    drafts: Sequence[Draft],
    decoder: MaskDecoder,
    thresholds: Thresholds,
    *,
    size: tuple[int, int] | None = None,
    keep_logits: bool = False,
    instances: bool = False,
    unknown_words: list[list[str]] | None = None,
) -> LensOutput:
    """The results of one picture's prompts; what is not found has an empty mask and no keypoints.

    They are at the picture's own size, or at the (H, W) `size` of what it is a smaller copy of.
    """
    picture, prompts = request
    shown = (picture.height, picture.width)
    size = shown if size is None else size
    low_res = torch.stack([draft.logits for draft in drafts])
    logits = decoder.upsample(low_res, size).cpu() if keep_logits else None  # (N, H, W)
    masks = decoder.masks(low_res, size, thresholds.mask) if logits is None else logits > logit(thresholds.mask)
    scores = torch.stack([draft.score for draft in drafts]).float()
    found = torch.tensor([is_found(score, thresholds.score) for score in scores.tolist()])
    masks[~found] = False
    counts = [len(draft.points) if named else 0 for draft, named in zip(drafts, found.tolist(), strict=True)]
    scale = torch.tensor(size[::-1])
    return LensOutput(
        prompts=prompts,
        image_size=size,
        masks=masks,
        scores=scores,
        keypoints=[(draft.points[:count] * scale).float() for draft, count in zip(drafts, counts, strict=True)],
        keypoint_scores=[draft.point_scores[:count].float() for draft, count in zip(drafts, counts, strict=True)],
        heatmaps=torch.stack([draft.heatmap for draft in drafts]).float(),
        logits=logits,
        image=picture if size == shown else None,
        found=found,
        instances=[_instances(draft, mask, decoder, thresholds.mask) for draft, mask in zip(drafts, masks, strict=True)]
        if instances
        else None,
        unknown_words=unknown_words,  # type: ignore[arg-type]  # None: none
    )


def _instances(draft: Draft, mask: Tensor, decoder: MaskDecoder, mask_threshold: float) -> Instances:
    """The things of one prompt's mask (H, W); none of an empty one."""
    size = (mask.shape[0], mask.shape[1])
    masks = mask[None][:0]
    if mask.any():
        level = logit(mask_threshold)
        if draft.things is None:
            labels = separate(draft.logits, decoder.places(draft.points, size), level=level)
        else:
            labels = of_things(draft.things, level=level)
        masks = at_full_size(labels, mask, partial(decoder.masks, image_size=size, mask_threshold=0.5))
    return Instances(masks, draft.score.float().repeat(len(masks)))


def _batches(rows: _Rows, size: int | None) -> list[_Rows]:
    """Runs of `size` rows; without a size, the rows of each image apart from those of the others."""
    groups = [rows] if size is not None else [list(group) for _, group in groupby(rows, key=itemgetter(0))]
    step = PROMPTS_TOGETHER if size is None else size
    return [group[start : start + step] for group in groups for start in range(0, len(group), step)]
