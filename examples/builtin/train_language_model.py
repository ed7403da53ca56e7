"""Step 2: the language model learns to answer questions about scenes; tower and projector stay frozen.

Many questions about one scene share one sequence: a 4-D mask lets each see the image and itself only. The curriculum
goes on from a level once its questions are answered well.

    python examples/builtin/train_language_model.py
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from recipe import (
    BOS,
    EOS,
    IMAGE,
    IMAGE_SIZE,
    IMAGE_TOKENS,
    PAD,
    SHIPPED,
    WIDTH,
    WORK,
    Drawn,
    Session,
    arguments,
    batches,
    build_model,
    build_processor,
    encode,
    fingerprint,
    flat_then_cosine,
    image_features,
    load_start,
    multiplying,
    normalized,
    optimizers,
    random_filter,
)
from tqdm import trange
from transformers import LlavaForConditionalGeneration

from lens_adapter.builtin.world import Question, Speaker, sample_scene

FIRST = 24_000  # the scenes before it are the tower's
SCENES = 20_000
BATCH = 24
PREFIX = 1 + IMAGE_TOKENS  # <bos> and the image
IGNORED = -100
END_WEIGHT = 0.1  # of <eos> in the loss: it is easy and comes with every answer


@dataclass(frozen=True)
class Level:
    """Scenes of `count` objects, questions by weight, and the accuracy that opens the next level.

    `everyday`: share of the scenes that are asked about in everyday words.
    """

    count: tuple[int, int]
    questions: int
    weights: dict[str, float]
    gate: float
    everyday: float = 0.0


SIMPLE = {"names": 2, "colors": 1, "sizes": 1, "categories": 1, "facts": 2, "where": 2}
EASY = {
    "where_reasoning": 3,
    "where_several": 1,
    "relations": 3,
    "existence": 1,
    "fact_names": 1,
    "where_absent": 0.5,
    "where_joined": 1,
}
EASY_SPATIAL = {"superlatives": 1, "where_spatial": 3, "where_ordinal": 3, "counting": 2}
EVERYTHING = {
    "names": 1,
    "categories": 1.5,
    "colors": 1,
    "sizes": 1,
    "existence": 1.5,
    "superlatives": 1,
    "counting": 4,
    "relations": 3,
    "facts": 2,
    "fact_names": 2,
    "where": 2,
    "where_spatial": 4,
    "where_ordinal": 3,
    "where_several": 2,
    "where_reasoning": 5,
    "where_absent": 1,
    "where_joined": 2,
    "description": 1,
    "routing": 0.5,
}
# What is answered worst at the end, and decides what the masks of spatial prompts are worth.
HARDEST = EVERYTHING | {"where_spatial": 12, "where_ordinal": 10, "where_several": 4, "where_joined": 3}
# What comes after all that the heads read: the rest of the last layer, whose queries and keys make its attention.
_LAST = "model.language_model.layers.3."
UNREAD = (
    *(f"{_LAST}{part}" for part in ("self_attn.v_proj", "self_attn.o_proj", "post_attention_layernorm", "mlp")),
    "model.language_model.norm",
    "lm_head",
)
LEVELS = (
    Level((2, 2), 10, {**SIMPLE, "relations": 3}, 0.85),
    Level((2, 3), 14, {**SIMPLE, **EASY}, 0.85),
    Level((2, 5), 18, {**SIMPLE, **EASY, **EASY_SPATIAL}, 0.82, everyday=0.2),
    Level((2, 8), 22, EVERYTHING, 0.85, everyday=0.3),
    Level((2, 5), 18, EVERYTHING, 0.84, everyday=0.6),
    Level((2, 8), 22, HARDEST, 2.0, everyday=0.6),
)


@cache
def drawn() -> Drawn:
    """The scenes that are talked about: none that the tower learned from."""
    return Drawn("language_model/scenes", SCENES, draw)


def draw(number: int) -> dict[str, np.ndarray]:
    """Its picture, and how many objects it has."""
    scene = sample_scene(FIRST + number, "words")
    picture = scene.draw(IMAGE_SIZE, random_filter(np.random.default_rng([FIRST + number, 2])))
    return {"picture": np.asarray(picture), "objects": np.array(len(scene.objects), np.int8)}


@torch.no_grad()
def read_scenes(model: LlavaForConditionalGeneration, folder: Path, workers: int = 0) -> np.ndarray:
    """float16 (SCENES, 64, D): what tower and projector say about every scene. The picture itself is not needed again.

    They go into a file in `folder` that is named after the weights, so none is taken for those of others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"features-{fingerprint(model.model.vision_tower, model.model.multi_modal_projector)}.npy"
    if not path.exists():
        drawn().draw_all(workers)
        features = np.empty((SCENES, IMAGE_TOKENS, WIDTH), np.float16)
        for start in trange(0, SCENES, 50, desc="reading scenes", mininterval=10):
            pictures = np.stack([drawn()[number]["picture"] for number in range(start, start + 50)])
            pixels = normalized(torch.from_numpy(pictures)).to(model.device)
            features[start : start + 50] = image_features(model, pixels).cpu().numpy()
        np.save(path, features)
    return np.load(path, mmap_mode="r")


