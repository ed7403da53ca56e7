"""What "works" means for an architecture, as one walk over a tiny random model of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from lens_adapter import LensAdapter
from lens_adapter.data.examples import Example
from lens_adapter.errors import FitError
from lens_adapter.signals import LensSignals, TokenLayout
from lens_adapter.vlm.shared_prefix import can_share
from tests.tiny.adapters import hooks_in, tiny_adapter
from tests.tiny.sam import tiny_sam
from tests.zoo.specimen import Specimen

ROWS_TOLERANCE = 1e-4  # of captured rows against eager `output_attentions`
SHARED_TOLERANCE = 2e-4  # of logits and heat of prompts that share an image's tokens, against each alone, in float32
PROMPTS = ("cat", "the large dog on the left")
BATCH_TOLERANCE = 1e-3  # of a picture's embeddings in a batch against those of it alone
TOGETHER = 12  # changed pictures that the layout probe shows in one batch


@dataclass(frozen=True)
class Report:
    """What was found out about an architecture that works.

    Attributes:
        model: name of its class.
        implementations: attention implementations under which it was found bit-identical.
        rows: largest difference of captured rows from `output_attentions`; None where the architecture offers none.
        tap_layer: the default for this miniature; `readable` of `layers` have attention that can be read.
        hits: fraction of the image tokens that the probe found exactly.
        segmented: `segment` ran end to end.
        shared: prompts about one image go on from its tokens, which run once; None where `segment` could not be tried.
        note: of the specimen.
    """

    model: str
    implementations: tuple[str, ...]
    rows: float | None
    tap_layer: int
    layers: int
    readable: int
    hits: float
    segmented: bool
    shared: bool | None
    note: str


def examine(specimen: Specimen) -> Report:
    """Attach, capture, compare, leave early, probe, segment; an `AssertionError` where something does not hold."""
    model, processor = specimen.build()
    image = noise_image(specimen.image)
    inputs = specimen.ask(processor, [image])
    adapter = tiny_adapter(model, processor)  # nothing here names the architecture
    anatomy = adapter.base.anatomy
    native = next(
        anatomy.attention_implementation(k) for k, attention in enumerate(anatomy.attentions) if attention is not None
    )
    implementations = tuple(dict.fromkeys((native, "eager")))
    for implementation in implementations:
        use_implementation(model, implementation)
        signals = bit_identical(adapter, model, inputs)
        leaves_early(adapter, inputs, signals)
    rows = rows_difference(adapter, inputs, signals)  # the last implementation was eager
    assert rows is None or rows <= ROWS_TOLERANCE, f"rows differ from output_attentions by {rows:g}"
    use_implementation(model, native)
    hits = probe_layout(specimen, adapter, model, processor, image, inputs)
    shared = None if specimen.no_segment else segments(adapter, image)
    adapter.detach()
    if specimen.no_segment is None:
        reads_out(model, processor, image)
    assert not hooks_in(model)
    return Report(
        model=type(model).__name__,
        implementations=implementations,
        rows=rows,
        tap_layer=adapter.config.tap_layer,
        layers=len(anatomy.layers),
        readable=sum(attention is not None for attention in anatomy.attentions),
        hits=hits,
        segmented=specimen.no_segment is None,
        shared=shared,
        note=specimen.note,
    )


def use_implementation(model: PreTrainedModel, name: str) -> None:
    """Run the decoder's attention by the kernel `name`: it may have another than the model as a whole can have."""
    text_config = model.config.get_text_config(decoder=True)
    if model.config.is_encoder_decoder:
        model.set_attn_implementation(name)
    elif (text_config._attn_implementation or "eager") != name:
        parts = [part for part in model.config.sub_configs if getattr(model.config, part, None) is text_config]
        model.set_attn_implementation(dict.fromkeys(parts, name) if parts else name)


@torch.no_grad()
def bit_identical(adapter: LensAdapter, model: PreTrainedModel, inputs: dict[str, Tensor]) -> LensSignals:
    """The same logits before and while capturing; returns what was captured: every layer that can be read, all rows."""
    anatomy = adapter.base.anatomy
    layers = [k for k, attention in enumerate(anatomy.attentions) if attention is not None]
    before = model(**inputs).logits
    with adapter.capture(query="all", layers=layers) as signals:
        during = model(**inputs).logits
    assert before.std() > 0 and torch.equal(before, during), "capturing changed the logits"
    for layer in layers:
        assert signals.attention[layer].isfinite().all(), f"rows of layer {layer} are not finite"
        assert signals.attention[layer].shape[1] == anatomy.num_heads[layer], f"layer {layer} has other heads"
    return signals


