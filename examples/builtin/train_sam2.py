"""Step 3b (independent of the others): a tiny SAM 2 learns, class-agnostically, what one click means.

transformers' own `Sam2Model`, trained from scratch on the same clicks as the tiny SAM of step 3. Its decoder reads
features of half and of a quarter of the picture's size beside the embedding, which is what outlines need. One click in
seven is on the background: there the object score learns to say that nothing is there.

    python examples/builtin/train_sam2.py
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from recipe import SHIPPED, Session, arguments, batches, flat_then_cosine, multiplying, random_filter
from torch import Tensor
from train_sam import clicked
from transformers import (
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2ImageProcessor,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
)

from lens_adapter.builtin.world import sample_scene
from lens_adapter.training.losses import dice_loss, reached_iou

BATCH = 8
CLICKS = 6  # per scene, on things; and one on the background
SIDE = 256
STRIDE = 2  # pixels of a token of the first stage; the last stage's are four times as large
WIDTHS, BLOCKS, WINDOWS, GLOBAL_BLOCKS = [16, 48, 128], [1, 2, 5], [8, 8, 8], [7]
CHANNELS = 64  # as the tiny SAM's
LOW = SIDE // STRIDE  # the decoder's own resolution


def build() -> Sam2Model:
    """A stock SAM 2, only small: three stages of Hiera, 128 wide at the last, a decoder 64 wide; 0.8 M parameters."""
    grids = [SIDE // STRIDE // 2**stage for stage in range(3)]
    backbone = Sam2HieraDetConfig(
        hidden_size=WIDTHS[0],
        image_size=[SIDE, SIDE],
        patch_kernel_size=[3, 3],
        patch_stride=[STRIDE, STRIDE],
        patch_padding=[1, 1],
        num_query_pool_stages=2,
        blocks_per_stage=BLOCKS,
        embed_dim_per_stage=WIDTHS,
        num_attention_heads_per_stage=[1, 2, 4],
        window_size_per_stage=WINDOWS,
        global_attention_blocks=GLOBAL_BLOCKS,
        mlp_ratio=2.0,
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone.to_dict(),
        backbone_channel_list=WIDTHS[::-1],
        backbone_feature_sizes=[[grid, grid] for grid in grids],
        fpn_hidden_size=CHANNELS,
        fpn_top_down_levels=[1, 2],
    )
    prompt = Sam2PromptEncoderConfig(
        hidden_size=CHANNELS, image_size=SIDE, patch_size=4 * STRIDE, mask_input_channels=8
    )
    decoder = Sam2MaskDecoderConfig(
        hidden_size=CHANNELS,
        mlp_dim=128,
        num_attention_heads=4,
        iou_head_hidden_dim=64,
        # The single mask is trained, the three others are not.
        dynamic_multimask_via_stability=False,
    )
    return Sam2Model(
        Sam2Config(
            vision_config=vision.to_dict(),
            prompt_encoder_config=prompt.to_dict(),
            mask_decoder_config=decoder.to_dict(),
        )
    )


def image_processor() -> Sam2ImageProcessor:
    size = {"height": SIDE, "width": SIDE}
    return Sam2ImageProcessor(size=size, mask_size={"height": LOW, "width": LOW})


def make_sample(index: int) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 picture (3, S, S), clicks (CLICKS + 1, 2) in pixels, masks (CLICKS + 1, LOW, LOW) as covered fractions."""
    scene = sample_scene(index)
    rng = np.random.default_rng([index, 4])
    picture = np.array(scene.draw(SIDE, random_filter(rng)))
    masks = scene.masks(SIDE)
    clicks, chosen = clicked(masks, rng, CLICKS)
    rows, columns = np.nonzero(~masks.any(0))
    k = rng.integers(len(rows))
    clicks.append((columns[k] + 0.5, rows[k] + 0.5))
    chosen.append(np.zeros_like(masks[0]))
    covered = F.avg_pool2d(torch.from_numpy(np.stack(chosen)).float()[:, None], SIDE // LOW)[:, 0]
    return torch.from_numpy(picture).permute(2, 0, 1), torch.tensor(clicks).float(), covered


def embeddings_of(model: Sam2Model, pixels: Tensor) -> list[Tensor]:
    """`get_image_embeddings`, which is without gradients, with them: three levels, the finest first."""
    *finer, last = model.get_image_features(pixels, return_dict=True).fpn_hidden_states  # (h * w, B, C) each
    levels = [*finer, last + model.no_memory_embedding]
    sizes = model.backbone_feature_sizes
    return [level.permute(1, 2, 0).unflatten(2, size) for level, size in zip(levels, sizes, strict=True)]


def main() -> None:
    args = arguments(__doc__.splitlines()[0], minutes=70).parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    model = (Sam2Model.from_pretrained(args.start) if args.start else build()).train()
    model.set_attn_implementation("eager")  # many small windows: faster so on a CPU
    processor = image_processor()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    peak_rate = 1.5e-3 * args.rate
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, weight_decay=0.01)
    session = Session("sam2", args.minutes, {"model": model, "adam": optimizer})
    stream = batches(make_sample, BATCH, session.step + args.first, torch.utils.data.default_collate, args.workers)
    label = torch.ones(BATCH, CLICKS + 1, 1, dtype=torch.int)
    for progress in session.steps():
        for group in optimizer.param_groups:
            group["lr"] = peak_rate * min(1.0, (session.step + 1) / 100) * flat_then_cosine(progress, 0.2, 0.01)
        pictures, clicks, masks = next(stream)
        with multiplying(args):
            embeddings = embeddings_of(model, (pictures / 255 - mean) / std)
        found = model(
            image_embeddings=[level.float() for level in embeddings],
            input_points=clicks[:, :, None],
            input_labels=label,
            multimask_output=False,
        )
        logits, target = found.pred_masks[:, :CLICKS, 0].flatten(0, 1), masks[:, :CLICKS].flatten(0, 1)
        quality = found.iou_scores[:, :CLICKS].flatten()
        there = torch.ones(BATCH, CLICKS + 1)
        there[:, CLICKS] = 0
        bce = F.binary_cross_entropy_with_logits(logits, target, pos_weight=torch.tensor(2.0))
        dice = dice_loss(logits, target).mean()
        iou = reached_iou(logits.detach(), target)
        presence = F.binary_cross_entropy_with_logits(found.object_score_logits[..., 0], there)
        loss = 2 * bce + dice + F.mse_loss(quality, iou) + 0.1 * presence
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        session.log(bce=bce.item(), dice=dice.item(), iou=iou.mean().item(), presence=presence.item())
    folder = SHIPPED / "sam2"
    model.set_attn_implementation("sdpa")
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)


if __name__ == "__main__":
    main()
