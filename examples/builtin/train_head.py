"""Step 4: a LENS head and the mask decoder learn from masks; the vision-language model and SAM's encoder are frozen.

Frozen things are computed once: image features of the base and image embeddings of SAM for every training scene go
into build/builtin/features, and both heads train from them. Expressions are drawn anew each time.

    python examples/builtin/train_head.py mirror
    python examples/builtin/train_head.py lite
    python examples/builtin/train_head.py lite --sam sam2
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from recipe import (
    BOS,
    GRID,
    IMAGE_SIZE,
    IMAGE_TOKENS,
    PAD,
    SHIPPED,
    WORK,
    Session,
    arguments,
    batches,
    build_processor,
    encode,
    fingerprint,
    flat_then_cosine,
    image_features,
    normalized,
)
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm, trange
from train_sam import SIDE, TINY_SAM, covered
from transformers import LlavaForConditionalGeneration

from lens_adapter import LensAdapter, LensConfig
from lens_adapter.builtin.exam import PICTURE_SIZE
from lens_adapter.builtin.world import Expression, Scene, Speaker, sample_scene
from lens_adapter.builtin.world.wording import ROUTING_QUESTION
from lens_adapter.data.examples import Example
from lens_adapter.evaluation import choose_score_threshold, examine
from lens_adapter.sam.decoder import MaskDecoder
from lens_adapter.signals import Reading, TokenLayout
from lens_adapter.training.losses import HEAT_SIDE, Targets, lens_losses, reached_iou

SCENES = 6000
BATCH = 12
EXPRESSIONS = 3  # per scene
WEIGHTS = {
    **{"attribute": 0.18, "spatial": 0.26, "ordinal": 0.14, "several": 0.09, "reasoning": 0.13, "joined": 0.08},
    "absent": 0.12,
}
EVERYDAY = 0.5  # share of the scenes that are talked about in everyday words
SAMS = {"sam": "lens-{fusion}", "sam2": "lens-{fusion}-sam2"}  # by folder, and the folder of a head with it
WITHIN = {"weights": None, "include_image_encoder": True}  # all of SAM travels in the checkpoint
LOSS_WEIGHTS = {"attention": 1, "bce": 2, "dice": 4, "quality": 1}
TEMPLATE = "where is {prompt} ?"
HEADS = {"mirror": {"fusion_layers": 2}, "lite": {"fusion_layers": 2, "fusion_width": 128, "tap_layer": 3}}
CALIBRATION_SCENES = 200
BICUBIC = Image.Resampling.BICUBIC  # as the processor resizes


def image_tokens(model: LlavaForConditionalGeneration, workers: int) -> Tensor:
    """float16 (SCENES, 64, D), the base's image features of the training scenes."""

    def compute(pictures: list[Image.Image]) -> Tensor:
        small = [np.asarray(picture.resize((IMAGE_SIZE, IMAGE_SIZE), BICUBIC)) for picture in pictures]
        return image_features(model, normalized(torch.from_numpy(np.stack(small))).to(model.device))

    shape = (SCENES, IMAGE_TOKENS, model.config.text_config.hidden_size)
    letters = fingerprint(model.model.vision_tower, model.model.multi_modal_projector)
    return frozen_features(f"tokens-{letters}", shape, compute, SIDE, workers)


def sam_embeddings(decoder: MaskDecoder, workers: int) -> Tensor:
    """float16 (SCENES, E, g, g), SAM's image embeddings of the training scenes."""
    shape = decoder.encode_images([sample_scene(0).draw(decoder.sam["image_size"])])[0].shape
    name = f"embeddings-{fingerprint(decoder.encoding)}"
    return frozen_features(name, (SCENES, *shape), decoder.encode_images, decoder.sam["image_size"], workers)


class Drawings(Dataset):
    """Pictures of training scenes, `side` x `side`."""

    def __init__(self, numbers: range, side: int):
        self.numbers, self.side = numbers, side

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Image.Image:
        return sample_scene(self.numbers[index]).draw(self.side)


