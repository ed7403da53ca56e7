"""Ways from a vision-language model to a mask, behind one interface: a batch of prompts in, mask logits and losses out.

All end in SAM's mask decoder, which starts from the same weights and learns with them; all leave the vision tower and
SAM's image encoder frozen. In our own words, after the papers named; nobody's code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from benchmarks.paper_claims.scenes import SIDE, Batch
from lens_adapter import LensAdapter, LensConfig, builtin
from lens_adapter.builtin.world import sample_scene
from lens_adapter.sam.segment_anything import SamDecoder
from lens_adapter.signals import Reading, TokenLayout
from lens_adapter.training.losses import HEAT_SIDE, Targets, dice_loss, lens_losses
from lens_adapter.vlm.anatomy import find_anatomy
from lens_adapter.vlm.hooks import capture

TEMPLATE = "where is {prompt} ?"  # the base knows how to answer it: with a place
HEAD_FIELDS = (
    *("fusion", "fusion_layers", "fusion_width", "tap_layer", "attention_layers", "dense_prompt"),
    *("num_keypoints", "suppression_radius", "keypoint_threshold", "mask_threshold", "prompt_template", "sam"),
)
# Every method's mask has the paper's 2 BCE + 4 dice; beside it each has the auxiliary loss of its own paper.
LOSS_WEIGHTS = {"bce": 2.0, "dice": 4.0, "attention": 1.0, "coarse": 1.0, "language": 1.0}
LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05}  # as LISA


@dataclass(frozen=True)
class Base:
    """A vision-language model and its processor; each method has a copy of its own."""

    model: PreTrainedModel
    processor: ProcessorMixin

    @classmethod
    def load(cls) -> Base:
        model, processor = builtin.load_base()
        return cls(model.requires_grad_(False), processor)

    def sequence(self, tokens: Tensor, texts: list[str]) -> tuple[dict[str, Tensor], Tensor]:
        """Image features (N, n, D), then a text, left padded: model inputs, and positions (N, n) of the image."""
        tokenizer, image = self.processor.tokenizer, self.processor.image_token
        rows = [f"{image * tokens.shape[1]} {text}" for text in texts]
        encoded = tokenizer(rows, padding=True, padding_side="left", return_tensors="pt")
        is_image = encoded["input_ids"] == tokenizer.convert_tokens_to_ids(image)  # (N, T)
        embedded = self.model.get_input_embeddings()(encoded["input_ids"])
        embedded = embedded.masked_scatter(is_image[..., None], tokens.to(embedded.dtype))
        inputs = {"inputs_embeds": embedded, "attention_mask": encoded["attention_mask"]}
        return inputs, is_image.nonzero()[:, 1].view(len(texts), -1)

    def count_tokens(self, text: str) -> int:
        return len(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])


class Method(nn.Module):
    """One way to a mask. `forward` gives logits (N, 4g, 4g) and the unweighted losses, if the batch has masks."""

    def __init__(self, base: Base):
        super().__init__()
        self.base = base  # no module: what is not learned is not registered

    def learned(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def decoder(self) -> SamDecoder:
        """SAM; its mask decoder learns, but for the estimate of a mask's quality, as in LENS."""
        raise NotImplementedError

    def finish(self) -> PreTrainedModel:
        """The base as the method leaves it behind."""
        return self.base.model


class Lens(Method):
    """LENS (arXiv 2510.16785): an adapter of this package, untrained, with the settings of the shipped head."""

    def __init__(self, base: Base, fusion: str):
        super().__init__(base)
        settings = LensConfig.from_pretrained(builtin.HEADS[fusion])
        fields = {name: getattr(settings, name) for name in HEAD_FIELDS}
        self.adapter = LensAdapter.from_model(base.model, base.processor, load_sam=False, **fields)
        _start(self.adapter.decoder)
        (self.layout,) = self.adapter.base.read([sample_scene(0).draw(SIDE)], ["object"]).layouts

    def decoder(self) -> SamDecoder:
        return self.adapter.decoder

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        texts = [TEMPLATE.format(prompt=text) for text in batch.texts]
        with torch.no_grad():
            inputs, positions = self.base.sequence(batch.tokens, texts)
        layouts = [TokenLayout(row, self.layout.boxes, self.layout.grid) for row in positions]
        reading = Reading(self.adapter.base.prefill(inputs), layouts, [(SIDE, SIDE)] * len(texts))
        found = self.adapter(reading, batch.embeddings, batch.index)
        if batch.masks is None:
            return found.logits, {}
        heat = F.interpolate(batch.masks[:, None], (HEAT_SIDE, HEAT_SIDE), mode="area")[:, 0]
        losses = lens_losses(found, Targets(batch.masks, heat), heat_needs_target=True)
        return found.logits, {name: losses[name] for name in ("bce", "dice", "attention")}


