"""Step 1: the vision tower and the projector learn to name what is at a patch.

The stand-in for CLIP's pre-training, with words and never with masks at the output: for every patch the projector's
output is pulled towards the sum of the word vectors of what a person would say of that place: size, texture, color
and shape of the object there (or "nothing"), column and row, and "object" where an object has its center.

    python examples/builtin/train_tower.py
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from recipe import (
    FURTHER,
    GRID,
    IMAGE_SIZE,
    IMAGE_TOKENS,
    PATCH_SIZE,
    SHIPPED,
    WIDTH,
    WORD_ID,
    WORDS,
    Session,
    arguments,
    batches,
    build_model,
    flat_then_cosine,
    image_features,
    optimizers,
    pixel_tensor,
    random_filter,
)
from transformers import LlavaForConditionalGeneration

from lens_adapter.data.scenes import sample_scene

BATCH = 32
SCALE = 0.3  # standard deviation of the word vectors
ATTRIBUTES = ("size", "texture", "color", "shape")


def make_sample(index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixels; per patch 1 = object, 0 = nothing, -1 = in between; per patch the ids of four words and "center"."""
    scene = sample_scene(index)
    rng = np.random.default_rng([index, 2])
    coverage = scene.masks(IMAGE_SIZE).reshape(-1, GRID, PATCH_SIZE, GRID, PATCH_SIZE).mean(axis=(2, 4))
    coverage = coverage.reshape(len(scene.objects), IMAGE_TOKENS)
    owner, most, total = coverage.argmax(0), coverage.max(0), coverage.sum(0)
    state = np.where(total < 0.04, 0, np.where((most >= 0.25) & (most >= 0.7 * total), 1, -1))
    center = np.zeros(IMAGE_TOKENS, np.int64)
    for i, thing in enumerate(scene.objects):
        cell = min(int(thing.y * GRID), GRID - 1) * GRID + min(int(thing.x * GRID), GRID - 1)
        owner[cell], state[cell], center[cell] = i, 1, 1
    ids = np.array([[WORD_ID[thing.look(a)] for a in ATTRIBUTES] for thing in scene.objects])
    picture = scene.draw(IMAGE_SIZE, random_filter(rng))
    return pixel_tensor(picture), torch.from_numpy(state), torch.from_numpy(np.c_[ids[owner], center])


def place_vectors(words: torch.Tensor) -> torch.Tensor:
    """(64, D): for every patch, row-major, the vectors of its column's and its row's word."""
    columns = words[[WORD_ID[f"x{k}"] for k in range(GRID)]]
    rows = words[[WORD_ID[f"y{k}"] for k in range(GRID)]]
    return (rows[:, None] + columns[None]).reshape(IMAGE_TOKENS, -1)


def main() -> None:
    args = arguments(__doc__.splitlines()[0], minutes=60).parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    model = build_model()
    words = torch.randn(len(WORDS), WIDTH) * SCALE
    words[:5] = 0  # special tokens: nothing to say about a place
    if args.further:
        model.load_state_dict(LlavaForConditionalGeneration.from_pretrained(SHIPPED / "vlm").state_dict())
    model.model.language_model.embed_tokens.weight.data.copy_(words)
    model.train()
    parts = torch.nn.ModuleList([model.model.vision_tower, model.model.multi_modal_projector])
    peak = 0.5 if args.further else 1.0
    opts = optimizers(list(parts.named_parameters()), muon_lr=3e-3 * peak, adam_lr=2e-3 * peak)
    rates = [group["lr"] for opt in opts for group in opt.param_groups]
    session = Session("tower", args.minutes, {"model": model, "muon": opts[0], "adam": opts[1]})
    words = model.model.language_model.embed_tokens.weight.detach()
    places = place_vectors(words)
    groups = [[WORD_ID[w] for w in values] for values in sample_scene(0).vocabulary.looks().values()]
    first = session.step + FURTHER * args.further
    stream = batches(make_sample, BATCH, first, torch.utils.data.default_collate, args.workers)
    for progress in session.steps():
        rate = min(1.0, (session.step + 1) / 60) * flat_then_cosine(progress, 0.3)
        for group, base in zip((g for opt in opts for g in opt.param_groups), rates, strict=True):
            group["lr"] = base * rate
        pixels, state, ids = next(stream)
        said = image_features(model, pixels)  # (B, 64, D)
        on, off = state == 1, state == 0
        center = ids[..., -1]
        target = places + center[..., None] * words[WORD_ID["object"]]
        target = target + on[..., None] * words[ids[..., :-1]].sum(2) + off[..., None] * words[WORD_ID["nothing"]]
        # Centers are few and matter most: counting and locating rest on them.
        weight = on.float() + 0.25 * off.float() + 2.0 * center
        mse = (((said - target) ** 2).mean(-1) * weight).sum() / weight.sum() / SCALE**2
        content = (said - places)[on]
        losses, right = [], {}
        for k, group in enumerate(groups):
            truth = ids[..., k][on]
            index = torch.tensor([group.index(i) for i in truth.tolist()])
            scores = content @ words[group].T
            losses.append(F.cross_entropy(scores, index))
            right[ATTRIBUTES[k]] = (scores.argmax(1) == index).float().mean().item()
        loss = mse + 0.5 * sum(losses)
        loss.backward()
        for opt in opts:
            opt.step()
            opt.zero_grad()
        session.log(mse=mse.item(), **right)
    model.save_pretrained(session.folder / "model")


if __name__ == "__main__":
    main()