@torch.no_grad()
def frozen_features(
    name: str, shape: tuple[int, ...], compute: Callable[[list[Image.Image]], Tensor], side: int, workers: int
) -> Tensor:
    """Compute, or go on computing, what a frozen part says about every training scene; what is there is kept."""
    folder = WORK / "features"
    folder.mkdir(parents=True, exist_ok=True)
    path, done_file = folder / f"{name}.npy", folder / f"{name}.done"
    mode = "r+" if path.exists() else "w+"
    store = np.lib.format.open_memmap(path, mode, np.float16, None if mode == "r+" else shape)
    done = int(done_file.read_text()) if done_file.exists() else 0
    numbers = range(done, SCENES)
    drawn = DataLoader(Drawings(numbers, side), batch_size=20, collate_fn=list, num_workers=workers)
    for pictures in tqdm(drawn, desc=name, unit="batch", mininterval=10):
        store[done : done + len(pictures)] = compute(pictures).cpu().numpy()
        done += len(pictures)
        if done % 500 == 0:
            store.flush()
            done_file.write_text(str(done))
    store.flush()
    done_file.write_text(str(SCENES))
    return torch.from_numpy(store)


def say(scene: Scene, rng: np.random.Generator) -> list[Expression]:
    """EXPRESSIONS random expressions of the scene; a kind that it has none of is replaced by another."""
    speaker, said = Speaker(scene, rng, "everyday" if rng.random() < EVERYDAY else "usual"), []
    while len(said) < EXPRESSIONS:
        kind = rng.choice(list(WEIGHTS), p=list(WEIGHTS.values()))
        expression = next((e for _ in range(6) if (e := speaker.expression(str(kind)))), None)
        if expression is not None:
            said.append(expression)
    return said


def make_sample(index: int, side: int, low: int) -> tuple[int, list[str], Tensor, Tensor]:
    """Scene number, texts, masks (EXPRESSIONS, low, low) as covered fractions, whether each has a target."""
    number, rng = index % SCENES, np.random.default_rng([index, 5])
    scene = sample_scene(number)
    expressions = say(scene, rng)
    masks = scene.masks(side)
    union = np.stack([masks[list(e.targets)].any(0) if e.targets else np.zeros_like(masks[0]) for e in expressions])
    texts = [e.text.removeprefix("the ") if rng.random() < 0.2 else e.text for e in expressions]
    return number, texts, covered(union, low), torch.tensor([bool(e.targets) for e in expressions])


def collate(samples: list) -> tuple[Tensor, list[str], Tensor, Tensor]:
    numbers, texts, masks, present = zip(*samples, strict=True)
    return torch.tensor(numbers), [t for row in texts for t in row], torch.cat(masks), torch.cat(present)


def read_features(
    adapter: LensAdapter, model: LlavaForConditionalGeneration, tokens: Tensor, texts: list[str]
) -> Reading:
    """What `adapter.base.read` would read, from cached image features (N, 64, D); left padded, as it does."""
    questions = [encode(TEMPLATE.format(prompt=text)) for text in texts]
    length = max(map(len, questions))
    ids = torch.tensor([[PAD] * (length - len(q)) + [BOS] + [PAD] * IMAGE_TOKENS + q for q in questions])
    padding = [length - len(q) for q in questions]
    embedded = model.get_input_embeddings()(ids.to(model.device)).detach()
    boxes = grid_boxes()
    layouts = []
    for row, skip in enumerate(padding):
        positions = skip + 1 + torch.arange(IMAGE_TOKENS)
        embedded[row, positions] = tokens[row]
        layouts.append(TokenLayout(positions, boxes, (GRID, GRID)))
    mask = (torch.arange(ids.shape[1])[None] >= torch.tensor(padding)[:, None]).long().to(model.device)
    signals = adapter.base.prefill({"inputs_embeds": embedded, "attention_mask": mask})
    return Reading(signals, layouts, [(SIDE, SIDE)] * len(texts))


def grid_boxes() -> Tensor:
    """(64, 4): the 8 x 8 grid over the whole picture, row-major."""
    y, x = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    corner = torch.stack([x, y], dim=-1).reshape(-1, 2) / GRID
    return torch.cat([corner, corner + 1 / GRID], dim=1)