class Flmm(Method):
    """After F-LMM (arXiv 2406.05821): attention of every layer and head as channels of a U-Net, refined by SAM.

    Channels are the attention rows of the last token and, averaged, of the expression's words. The coarse mask, its box
    and two text vectors (a learned mean over layers of the hidden states of the same tokens) prompt SAM. The tiny SAM
    was taught clicks only, so that its prompts for boxes and masks learn too.
    """

    def __init__(self, base: Base):
        super().__init__(base)
        self.anatomy = find_anatomy(base.model)
        layers = len(self.anatomy.layers)
        self.sam = _start(SamDecoder(LensConfig.from_pretrained(builtin.HEADS["lite"]).sam))
        self.sam.prompt_encoder.mask_downscaling.requires_grad_(True)
        self.sam.prompt_encoder.point_embeddings[2:].requires_grad_(True)  # the corners of a box
        self.unet = UNet(2 * sum(self.anatomy.num_heads))
        self.layer_weight = nn.Parameter(torch.zeros(layers + 1))
        self.text = nn.Linear(self.anatomy.hidden_size, self.sam.sam["out_channels"])

    def decoder(self) -> SamDecoder:
        return self.sam

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        maps, states = self.read(batch)
        grid = batch.embeddings.shape[-1]
        coarse = self.unet(_resize(maps, grid))  # (N, 1, g, g)
        prompt = _resize(coarse, 4 * grid)  # at the size SAM takes masks
        boxes = _boxes(prompt[:, 0] > 0) * self.sam.sam["image_size"]
        corners, dense = self.sam.prompt_encoder(points=None, boxes=boxes, masks=prompt)
        words = self.text(torch.einsum("lnqd,l->nqd", states, self.layer_weight.softmax(0)))  # (N, 2, C)
        dense = batch.embeddings[batch.index] + dense  # one pass for several images: as SamDecoder does it
        masks, _ = self.sam.mask_decoder(
            image_embeddings=torch.zeros_like(dense[:1]),
            image_pe=self.sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=torch.cat([corners, words], dim=1),
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        if batch.masks is None:
            return masks[:, 0], {}
        small = F.interpolate(batch.masks[:, None], (grid, grid), mode="area")[:, 0]
        rough = mask_losses(coarse[:, 0], small)
        return masks[:, 0], {**mask_losses(masks[:, 0], batch.masks), "coarse": rough["bce"] + rough["dice"]}

    @torch.no_grad()
    def read(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log attention to the image (N, 2 * layers * heads, h, w), hidden states (layers + 1, N, 2, D)."""
        texts = [TEMPLATE.format(prompt=text) for text in batch.texts]
        inputs, positions = self.base.sequence(batch.tokens, texts)
        with capture(self.anatomy, tap_layer=0, layers=range(len(self.anatomy.layers)), query="all") as signals:
            states = self.base.model(**inputs, output_hidden_states=True, use_cache=False).hidden_states
        rows = torch.cat(list(signals.attention.values()), dim=1)  # (N, layers * heads, T, T)
        # How much each token counts for the two queries: the last token; the expression's words, before the last.
        weight = torch.zeros(len(texts), 2, rows.shape[-1])
        weight[:, 0, -1] = 1
        for row, text in enumerate(batch.texts):
            count = self.base.count_tokens(text)
            weight[row, 1, -1 - count : -1] = 1 / count
        maps = torch.einsum("nqt,nctk->nqck", weight, rows).flatten(1, 2)  # (N, 2 * layers * heads, T)
        maps = maps.gather(2, positions[:, None].expand(-1, maps.shape[1], -1))
        side = round(positions.shape[1] ** 0.5)
        maps = torch.log(maps * rows.shape[-1] + 1e-2).unflatten(2, (side, side))
        return maps, torch.einsum("nqt,lntd->lnqd", weight, torch.stack(states))


class Lisa(Method):
    """After LISA (arXiv 2308.00692): the base learns a new word, [SEG], whose last hidden state prompts SAM.

    The request begins with a word that begins none of the questions that the base answers. Learned are LoRA
    on queries and values, word vectors and output layer (or the whole language model), a projection, and the mask
    decoder. As in LISA's evaluation, [SEG] is given, not generated.
    """

    REQUEST, SEGMENT = "segment", "[SEG]"

    def __init__(self, base: Base, lora: bool):
        super().__init__(base)
        if base.processor.tokenizer.add_tokens([self.SEGMENT]) != 1:
            raise ValueError("The base already has LISA's word; load a fresh one.")
        model = base.model
        model.resize_token_embeddings(len(base.processor.tokenizer))
        if lora:
            targets = r".*language_model.*\.(q_proj|v_proj)"
            self.tuned = get_peft_model(model, LoraConfig(target_modules=targets, **LORA))
        else:
            self.tuned = model
            model.model.language_model.requires_grad_(True)
        for words in (model.get_input_embeddings(), model.get_output_embeddings()):
            words.requires_grad_(True)
        self.sam = _start(SamDecoder(LensConfig.from_pretrained(builtin.HEADS["lite"]).sam))
        width = model.config.text_config.hidden_size
        self.project = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.sam.sam["out_channels"]))

    def decoder(self) -> SamDecoder:
        return self.sam

    def forward(self, batch: Batch) -> tuple[Tensor | None, dict[str, Tensor]]:
        if batch.answers is not None:
            return None, {"language": self.speak(batch.tokens, batch.texts, batch.answers)[1]}
        requests = [f"{self.REQUEST} {TEMPLATE.format(prompt=text)}" for text in batch.texts]
        states, language = self.speak(batch.tokens, requests, [self.SEGMENT] * len(requests))
        sparse = self.project(states[:, -2])[:, None]  # of [SEG], which <eos> follows
        logits, *_ = self.sam(batch.embeddings, batch.index, sparse)
        if batch.masks is None:
            return logits, {}
        return logits, {**mask_losses(logits, batch.masks), "language": language}

    def speak(self, tokens: Tensor, texts: list[str], answers: list[str]) -> tuple[Tensor, Tensor]:
        """Last hidden states (N, T, D) of texts with their answers, and the loss of the answers' words."""
        model, tokenizer = self.base.model, self.base.processor.tokenizer
        answers = [f"{answer}{tokenizer.eos_token}" for answer in answers]
        inputs, _ = self.base.sequence(tokens, [f"{text} {end}" for text, end in zip(texts, answers, strict=True)])
        states = model.model.language_model(**inputs, use_cache=False).last_hidden_state
        ends = tokenizer(answers, add_special_tokens=False)["input_ids"]
        longest = max(map(len, ends))
        wanted = torch.tensor([[-100] * (longest - len(end)) + end for end in ends])  # (N, longest)
        said = model.lm_head(states[:, -1 - longest : -1])
        return states, F.cross_entropy(said.flatten(0, 1), wanted.flatten(), ignore_index=-100)

    def finish(self) -> PreTrainedModel:
        return self.base.model if self.tuned is self.base.model else self.tuned.merge_and_unload()


class UNet(nn.Module):
    """Three resolutions, one channel of logits at the input's own size, which must be divisible by 4."""

    def __init__(self, channels: int, width: int = 32):
        super().__init__()
        self.down = nn.ModuleList([_block(channels, width), _block(width, 2 * width), _block(2 * width, 4 * width)])
        self.up = nn.ModuleList([_block(6 * width, 2 * width), _block(3 * width, width)])
        self.out = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down[0](x)
        middle = self.down[1](F.max_pool2d(fine, 2))
        x = self.down[2](F.max_pool2d(middle, 2))
        for block, skipped in zip(self.up, (middle, fine), strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), skipped], dim=1))
        return self.out(x)


