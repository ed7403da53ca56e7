"""Step 1: the vision tower and the projector learn to name what is at a patch.

The stand-in for CLIP's pre-training, with words and never with masks at the output: for every patch the projector's
output is pulled towards the sum of the word vectors of what a person would say of that place: size, color, name and
category of the thing there (or "nothing"), column and row, and "object" where a thing has its middle.

    python examples/builtin/train_tower.py
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from recipe import (
    GRID,
    IMAGE_SIZE,
    IMAGE_TOKENS,
    MEAN,
    PATCH_SIZE,
    STD,
    WORD_ID,
    WORD_SCALE,
    Drawn,
    Session,
    arguments,
    batches,
    build_model,
    flat_then_cosine,
    image_features,
    load_start,
    multiplying,
    optimizers,
    random_filter,
)

from lens_adapter.builtin.world import sample_scene
from lens_adapter.builtin.world.catalog import CATEGORIES, COLORFUL, COLORS, THINGS
from lens_adapter.builtin.world.scenes import SIZES

SCENES = 24_000  # of "words"; each is met several times, in other light
BATCH = 32
LOOKS = {"size": list(SIZES), "color": [*COLORS, COLORFUL], "name": list(THINGS), "category": list(CATEGORIES)}


def describe(index: int) -> dict[str, np.ndarray]:
    """What is kept of a scene: its picture; per patch 1 = thing, 0 = nothing, -1 = in between; per patch the ids of
    four words and 1 where a thing has its middle."""
    scene = sample_scene(index, "words")
    coverage = scene.masks(IMAGE_SIZE).reshape(-1, GRID, PATCH_SIZE, GRID, PATCH_SIZE).mean(axis=(2, 4))
    coverage = coverage.reshape(len(scene.objects), IMAGE_TOKENS)
    owner, most, total = coverage.argmax(0), coverage.max(0), coverage.sum(0)
    state = np.where(total < 0.04, 0, np.where((most >= 0.2) & (most >= 0.7 * total), 1, -1))
    middle = np.zeros(IMAGE_TOKENS, np.int16)
    for i, thing in enumerate(scene.objects):
        cell = min(int(thing.y * GRID), GRID - 1) * GRID + min(int(thing.x * GRID), GRID - 1)
        owner[cell], state[cell], middle[cell] = i, 1, 1
    ids = np.array([[WORD_ID[thing.look(look)] for look in LOOKS] for thing in scene.objects], np.int16)
    picture = scene.draw(IMAGE_SIZE, random_filter(np.random.default_rng([index, 2])))
    return {"picture": np.asarray(picture), "state": state.astype(np.int8), "ids": np.c_[ids[owner], middle]}


def in_other_light(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 (B, 128, 128, 3) -> (B, 3, 128, 128) as the processor hands it over, a little brighter, darker, warmer."""
    random = partial(torch.randn, device=pictures.device)
    gain = 1 + 0.06 * random(len(pictures), 1, 1, 3)
    light = (pictures / 255 * gain + 0.03 * random(len(pictures), 1, 1, 1)).clamp(0, 1)
    return ((light + 0.01 * random(light.shape) - MEAN) / STD).permute(0, 3, 1, 2)


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
    if args.start:
        load_start(model, args.start)
    model.to(args.device).train()
    parts = torch.nn.ModuleList([model.model.vision_tower, model.model.multi_modal_projector])
    opts = optimizers(list(parts.named_parameters()), muon_lr=3e-3 * args.rate, adam_lr=2e-3 * args.rate)
    rates = [group["lr"] for opt in opts for group in opt.param_groups]
    session = Session("tower", args.minutes, {"model": model, "muon": opts[0], "adam": opts[1]})
    words = model.get_input_embeddings().weight.detach()
    places = place_vectors(words)
    groups = [[WORD_ID[word] for word in values] for values in LOOKS.values()]
    rank = torch.zeros(len(words), dtype=torch.long, device=args.device)  # of a word within its group
    for group in groups:
        rank[group] = torch.arange(len(group))
    drawn = Drawn("tower/scenes", SCENES, describe)
    stream = batches(
        lambda index: drawn[(args.first + index) % SCENES],
        BATCH,
        session.step,
        torch.utils.data.default_collate,
        args.workers,
        args.device,
    )
    for progress in session.steps():
        rate = min(1.0, (session.step + 1) / 60) * flat_then_cosine(progress, 0.3)
        for group, base in zip((g for opt in opts for g in opt.param_groups), rates, strict=True):
            group["lr"] = base * rate
        batch = next(stream)
        state, ids = batch["state"], batch["ids"].long()
        with multiplying(args):
            said = image_features(model, in_other_light(batch["picture"])).float()  # (B, 64, D)
        on, off = state == 1, state == 0
        middle = ids[..., -1]
        target = places + middle[..., None] * words[WORD_ID["object"]]
        target = target + on[..., None] * words[ids[..., :-1]].sum(2) + off[..., None] * words[WORD_ID["nothing"]]
        # Middles are few and matter most: counting and locating rest on them.
        weight = on.float() + 0.25 * off.float() + 2.0 * middle
        mse = (((said - target) ** 2).mean(-1) * weight).sum() / weight.sum() / WORD_SCALE**2
        content, at_middle = (said - places)[on], middle[on] == 1
        losses, right = [], {}
        for k, group in enumerate(groups):
            truth = rank[ids[..., k][on]]
            scores = content @ words[group].T
            losses.append(F.cross_entropy(scores, truth))
            hits = (scores.argmax(1) == truth).float()
            look = list(LOOKS)[k]
            right |= {look: hits.mean().item(), f"{look}_middle": hits[at_middle].mean().item()}
        loss = mse + 0.5 * sum(losses)
        loss.backward()
        for opt in opts:
            opt.step()
            opt.zero_grad()
        session.log(mse=mse.item(), **right)
    model.cpu().save_pretrained(session.folder / "model")


if __name__ == "__main__":
    main()