def calibration_examples() -> Iterator[tuple[int, Example]]:
    """Numbered expressions of validation scenes, some of which name nothing."""
    for index in trange(CALIBRATION_SCENES, desc="calibration"):
        scene = sample_scene(index, "validation")
        picture, masks = scene.draw(PICTURE_SIZE), scene.masks(PICTURE_SIZE)
        for expression in say(scene, np.random.default_rng([index, 6])):
            yield index, Example(picture, expression.text, np.logical_or.reduce(masks[list(expression.targets)]))


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], minutes=25, bfloat16=False)  # in bfloat16 a step takes longer
    parser.add_argument("fusion", choices=HEADS)
    parser.add_argument("--sam", choices=SAMS, default="sam", help="of the folders that ship")
    parser.add_argument(
        "--dense-prompt", action=argparse.BooleanOptionalAction, help="whether the mask decoder is told the heat, too"
    )
    parser.add_argument("--tap-layer", type=int, help="another one than the shipped head's; to compare")
    parser.add_argument("--output", type=Path, help="folder of the finished head; default: where the package has it")
    args = parser.parse_args()
    output = args.output or SHIPPED / SAMS[args.sam].format(fusion=args.fusion)
    asked = {"tap_layer": args.tap_layer, "dense_prompt": args.dense_prompt}
    fields = HEADS[args.fusion] | {key: value for key, value in asked.items() if value is not None}
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    model = LlavaForConditionalGeneration.from_pretrained(SHIPPED / "vlm").eval().requires_grad_(False)
    adapter = LensAdapter.from_model(
        model,
        build_processor(),
        load_sam=False,
        fusion=args.fusion,
        **fields,
        sam=TINY_SAM if args.sam == "sam" else {**LensConfig(sam=str(SHIPPED / args.sam)).sam, **WITHIN},
        num_keypoints=8,
        suppression_radius=1.5,
        mask_threshold=0.5,
        prompt_template=TEMPLATE,
        routing_question=ROUTING_QUESTION,
        base_model_name_or_path="lens_adapter/builtin/vlm",
    )
    adapter.decoder.load_weights(SHIPPED / args.sam)
    if args.start:
        # A head that was not told the heat goes on with a layer for it that starts at zero.
        new = {name: tensor for name, tensor in adapter.state_dict().items() if name.startswith("head.dense.")}
        adapter.load_state_dict(new | LensAdapter.from_pretrained(args.start).state_dict())
    model.to(args.device)
    adapter.to(args.device)
    tokens = image_tokens(model, args.workers).to(args.device)
    embeddings = sam_embeddings(adapter.decoder, args.workers).to(args.device)
    adapter.train()
    groups = [
        {"params": list(adapter.head.parameters()), "lr": 1e-3},
        {"params": list(adapter.decoder.mask_decoder.parameters()), "lr": 5e-4},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
    rates = [args.rate * group["lr"] for group in groups]
    session = Session(output.name, args.minutes, {"adapter": adapter, "adam": optimizer})
    side = adapter.decoder.sam["image_size"]
    sample = partial(make_sample, side=side, low=4 * side // adapter.decoder.sam["patch_size"])
    stream = batches(sample, BATCH, session.step + args.first, collate, args.workers, args.device)
    index = torch.arange(BATCH, device=args.device).repeat_interleave(EXPRESSIONS)
    for progress in session.steps():
        rate = min(1.0, (session.step + 1) / 50) * flat_then_cosine(progress, 0.1, 0.01)
        for group, base in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = base * rate
        numbers, texts, masks, present = next(stream)
        reading = read_features(adapter, model, tokens[numbers][index].float(), texts)
        found = adapter(reading, embeddings[numbers].float(), index)
        # The picture fills SAM's square, so one mask serves for both.
        heat = F.interpolate(masks[:, None], (HEAT_SIDE, HEAT_SIDE), mode="area")[:, 0]
        parts = lens_losses(found, Targets(masks, heat), heat_needs_target=args.fusion == "mirror")
        optimizer.zero_grad()
        sum(LOSS_WEIGHTS[name] * part for name, part in parts.items()).backward()
        torch.nn.utils.clip_grad_norm_(adapter.head.parameters(), 1.0)
        optimizer.step()
        iou = reached_iou(found.logits.detach(), masks)
        session.log(**{k: v.item() for k, v in parts.items()}, iou=iou[present].mean().item())
    adapter.eval()
    calibration = choose_score_threshold(list(examine(adapter, calibration_examples())))
    tqdm.write(str(calibration))
    adapter.config.score_threshold = round(calibration.score_threshold, 4)
    adapter.cpu().save_pretrained(output)


if __name__ == "__main__":
    main()