def _block(inside: int, outside: int) -> nn.Sequential:
    def half(channels: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, outside, 3, padding=1), nn.GroupNorm(8, outside), nn.GELU()]

    return nn.Sequential(*half(inside), *half(outside))


def mask_losses(logits: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """(N, h, w) each."""
    return {"bce": F.binary_cross_entropy_with_logits(logits, masks), "dice": dice_loss(logits, masks).mean()}


def _start(sam: SamDecoder) -> SamDecoder:
    """The pre-trained weights; the estimate of a mask's quality stays frozen."""
    sam.load_weights(builtin.SAM)
    sam.mask_decoder.iou_prediction_head.requires_grad_(False)
    return sam


def _boxes(masks: Tensor) -> Tensor:
    """bool (N, s, s) -> (N, 4), x0 y0 x1 y1 in fractions; the whole square where a mask is empty."""
    side, sides = masks.shape[-1], []
    for axis in (1, 2):  # columns, then rows
        hit = masks.any(axis).int()  # (N, s)
        start, end = hit.argmax(1), side - hit.flip(1).argmax(1)
        sides.append((start / side, end / side))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], dim=1)


def _resize(maps: Tensor, side: int) -> Tensor:
    return F.interpolate(maps, (side, side), mode="bilinear", align_corners=False)


METHODS: dict[str, Callable[[Base], Method]] = {
    "lens_mirror": lambda base: Lens(base, "mirror"),
    "lens_lite": lambda base: Lens(base, "lite"),
    "flmm": Flmm,
    "lisa_lora": lambda base: Lisa(base, lora=True),
    "lisa_full": lambda base: Lisa(base, lora=False),
    "lisa_lora_questions": lambda base: Lisa(base, lora=True),
}
QUESTION_STEPS = {"lisa_lora_questions": 3}  # every so many steps, questions in place of masks
