"""What "works" means for an architecture, as one walk over a tiny random model of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from lens_adapter import LensAdapter
from lens_adapter.signals import LensSignals, TokenLayout
from tests.tiny.adapters import hooks_in, tiny_adapter
from tests.zoo.specimen import Specimen

ROWS_TOLERANCE = 1e-4  # of captured rows against eager `output_attentions`


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
    note: str


def examine(specimen: Specimen) -> Report:
    """Attach, capture, compare, leave early, probe, segment; an `AssertionError` where something does not hold."""
    model, processor = specimen.build()
    image = noise_image(specimen.image)
    inputs = specimen.ask(processor, [image])
    adapter = tiny_adapter(model, processor)  # nothing here names the architecture
    anatomy = adapter.attachment.anatomy
    native = next(
        anatomy.attention_implementation(k) for k, attention in enumerate(anatomy.attentions) if attention is not None
    )
    implementations = tuple(dict.fromkeys((native, "eager")))
    for implementation in implementations:
        use_implementation(model, implementation)
        signals = bit_identical(adapter, model, inputs)
        leaves_early(adapter, inputs, signals)
    rows = rows_difference(adapter, model, inputs, signals)  # the last implementation was eager
    assert rows is None or rows <= ROWS_TOLERANCE, f"rows differ from output_attentions by {rows:g}"
    use_implementation(model, native)
    hits = probe_layout(specimen, adapter, model, processor, image, inputs)
    if specimen.no_segment is None:
        out = adapter.segment(image, ["cat", "the dog"])
        assert out.masks.shape == (2, *specimen.image) and out.heatmaps.std() > 0
    adapter.detach()
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
        note=specimen.note,
    )


def use_implementation(model: PreTrainedModel, name: str) -> None:
    """Run the decoder's attention by the kernel `name`: it may have another than the model as a whole can have."""
    text_config = model.config.get_text_config(decoder=True)
    if model.config.is_encoder_decoder:
        model.set_attn_implementation(name)
    elif (text_config._attn_implementation or "eager") != name:
        parts = [part for part in model.config.sub_configs if getattr(model.config, part, None) is text_config]
        model.set_attn_implementation({part: name for part in parts} if parts else name)


@torch.no_grad()
def bit_identical(adapter: LensAdapter, model: PreTrainedModel, inputs: dict[str, Tensor]) -> LensSignals:
    """The same logits before and while capturing; returns what was captured: every layer that can be read, all rows."""
    anatomy = adapter.attachment.anatomy
    layers = [k for k, attention in enumerate(anatomy.attentions) if attention is not None]
    before = model(**inputs).logits
    with adapter.capture(query="all", layers=layers) as signals:
        during = model(**inputs).logits
    assert before.std() > 0 and torch.equal(before, during), "capturing changed the logits"
    for layer in layers:
        assert signals.attention[layer].isfinite().all(), f"rows of layer {layer} are not finite"
    return signals


def leaves_early(adapter: LensAdapter, inputs: dict[str, Tensor], signals: LensSignals) -> None:
    """A prefill that stops at the tap reads what a whole forward shows, and the layers behind it do not run."""
    ran: list[int] = []
    layers = adapter.attachment.anatomy.layers
    handles = [layer.register_forward_hook(lambda *_, k=k: ran.append(k)) for k, layer in enumerate(layers)]
    early = adapter.prefill(inputs, query="all")
    for handle in handles:
        handle.remove()
    assert torch.equal(early.hidden, signals.hidden), "an early exit gave other hidden states"
    for layer, rows in early.attention.items():
        assert torch.equal(rows, signals.attention[layer]), "an early exit gave other rows"
    assert max(ran, default=0) <= max(adapter.config.tap_layer, *adapter.config.attention_layers), "no early exit"


