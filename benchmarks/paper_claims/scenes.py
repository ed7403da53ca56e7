"""The scenes that all methods learn from and are judged on, with what the frozen vision parts say about each.

The base's vision tower and SAM's image encoder are frozen in every method, so each scene goes through them once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import trange
from transformers import PreTrainedModel, ProcessorMixin

from lens_adapter.builtin.exam import QUESTIONS
from lens_adapter.builtin.world import Question, Scene, Speaker, sample_scene
from lens_adapter.sam.segment_anything import SamDecoder

SIDE = 192  # pixels at which training scenes are drawn
BATCH_SCENES = 8
PROMPTS = 2  # per scene
# Every prompt has a target.
KINDS = {"attribute": 0.3, "spatial": 0.25, "ordinal": 0.12, "several": 0.13, "reasoning": 0.2}
ROUND = 20  # scenes encoded together


@dataclass(frozen=True)
class Encoded:
    """What the frozen parts say about scenes 0, 1, 2, ... of a split.

    Attributes:
        tokens: float16 (scenes, n, D), image features as the language model gets them.
        embeddings: float16 (scenes, C, g, g), SAM's.
    """

    tokens: Tensor
    embeddings: Tensor

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Batch:
    """N prompts about some scenes.

    Attributes:
        tokens: float32 (N, n, D), image features of each prompt's scene.
        embeddings: float32 (scenes, C, g, g).
        index: long (N,), which of the scenes each prompt is about.
        texts: N expressions, or N questions.
        masks: float32 (N, 4g, 4g), covered fraction of each cell of the mask decoder's output.
        answers: to N questions; None where `texts` are expressions.
    """

    tokens: Tensor
    embeddings: Tensor
    index: Tensor
    texts: list[str]
    masks: Tensor | None = None
    answers: list[str] | None = None


@torch.no_grad()
def encode_pictures(model: PreTrainedModel, processor: ProcessorMixin, sam: SamDecoder, pictures: list) -> Encoded:
    """Run the vision tower, the projector and SAM's image encoder."""
    pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    states = model.model.vision_tower(pixel_values=pixels, output_hidden_states=True).hidden_states
    patches = states[model.config.vision_feature_layer][:, 1:]  # without the class token
    return Encoded(model.model.multi_modal_projector(patches).half(), sam.encode_images(pictures).half())


def encode_scenes(
    model: PreTrainedModel, processor: ProcessorMixin, sam: SamDecoder, count: int, split: str, side: int, folder: Path
) -> Encoded:
    """`encode_pictures` of the first `count` scenes of a split, kept in `folder`."""
    path = folder / f"{split}-{count}-{side}.pt"
    if not path.exists():
        parts = []
        for start in trange(0, count, ROUND, desc=f"{split} scenes through the frozen encoders", mininterval=5):
            pictures = [sample_scene(i, split).draw(side) for i in range(start, min(start + ROUND, count))]
            parts.append(encode_pictures(model, processor, sam, pictures))
        stacked = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("tokens", "embeddings")}
        torch.save(stacked, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
    return Encoded(**torch.load(path, weights_only=True, mmap=True))


def training_batch(step: int, encoded: Encoded, sam: SamDecoder, questions: bool = False) -> Batch:
    """The batch of a step, the same for every method; with `questions`, about the same scenes, these and no masks."""
    numbers = [(step * BATCH_SCENES + k) % len(encoded) for k in range(BATCH_SCENES)]
    rng = np.random.default_rng([step, 11])
    index = torch.arange(BATCH_SCENES).repeat_interleave(PROMPTS)
    scenes = [sample_scene(number) for number in numbers]
    tokens, embeddings = encoded.tokens[numbers].float(), encoded.embeddings[numbers].float()
    if questions:
        asked = [question for scene in scenes for question in _questions(scene, rng)]
        return Batch(tokens[index], embeddings, index, [q.text for q in asked], answers=[q.answer for q in asked])
    texts, masks = [], []
    for scene in scenes:
        said = _expressions(scene, rng)
        objects = scene.masks(SIDE)
        union = np.stack([objects[list(targets)].any(0) for _, targets in said])
        texts += [text for text, _ in said]
        masks.append(sam.downsample(torch.from_numpy(union)))
    return Batch(tokens[index], embeddings, index, texts, torch.cat(masks))


def _expressions(scene: Scene, rng: np.random.Generator) -> list[tuple[str, Sequence[int]]]:
    """PROMPTS random expressions with a target; a kind of which the scene has none is replaced by another."""
    speaker, said = Speaker(scene, rng), []
    while len(said) < PROMPTS:
        kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
        if (made := next((e for _ in range(6) if (e := speaker.expression(kind))), None)) is not None:
            said.append((made.text, made.targets))
    return said


def _questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """PROMPTS random questions of the kinds that the exam asks."""
    speaker, asked = Speaker(scene, rng), []
    while len(asked) < PROMPTS:
        if (made := speaker.question(str(rng.choice(QUESTIONS)))) is not None:
            asked.append(made)
    return asked