def leaves_early(adapter: LensAdapter, inputs: dict[str, Tensor], signals: LensSignals) -> None:
    """A prefill that stops at the tap reads what a whole forward shows, and the layers behind it do not run."""
    ran: list[int] = []
    layers = adapter.base.anatomy.layers
    handles = [layer.register_forward_hook(lambda *_, k=k: ran.append(k)) for k, layer in enumerate(layers)]
    early = adapter.prefill(inputs, query="all")
    for handle in handles:
        handle.remove()
    assert torch.equal(early.hidden, signals.hidden), "an early exit gave other hidden states"
    for layer, rows in early.attention.items():
        assert torch.equal(rows, signals.attention[layer]), "an early exit gave other rows"
    assert max(ran, default=0) <= max(adapter.config.tap_layer, *adapter.config.attention_layers), "no early exit"


@torch.no_grad()
def rows_difference(adapter: LensAdapter, inputs: dict[str, Tensor], signals: LensSignals) -> float | None:
    """Largest difference of captured rows from what the attention modules give out under eager; None: they give none.

    It is what the model collects as `output_attentions` (an encoder's may be left out there).
    """
    given: dict[int, Tensor | None] = {}

    def keep(layer: int, output: tuple) -> None:  # T5's attention gives its biases, too, before the rows
        given[layer] = next((part for part in output[:0:-1] if isinstance(part, Tensor) and part.dim() == 4), None)

    attentions = adapter.base.anatomy.attentions
    handles = [
        attentions[k].register_forward_hook(lambda _, args, output, k=k: keep(k, output)) for k in signals.attention
    ]
    adapter.base.model(**inputs, output_attentions=True)
    for handle in handles:
        handle.remove()
    if any(rows is None for rows in given.values()):
        return None
    if adapter.base.anatomy.cross:  # captured rows go on over the text
        given = {k: pad(given[k], (0, rows.shape[-1] - given[k].shape[-1])) for k, rows in signals.attention.items()}
    return max(float((rows - given[k].float()).abs().max()) for k, rows in signals.attention.items())


def segments(adapter: LensAdapter, image: Image.Image) -> bool:
    """Several prompts at once; whether they shared the image's tokens, and then what each would have got alone."""
    forwards: list[None] = []  # that reach the decoder
    anatomy, config = adapter.base.anatomy, adapter.config
    handle = anatomy.decoder.register_forward_pre_hook(lambda *_: forwards.append(None))
    out = adapter.segment(image, PROMPTS, return_logits=True)
    handle.remove()
    assert out.masks.shape == (len(PROMPTS), image.height, image.width) and out.heatmaps.std() > 0
    # The image, then the prompts; unless the first of these showed that it has to be done again.
    shared = len(forwards) == 2 and can_share(anatomy, tap_layer=config.tap_layer, layers=config.attention_layers)
    atol = SHARED_TOLERANCE if anatomy.model.dtype == torch.float32 else 50 * SHARED_TOLERANCE
    for prompt, logits, heat in zip(PROMPTS, out.logits, out.heatmaps, strict=True) if shared else ():
        alone = adapter.segment(image, prompt, return_logits=True)
        for mine, theirs in ((logits, alone.logits[0]), (heat, alone.heatmaps[0])):
            assert (mine - theirs).abs().max() <= atol, f"{prompt!r} is not segmented as it would be alone"
    return shared