def ask(speaker: Speaker, level: Level, rng: np.random.Generator) -> list[Question]:
    """Up to `level.questions` different questions."""
    kinds, weights = list(level.weights), np.array(list(level.weights.values()))
    asked: dict[str, Question] = {}
    for kind in rng.choice(kinds, size=4 * level.questions, p=weights / weights.sum()):
        if len(asked) == level.questions:
            break
        question = speaker.question(str(kind))
        if question is not None:
            asked.setdefault(question.text, question)
    return list(asked.values())


def make_sample(index: int, reached: int, features: np.ndarray) -> tuple[torch.Tensor, list[Question]]:
    """Image tokens of a scene and questions, of the level reached or, two times in five, of an easier one."""
    rng = np.random.default_rng([index, 3])
    level = LEVELS[reached if rng.random() < 0.6 else int(rng.integers(reached + 1))]
    fewest, most = level.count
    while True:
        number = int(rng.integers(SCENES))
        if fewest <= drawn().arrays["objects"][number] <= most:
            break
    scene = sample_scene(FIRST + number, "words")
    speaker = Speaker(scene, rng, "everyday" if rng.random() < level.everyday else "usual")
    return torch.from_numpy(features[number].astype(np.float32)), ask(speaker, level, rng)


def pack(samples: list[tuple[torch.Tensor, list[Question]]]) -> dict:
    """Questions of a scene one after the other in one row.

    Returns ids, labels, positions (B, T) and owner (B, T): 0 for the prefix, k + 1 for the k-th question, -1 for
    filler; and per row and question its kind and the slice of its answer.
    """
    encoded = [[(q.kind, encode(q.text), [*encode(q.answer), EOS]) for q in questions] for _, questions in samples]
    length = PREFIX + max(sum(len(q) + len(a) for _, q, a in row) for row in encoded)
    ids = torch.full((len(samples), length), PAD)
    labels = torch.full_like(ids, IGNORED)
    positions = torch.zeros_like(ids)
    owner = torch.full_like(ids, -1)
    ids[:, :PREFIX] = torch.tensor([BOS] + [IMAGE] * IMAGE_TOKENS)
    positions[:, :PREFIX] = torch.arange(PREFIX)
    owner[:, :PREFIX] = 0
    answers: list[tuple[str, int, slice]] = []
    for b, row in enumerate(encoded):
        start = PREFIX
        for k, (kind, question, answer) in enumerate(row):
            middle, end = start + len(question), start + len(question) + len(answer)
            ids[b, start:end] = torch.tensor(question + answer)
            labels[b, middle:end] = torch.tensor(answer)
            positions[b, start:end] = PREFIX + torch.arange(end - start)
            owner[b, start:end] = k + 1
            answers.append((kind, b, slice(middle, end - 1)))
            start = end
    image = torch.stack([tokens for tokens, _ in samples])  # (B, 64, D)
    return {"image": image, "ids": ids, "labels": labels, "positions": positions, "owner": owner, "answers": answers}