@torch.no_grad()
def rows_difference(
    adapter: LensAdapter, model: PreTrainedModel, inputs: dict[str, Tensor], signals: LensSignals
) -> float | None:
    """Largest difference of captured rows from what the model itself gives out under eager; None: it gives none."""
    apart = adapter.attachment.anatomy.cross is not None  # then captured rows go on over the text, with zeros
    name = ("cross_" if apart else "encoder_") * bool(model.config.is_encoder_decoder) + "attentions"
    given = getattr(model(**inputs, output_attentions=True), name, None)
    if not given or any(rows is None for rows in given):
        return None
    captured = [signals.attention[layer] for layer in sorted(signals.attention)]
    if len(given) != len(captured):
        given = [given[layer] for layer in sorted(signals.attention)]
    if apart:
        given = [pad(rows, (0, mine.shape[-1] - rows.shape[-1])) for mine, rows in zip(captured, given, strict=True)]
    return max(float((mine - theirs.float()).abs().max()) for mine, theirs in zip(captured, given, strict=True))


def probe_layout(
    specimen: Specimen,
    adapter: LensAdapter,
    model: PreTrainedModel,
    processor: object,
    image: Image.Image,
    inputs: dict[str, Tensor],
) -> float:
    """Paint the middle of every token's box: that token's embedding must change most; and a transposed layout fails."""
    (layout,) = adapter.layout(inputs, [(image.height, image.width)])
    assert len(layout.positions) > 1
    painted = [with_patch(image, box, specimen.reach) for box in layout.boxes.tolist()]
    before = first_embeddings(adapter, specimen.ask(processor, [image]))
    found = []
    for picture in painted:  # one by one: models differ in how they batch images
        change = (first_embeddings(adapter, specimen.ask(processor, [picture])) - before).norm(dim=-1)[0]  # (T,)
        token = (layout.positions == change.argmax()).nonzero()
        found.append(int(token) if len(token) else None)
    hits = share_right(found, layout)
    assert hits >= specimen.hits, f"the probe found {hits:.3f} of the tokens where their boxes are"
    if layout.grid is not None and min(layout.grid) > 1:
        h, w = layout.grid
        transposed = replace(layout, boxes=layout.boxes[torch.arange(h * w).reshape(h, w).T.flatten()], grid=None)
        wrong = share_right(found, layout, transposed)
        assert wrong <= 0.5, f"a transposed layout passes the probe too ({wrong:.3f})"
    return hits


def share_right(found: list[int | None], painted: TokenLayout, claimed: TokenLayout | None = None) -> float:
    """How often the token that changed is, by the `claimed` layout, the one whose box holds what was painted."""
    boxes = (claimed or painted).boxes
    centers = (painted.boxes[:, :2] + painted.boxes[:, 2:]) / 2
    held = [
        token is not None and bool((boxes[token, :2] <= center).all() and (center <= boxes[token, 2:]).all())
        for token, center in zip(found, centers, strict=True)
    ]
    return sum(held) / len(held)


@torch.no_grad()
def first_embeddings(adapter: LensAdapter, inputs: dict[str, Tensor]) -> Tensor:
    """Input of decoder layer 0, (B, T, D)."""
    from lens_adapter.vlm.taps import prefill

    return prefill(adapter.attachment.anatomy, inputs, tap_layer=0).hidden


def noise_image(size: tuple[int, int], seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(64, 192, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def with_patch(image: Image.Image, box: list[float], reach: float) -> Image.Image:
    """The image with the middle of a box (fractions) turned white."""
    pixels = np.array(image)
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = box
    middle_x, middle_y = (x0 + x1) / 2 * width, (y0 + y1) / 2 * height
    half_x, half_y = max((x1 - x0) * width * reach / 2, 1), max((y1 - y0) * height * reach / 2, 1)
    top, left = max(round(middle_y - half_y), 0), max(round(middle_x - half_x), 0)
    pixels[top : round(middle_y + half_y), left : round(middle_x + half_x)] = 255
    return Image.fromarray(pixels)