def reads_out(model: PreTrainedModel, processor: Any, image: Image.Image) -> None:
    """A readout is fitted, or says why not; of so small a model, either may happen."""
    adapter = LensAdapter.from_model(model, processor, fusion="readout", sam=tiny_sam(), load_sam=False)
    mask = np.zeros((image.height, image.width), bool)
    mask[: image.height // 2, : image.width // 2] = True
    pictures = [noise_image((image.height, image.width), seed) for seed in range(4)]
    try:
        adapter.fit([Example(picture, PROMPTS[0], mask, image_id=str(k)) for k, picture in enumerate(pictures)])
    except FitError as error:
        assert "a random one" in str(error)
    else:
        assert adapter.segment(image, PROMPTS[0]).heatmaps.isfinite().all()
    adapter.detach()


def probe_layout(
    specimen: Specimen,
    adapter: LensAdapter,
    model: PreTrainedModel,
    processor: object,
    image: Image.Image,
    inputs: dict[str, Tensor],
) -> float:
    """Paint the middle of every token's box: that token's embedding must change more than that of any token that, by
    the layout, sees nothing of it. And a layout with the axes swapped fails."""
    (layout,) = adapter.layout(inputs, [(image.height, image.width)])
    assert len(layout.positions) > 1
    painted = [with_patch(image, box.tolist(), specimen.reach) for box in layout.boxes]
    found, hits = [], 0
    for some in range(0, len(painted), TOGETHER):
        pictures = [picture for picture, _ in painted[some : some + TOGETHER]]
        before, *after = embeddings_of(specimen, adapter, processor, [image, *pictures])
        for k, embeddings in enumerate(after, start=some):
            position, region = layout.positions[k], painted[k][1]
            change = (embeddings - before).norm(dim=-1)  # (T,)
            token = (layout.positions == change.argmax()).nonzero()
            found.append(int(token) if len(token) else None)
            overlaps = (layout.boxes[:, :2] < region[2:]).all(1) & (region[:2] < layout.boxes[:, 2:]).all(1)
            own = change[position].item()
            change[layout.positions[overlaps]] = 0
            hits += own > change.max().item()
    hits /= len(found)
    assert hits >= specimen.hits, f"the probe found {hits:.3f} of the tokens where their boxes are"
    swapped = None
    if layout.grid is None:  # several windows
        swapped = layout.boxes[:, [1, 0, 3, 2]]
    elif min(layout.grid) > 1:
        h, w = layout.grid
        swapped = layout.boxes[torch.arange(h * w).reshape(h, w).T.flatten()]
    if swapped is not None:
        wrong = share_right(found, layout, replace(layout, boxes=swapped, grid=None))
        assert wrong <= 0.5, f"a transposed layout passes the probe too ({wrong:.3f})"
    return hits


def share_right(found: list[int | None], painted: TokenLayout, claimed: TokenLayout) -> float:
    """How often the token that changed is, by the `claimed` layout, the one whose box holds what was painted."""
    boxes = claimed.boxes
    centers = (painted.boxes[:, :2] + painted.boxes[:, 2:]) / 2
    held = [
        token is not None and bool((boxes[token, :2] <= center).all() and (center <= boxes[token, 2:]).all())
        for token, center in zip(found, centers, strict=True)
    ]
    return sum(held) / len(held)


def embeddings_of(
    specimen: Specimen, adapter: LensAdapter, processor: object, pictures: list[Image.Image]
) -> list[Tensor]:
    """What the decoder is given for each picture, (T, D): from one batch, where its rows are what they are alone."""
    together = first_embeddings(adapter, specimen.ask(processor, pictures))
    alone = first_embeddings(adapter, specimen.ask(processor, pictures[-1:]))
    if torch.allclose(together[-1:], alone, atol=BATCH_TOLERANCE):
        return [*together]
    return [first_embeddings(adapter, specimen.ask(processor, [picture]))[0] for picture in pictures]


@torch.no_grad()
def first_embeddings(adapter: LensAdapter, inputs: dict[str, Tensor]) -> Tensor:
    """Input of decoder layer 0, (B, T, D)."""
    from lens_adapter.vlm.hooks import prefill

    return prefill(adapter.base.anatomy, inputs, tap_layer=0).hidden


def noise_image(size: tuple[int, int], seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(64, 192, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def with_patch(image: Image.Image, box: list[float], reach: float = 0.5) -> tuple[Image.Image, Tensor]:
    """The image with the middle of a box (fractions) turned white, and what was painted: x0 y0 x1 y1, fractions."""
    pixels = np.array(image)
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = box
    middle_x, middle_y = (x0 + x1) / 2 * width, (y0 + y1) / 2 * height
    half_x, half_y = max((x1 - x0) * width * reach / 2, 1), max((y1 - y0) * height * reach / 2, 1)
    top, left = max(round(middle_y - half_y), 0), max(round(middle_x - half_x), 0)
    bottom, right = round(middle_y + half_y), round(middle_x + half_x)
    pixels[top:bottom, left:right] = 255
    painted = torch.tensor([left / width, top / height, right / width, bottom / height])
    return Image.fromarray(pixels), painted
