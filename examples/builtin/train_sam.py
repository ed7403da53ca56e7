"""Step 3 (independent of 1 and 2): a tiny SAM learns, class-agnostically, what one click means.

segment-anything's own classes, trained from scratch: a random visible pixel of an object in, its mask out, with the
quality estimate trained on the IoU reached.

    python examples/builtin/train_sam.py
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from recipe import SHIPPED, Session, arguments, batches, flat_then_cosine, multiplying, random_filter
from torch import Tensor
from transformers import (
    SamConfig,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from lens_adapter.builtin.world import sample_scene
from lens_adapter.config import LensConfig
from lens_adapter.sam.segment_anything import SamDecoder
from lens_adapter.sam.weights import rename_from_sam_model
from lens_adapter.training.losses import dice_loss, reached_iou

BATCH = 12
CLICKS = 6  # per scene
TINY_SAM = {
    "image_size": 192,
    "patch_size": 8,
    "embed_dim": 128,
    "depth": 4,
    "num_heads": 4,
    "mlp_ratio": 2.0,
    "window_size": 8,
    "relative_position": False,
    "global_attention_layers": [3],
    "out_channels": 64,
    "decoder_num_heads": 4,
    "decoder_mlp_dim": 128,
    "mask_in_channels": 8,
    "iou_head_dim": 64,
    "include_image_encoder": True,
}
SIDE = TINY_SAM["image_size"]
LOW = SIDE // 2  # the decoder's own resolution: four times its grid of patches


def make_sample(index: int) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 picture (3, 192, 192), clicks (CLICKS, 2) in pixels, masks (CLICKS, 96, 96) as covered fractions."""
    scene = sample_scene(index)
    rng = np.random.default_rng([index, 4])
    picture = np.array(scene.draw(SIDE, random_filter(rng)))
    clicks, chosen = clicked(scene.masks(SIDE), rng, CLICKS)
    return torch.from_numpy(picture).permute(2, 0, 1), torch.tensor(clicks).float(), covered(np.stack(chosen), LOW)


def clicked(masks: np.ndarray, rng: np.random.Generator, count: int) -> tuple[list[tuple[float, float]], list]:
    """`count` random clicks (x, y) in pixels on visible things, each thing as often as the others, and their masks."""
    clicks, chosen = [], []
    for target in np.resize(rng.permutation(len(masks)), count):
        rows, columns = np.nonzero(masks[target])
        k = rng.integers(len(rows))
        clicks.append((columns[k] + 0.5, rows[k] + 0.5))
        chosen.append(masks[target])
    return clicks, chosen


def covered(masks: np.ndarray, low: int) -> Tensor:
    """bool (N, S, S) -> float (N, low, low), the fraction of each low-resolution cell that is covered."""
    return F.avg_pool2d(torch.from_numpy(masks).float()[:, None], masks.shape[-1] // low)[:, 0]


def normalized(sam: dict, pictures: Tensor) -> Tensor:
    """uint8 (B, 3, S, S) that already fill the square -> what the image encoder expects."""
    mean, std = (
        pictures.new_tensor(sam[key], dtype=torch.float32).view(3, 1, 1) for key in ("pixel_mean", "pixel_std")
    )
    return (pictures.float() - mean) / std


def to_sam_model(decoder: SamDecoder) -> SamModel:
    """The same weights as a transformers `SamModel`, for a folder that everybody can load."""
    sam = decoder.sam
    square = {"image_size": sam["image_size"], "patch_size": sam["patch_size"]}
    vision = SamVisionConfig(
        **square,
        hidden_size=sam["embed_dim"],
        output_channels=sam["out_channels"],
        num_hidden_layers=sam["depth"],
        num_attention_heads=sam["num_heads"],
        mlp_ratio=sam["mlp_ratio"],
        mlp_dim=int(sam["mlp_ratio"] * sam["embed_dim"]),
        use_rel_pos=sam["relative_position"],
        window_size=sam["window_size"],
        global_attn_indexes=sam["global_attention_layers"],
        num_pos_feats=sam["out_channels"] // 2,
    )
    channels = sam["out_channels"]
    prompt = SamPromptEncoderConfig(**square, hidden_size=channels, mask_input_channels=sam["mask_in_channels"])
    mask = SamMaskDecoderConfig(
        hidden_size=channels,
        mlp_dim=sam["decoder_mlp_dim"],
        num_hidden_layers=sam["decoder_depth"],
        num_attention_heads=sam["decoder_num_heads"],
        iou_head_hidden_dim=sam["iou_head_dim"],
        layer_norm_eps=1e-5,
    )
    model = SamModel(
        SamConfig(
            vision_config=vision.to_dict(), prompt_encoder_config=prompt.to_dict(), mask_decoder_config=mask.to_dict()
        )
    )
    ours = decoder.state_dict()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            (original,) = rename_from_sam_model({name: tensor})
            tensor.copy_(ours[original])
    return model.eval()


def main() -> None:
    args = arguments(__doc__.splitlines()[0], minutes=60).parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    sam = LensConfig(sam=TINY_SAM).sam
    decoder = SamDecoder(sam).to(args.device).train().requires_grad_(True)
    if args.start:
        decoder.load_weights(args.start)
    peak_rate = 1.5e-3 * args.rate
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=peak_rate, weight_decay=0.01)
    session = Session("sam", args.minutes, {"model": decoder, "adam": optimizer})
    first = session.step + args.first
    stream = batches(make_sample, BATCH, first, torch.utils.data.default_collate, args.workers, args.device)
    index = torch.arange(BATCH, device=args.device).repeat_interleave(CLICKS)
    label = torch.ones(BATCH * CLICKS, 1, dtype=torch.int, device=args.device)
    twice = torch.tensor(2.0, device=args.device)
    for progress in session.steps():
        for group in optimizer.param_groups:
            group["lr"] = peak_rate * min(1.0, (session.step + 1) / 100) * flat_then_cosine(progress, 0.2, 0.01)
        pictures, clicks, masks = next(stream)
        target = masks.flatten(0, 1)  # (N, 96, 96)
        sparse, _ = decoder.prompt_encoder(points=(clicks.flatten(0, 1)[:, None], label), boxes=None, masks=None)
        with multiplying(args):
            embeddings = decoder.image_encoder(normalized(sam, pictures)).float()
        logits, quality, _ = decoder(embeddings, index, sparse)
        bce = F.binary_cross_entropy_with_logits(logits, target, pos_weight=twice)
        dice = dice_loss(logits, target).mean()
        iou = reached_iou(logits.detach(), target)
        loss = 2 * bce + dice + F.mse_loss(quality, iou)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        session.log(bce=bce.item(), dice=dice.item(), iou=iou.mean().item())
    to_sam_model(decoder.cpu()).save_pretrained(SHIPPED / "sam")


if __name__ == "__main__":
    main()