def block_mask(owner: torch.Tensor) -> torch.Tensor:
    """(B, T) -> additive (B, 1, T, T): causal, and no question sees another one."""
    same = owner[:, :, None] == owner[:, None, :]
    seen = same | ((owner[:, None, :] == 0) & (owner[:, :, None] > 0))
    everything = torch.ones(owner.shape[1], owner.shape[1], dtype=torch.bool, device=owner.device)
    seen = seen & everything.tril()
    seen |= everything.tril() & everything.triu()  # filler must see something
    return torch.zeros(seen.shape, device=owner.device).masked_fill_(~seen, torch.finfo(torch.float32).min)[:, None]


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], minutes=150)
    parser.add_argument(
        "--level", type=int, default=0, choices=range(len(LEVELS)), help="of the curriculum, to start at"
    )
    parser.add_argument("--unread", action="store_true", help="teach only what no head reads")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    model = build_model()
    start = args.start or WORK / "tower" / "model"
    if not start.exists():
        raise SystemExit(f"{start} is missing: run train_tower.py first.")
    load_start(model, start)
    model.to(args.device).train()
    for frozen in (model.model.vision_tower, model.model.multi_modal_projector, model.get_input_embeddings()):
        frozen.requires_grad_(False).eval()
    for name, parameter in model.named_parameters():
        if args.unread and not name.startswith(UNREAD):
            parameter.requires_grad_(False)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    opts = optimizers(named, muon_lr=3e-3 * args.rate, adam_lr=1e-3 * args.rate)
    rates = [group["lr"] for opt in opts for group in opt.param_groups]
    session = Session("language_model", args.minutes, {"model": model, "muon": opts[0], "adam": opts[1]})
    reached = torch.tensor([session.notes.get("level", args.level)]).share_memory_()  # read by the drawing processes
    features = read_scenes(model, session.folder, args.workers)
    first = session.step + args.first
    stream = batches(lambda i: make_sample(i, int(reached), features), BATCH, first, pack, args.workers, args.device)
    decoder = model.model.language_model
    for progress in session.steps():
        rate = min(1.0, (session.step + 1) / 60) * flat_then_cosine(progress, 0.6)
        for group, base in zip((g for opt in opts for g in opt.param_groups), rates, strict=True):
            group["lr"] = base * rate
        batch = next(stream)
        embedded = decoder.embed_tokens(batch["ids"])
        embedded = torch.cat([embedded[:, :1], batch["image"], embedded[:, PREFIX:]], dim=1)
        targets = batch["labels"][:, 1:]
        asked = targets != IGNORED
        with multiplying(args):
            states = decoder(
                inputs_embeds=embedded, attention_mask=block_mask(batch["owner"]), position_ids=batch["positions"]
            ).last_hidden_state
            logits = model.lm_head(states[:, :-1][asked]).float()
        truth = targets[asked]
        weight = torch.where(truth == EOS, END_WEIGHT, 1.0)
        loss = (F.cross_entropy(logits, truth, reduction="none") * weight).sum() / weight.sum()
        loss.backward()
        for opt in opts:
            opt.step()
            opt.zero_grad()
        right = torch.zeros_like(asked)
        right[asked] = logits.argmax(-1) == truth
        exact = defaultdict(list)
        for kind, row, span in batch["answers"]:
            exact[kind].append(right[row, span.start - 1 : span.stop - 1].all().item())
        means = session.log(loss=loss.item(), **{kind: float(np.mean(hits)) for kind, hits in exact.items()})
        if means is not None:
            level = LEVELS[int(reached)]
            if np.mean([means[kind] for kind in level.weights if kind in means]) > level.gate:
                reached += 1
                session.notes["level"] = int(reached)
                print(f"-> level {int(reached)}")
    model.cpu().eval().save_pretrained(SHIPPED / "vlm")
    build_processor().save_pretrained(SHIPPED / "vlm")  # it may know more words than the one that was there


if __name__ == "__main__":
    main()
