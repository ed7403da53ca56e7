"""Step 3b, after step 3: a tiny SAM 2 learns, class-agnostically, what one click means.

transformers' own `Sam2Model`, taught by the same clicks as the tiny SAM of step 3. Its decoder reads features of half
and of a quarter of the picture's size beside the embedding, which is what outlines need. Its decoder starts as that of
the tiny SAM, and its encoder first learns to say what the tiny SAM's says. One click in seven is on the background:
there the object score learns to say that nothing is there.

    python examples/builtin/train_sam2.py
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from recipe import SHIPPED, Session, arguments, batches, flat_then_cosine, multiplying, random_filter
from torch import Tensor, nn
from train_sam import TINY_SAM, clicked, covered
from transformers import (
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2ImageProcessor,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
    SamModel,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from lens_adapter.builtin.world import sample_scene
from lens_adapter.training.losses import dice_loss, reached_iou

BATCH = 8
CLICKS = 6  # per scene, on things; and one on the background
SIDE = 256
STRIDE = 2  # pixels of a token of the first stage; the last stage's are four times as large
WIDTHS, BLOCKS, WINDOWS, GLOBAL_BLOCKS = [16, 48, 128], [1, 2, 5], [8, 8, 8], [7]
CHANNELS = 64  # as the tiny SAM's
TAUGHT = 0.3  # of the time, ever less
LOW = SIDE // STRIDE  # the decoder's own resolution


def build() -> Sam2Model:
    """A stock SAM 2, only small: three stages of Hiera, 128 wide at the last, a decoder 64 wide; 0.86 M parameters."""
    grids = [SIDE // STRIDE // 2**stage for stage in range(3)]
    backbone = Sam2HieraDetConfig(
        hidden_size=WIDTHS[0],
        image_size=[SIDE, SIDE],
        patch_kernel_size=[7, 7],
        patch_stride=[STRIDE, STRIDE],
        patch_padding=[3, 3],
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
    parts = {"vision_config": vision, "prompt_encoder_config": prompt, "mask_decoder_config": decoder}
    model = Sam2Model(Sam2Config(**{name: part.to_dict() for name, part in parts.items()}))
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            module.reset_parameters()  # weights as small as the class begins with are for far wider layers
    return model


def start_decoder(model: Sam2Model, teacher: SamModel) -> None:
    """Prompt encoder and mask decoder start as those of the tiny SAM, but for what only SAM 2 has."""
    given = {}
    for name, tensor in teacher.state_dict().items():
        for theirs, ours in (("out_proj", "o_proj"), ("lin1", "proj_in"), ("lin2", "proj_out")):
            name = name.replace(f".{theirs}.", f".{ours}.")
        given[name] = tensor
    labels = [given.pop(f"prompt_encoder.point_embed.{k}.weight") for k in range(4)]
    given["prompt_encoder.point_embed.weight"] = torch.cat(labels)
    given = {name: tensor for name, tensor in given.items() if not name.startswith("vision_encoder.")}
    missing, unexpected = model.load_state_dict(given, strict=False)
    new = (
        "vision_encoder.",
        "no_memory_embedding",
        "mask_decoder.conv_s",
        "mask_decoder.obj_",
        "mask_decoder.pred_obj",
    )
    assert not unexpected and all(name.startswith(new) for name in missing), (missing, unexpected)


@torch.no_grad()
def taught_embeddings(teacher: SamModel, pictures: Tensor) -> Tensor:
    """uint8 (B, 3, S, S) -> what the tiny SAM's encoder says, on the grid of the tiny SAM 2: (B, CHANNELS, g, g)."""
    small = F.interpolate(pictures.float(), (TINY_SAM["image_size"],) * 2, mode="bilinear", antialias=True)
    statistics = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    mean, std = (small.new_tensor(values).view(3, 1, 1) for values in statistics)
    said = teacher.vision_encoder((small / 255 - mean) / std).last_hidden_state
    return F.interpolate(said, (SIDE // STRIDE // 4,) * 2, mode="bilinear")


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
    return torch.from_numpy(picture).permute(2, 0, 1), torch.tensor(clicks).float(), covered(np.stack(chosen), LOW)


def embeddings_of(model: Sam2Model, pixels: Tensor) -> list[Tensor]:
    """`get_image_embeddings`, which is without gradients, with them: three levels, the finest first."""
    *finer, last = model.get_image_features(pixels, return_dict=True).fpn_hidden_states  # (h * w, B, C) each
    levels = [*finer, last + model.no_memory_embedding]
    sizes = model.backbone_feature_sizes
    return [level.permute(1, 2, 0).unflatten(2, size) for level, size in zip(levels, sizes, strict=True)]


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], minutes=70)
    parser.add_argument("--batch", type=int, default=BATCH, help="scenes per step")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    model = (Sam2Model.from_pretrained(args.start) if args.start else build()).train()
    teacher = SamModel.from_pretrained(SHIPPED / "sam").eval()
    if not args.start:
        start_decoder(model, teacher)
    model.to(args.device)
    teacher.to(args.device)
    if args.device == "cpu":
        model.set_attn_implementation("eager")  # faster for many small windows
    processor = image_processor()
    statistics = (processor.image_mean, processor.image_std)
    mean, std = (torch.tensor(values, device=args.device).view(3, 1, 1) for values in statistics)
    peak_rate = 1.5e-3 * args.rate
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, weight_decay=0.01)
    session = Session("sam2", args.minutes, {"model": model, "adam": optimizer})
    stream = batches(
        make_sample, args.batch, session.step + args.first, torch.utils.data.default_collate, args.workers, args.device
    )
    label = torch.ones(args.batch, CLICKS + 1, 1, dtype=torch.int, device=args.device)
    there = torch.ones(args.batch, CLICKS + 1, device=args.device)
    there[:, CLICKS] = 0
    twice = torch.tensor(2.0, device=args.device)
    for progress in session.steps():
        for group in optimizer.param_groups:
            group["lr"] = peak_rate * min(1.0, (session.step + 1) / 100) * flat_then_cosine(progress, 0.2, 0.01)
        pictures, clicks, masks = next(stream)
        with multiplying(args):
            embeddings = embeddings_of(model, (pictures / 255 - mean) / std)
            taught = None if args.start or progress > TAUGHT else taught_embeddings(teacher, pictures).float()
        found = model(
            image_embeddings=[level.float() for level in embeddings],
            input_points=clicks[:, :, None],
            input_labels=label,
            multimask_output=False,
        )
        logits, target = found.pred_masks[:, :CLICKS, 0].flatten(0, 1), masks[:, :CLICKS].flatten(0, 1)
        quality = found.iou_scores[:, :CLICKS].flatten()
        bce = F.binary_cross_entropy_with_logits(logits, target, pos_weight=twice)
        dice = dice_loss(logits, target).mean()
        iou = reached_iou(logits.detach(), target)
        presence = F.binary_cross_entropy_with_logits(found.object_score_logits[..., 0], there)
        loss = 2 * bce + dice + F.mse_loss(quality, iou) + 0.1 * presence
        if taught is not None:
            apart = F.mse_loss(embeddings[-1].float(), taught) / taught.var()
            loss = loss + (1 - progress / TAUGHT) * apart
            session.sums["apart"].append(apart.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        session.log(bce=bce.item(), dice=dice.item(), iou=iou.mean().item(), presence=presence.item())
    folder = SHIPPED / "sam2"
    model.set_attn_implementation("sdpa")
    model.cpu().eval().save_pretrained(folder)
    processor.save_pretrained(folder)


if __name__ == "__main__":
    main()
