"""Named, shape-checked records that walk from room to room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import index
from typing import Any

import torch
from torch import Tensor

from lens_adapter.errors import InputError, LensError, brief
from lens_adapter.finite import is_finite


def require_shape(name: str, tensor: Tensor, *shape: int | None) -> None:
    """Raise unless `tensor` has `shape`; None matches any length."""
    got = tuple(tensor.shape)
    if len(got) != len(shape) or any(want is not None and want != have for want, have in zip(shape, got, strict=True)):
        wanted = tuple("any" if want is None else want for want in shape)
        raise LensError(f"{name}: expected a tensor of shape {wanted}, got {got}.")


class _Brief:
    """A record that is printed in a line or two: of a tensor its shape, not its numbers."""

    def __repr__(self) -> str:
        values = ((each.name, getattr(self, each.name)) for each in fields(self))  # type: ignore[arg-type]
        shown = [f"{name}={_brief(value)}" for name, value in values if value is not None and value != []]
        return f"{type(self).__name__}({', '.join(shown)})"


def _brief(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_brief(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        first = [_brief(entry) for entry in value[:3]]
        more = [f"... {len(value)} in all"] if len(value) > 3 else []
        return f"{'(['[isinstance(value, list)]}{', '.join(first + more)}{')]'[isinstance(value, list)]}"
    plain = isinstance(value, _Brief | str | int | float | torch.dtype | torch.device | None)
    return repr(value) if plain else type(value).__name__


_LARGEST_SIDE = 2**16  # pixels: processors are asked what they make of a picture of that size


def whole_numbers(name: str, value: Any) -> tuple[int, ...]:
    """A list of whole numbers (a tuple, a range, an array, a tensor) as a tuple of Python's.

    Raises:
        InputError: it is something else; names it.
    """
    try:
        numbers = list(value)
        if isinstance(value, str | bytes | Mapping) or any(isinstance(number, bool) for number in numbers):
            raise TypeError
        return tuple(index(number) for number in numbers)
    except TypeError as error:
        raise InputError(f"{name} must be a list of whole numbers; got {brief(value)}.") from error


def sizes_of(image_sizes: Any) -> list[tuple[int, int]]:
    """(H, W) of images, in pixels, as a user gives them.

    Raises:
        InputError: not a list of such, a side below 1 pixel, or beyond `_LARGEST_SIDE`.
    """
    if isinstance(image_sizes, str | bytes) or not hasattr(image_sizes, "__iter__"):
        raise InputError(f"image_sizes: expected a list of (H, W), got {brief(image_sizes)}.")
    sizes = [whole_numbers("image_sizes: each (H, W)", size) for size in image_sizes]
    if wrong := [size for size in sizes if len(size) != 2 or not 1 <= min(size) <= max(size) <= _LARGEST_SIDE]:
        raise InputError(
            f"image_sizes: expected a height and a width from 1 to {_LARGEST_SIDE} pixels, got {brief(wrong[0])}."
        )
    return [(height, width) for height, width in sizes]


# What `capture` yields is filled by the first forward inside; a context without one raises.
_NOT_YET: Any = None


@dataclass(frozen=True, repr=False)
class SharedPrefix(_Brief):
    """The forward whose first tokens are the first tokens of several prompts too.

    Attributes:
        length: P, how many tokens they share.
        hidden: (1, T0, D) with T0 > P, the input of decoder layer `tap_layer` in that forward.
        layer_kwargs: what the tapped layer was called with, as in `LensSignals`.
    """

    length: int
    hidden: Tensor
    layer_kwargs: dict[str, Any]


@dataclass(repr=False)
class LensSignals(_Brief):
    """What was read off one forward of the frozen model.

    Where decoder layers attend to image states that are not in their own sequence, the T tokens are those states
    followed by the text; no state is a query, and `input_ids` has -1 for it.

    Attributes:
        hidden: (B, T, D), the input of decoder layer `tap_layer`, in the base's own dtype.
        attention: {layer: float32 (B, heads, Q, T)}, softmax rows of the chosen query tokens over all keys.
        layer_kwargs: what the tapped layer was called with beside the hidden states (mask, rotary tables, positions).
        input_ids: (B, T) or None (the caller passed embeddings).
        attention_mask: (B, T) or None (nothing is padded).
        position_ids: (..., B, T), the positions that the decoder was given; None where it counts by itself.
        queries: long (B, Q), positions in the sequence of the rows in `attention`.
        kernel: name of the attention implementation that the tapped layer ran, e.g. "sdpa": the masks in `layer_kwargs`
            are made for it. None: not known.
        prefix: where several prompts shared the forward of their first tokens. Then `layer_kwargs` are those of the
            tokens behind these, and `position_ids` too.
        steps: what later forwards of the same `capture` saw, in order (`generate`: one per new token).
    """

    hidden: Tensor = _NOT_YET
    attention: dict[int, Tensor] = field(default_factory=dict)
    layer_kwargs: dict[str, Any] = field(default_factory=dict)
    input_ids: Tensor | None = None
    attention_mask: Tensor | None = None
    position_ids: Tensor | None = None
    queries: Tensor | None = None
    kernel: str | None = None
    prefix: SharedPrefix | None = None
    steps: list[LensSignals] = field(default_factory=list)


@dataclass(frozen=True, repr=False)
class TokenLayout(_Brief):
    """Where the image tokens of ONE image of ONE sequence look.

    Attributes:
        positions: long (n,), indices of its image tokens in the sequence.
        boxes: float (n, 4), x0 y0 x1 y1 of the region each token sees, in fractions of the original image (resizing,
            cropping, padding and tiling undone). A token that sees only padding, or is a separator, is not listed.
        grid: (h, w) when the listed tokens are one row-major grid, else None.

    Examples:
        >>> import torch
        >>> halves = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]])
        >>> TokenLayout(positions=torch.tensor([5, 6]), boxes=halves, grid=(1, 2)).grid
        (1, 2)
        >>> TokenLayout(positions=torch.tensor([5, 6]), boxes=halves, grid=(2, 2))
        Traceback (most recent call last):
            ...
        lens_adapter.errors.LensError: TokenLayout.grid (2, 2) does not hold 2 tokens.
    """

    positions: Tensor
    boxes: Tensor
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        require_shape("TokenLayout.positions", self.positions, None)
        require_shape("TokenLayout.boxes", self.boxes, len(self.positions), 4)
        if self.grid is not None and self.grid[0] * self.grid[1] != len(self.positions):
            raise LensError(f"TokenLayout.grid {self.grid} does not hold {len(self.positions)} tokens.")


@dataclass(frozen=True, repr=False)
class Keypoints(_Brief):
    """Peaks of a batch of heatmaps.

    Attributes:
        points: float (N, K, 2), x then y, in fractions of the original image.
        scores: float (N, K), the heat at each keypoint, in [0, 1].
        valid: bool (N, K); what is not valid is filler.
    """

    points: Tensor
    scores: Tensor
    valid: Tensor

    def __post_init__(self) -> None:
        require_shape("Keypoints.points", self.points, None, None, 2)
        n, k, _ = self.points.shape
        require_shape("Keypoints.scores", self.scores, n, k)
        require_shape("Keypoints.valid", self.valid, n, k)


@dataclass(frozen=True, repr=False)
class Reading(_Brief):
    """What was read off the frozen base about N prompts, each about one picture: all that a head is given.

    Attributes:
        signals: of one prefill of N rows.
        layouts: N, where the image tokens of each row look.
        image_sizes: N times (H, W) in pixels, of each row's original picture.
        yes: float (N,), the base's own answer to whether what is asked for is there: the logit of yes over no. None:
            it was not asked.
        tap_layer: whose input the hidden states are; None: not known.

    Raises:
        LensError: the parts do not fit each other, or the base computed numbers that are infinite or none.
    """

    signals: LensSignals
    layouts: Sequence[TokenLayout]
    image_sizes: Sequence[tuple[int, int]]
    yes: Tensor | None = None
    tap_layer: int | None = None

    def __post_init__(self) -> None:
        rows = len(self.signals.hidden)
        if len(self.layouts) != rows or len(self.image_sizes) != rows:
            raise LensError(
                f"Reading: expected a layout and an image size for each of {rows} rows; "
                f"got {len(self.layouts)} layouts and {len(self.image_sizes)} sizes."
            )
        _require_finite(self.signals, self.tap_layer)


def _require_finite(signals: LensSignals, tap_layer: int | None) -> None:
    """Refuse what a head would make an empty mask of. Waits for the base once, however many tensors there are."""
    tap = "the tapped layer" if tap_layer is None else f"layer {tap_layer}"
    before = [layer for layer in sorted(signals.attention) if tap_layer is not None and layer < tap_layer]
    read = {f"the attention of layer {layer}": signals.attention[layer] for layer in before}
    read[f"the hidden states that enter {tap}"] = signals.hidden
    read |= {f"the attention of layer {layer}": rows for layer, rows in sorted(signals.attention.items())}
    finite = torch.stack([is_finite(tensor).to(signals.hidden.device) for tensor in read.values()])
    if finite.all():
        return
    wrong = [name for name, good in zip(read, finite.tolist(), strict=True) if not good]
    dtype = str(signals.hidden.dtype).removeprefix("torch.")
    cause = (
        f"float16 ends at {torch.finfo(torch.float16).max:.0f}, and this model goes beyond it: load it in bfloat16"
        if signals.hidden.dtype == torch.float16
        else "Its weights may be damaged: fetch them again, and load it in bfloat16 or float32"
    )
    raise LensError(
        f"The base, in {dtype}, computed numbers that are infinite or none (NaN) in {', '.join(wrong[:3])}"
        f"{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}; expected finite ones. {cause} "
        "(from_pretrained(..., dtype=torch.bfloat16); on the command line --dtype bfloat16)."
    )


@dataclass(frozen=True, repr=False)
class SparsePrompts(_Brief):
    """What a head hands to a mask decoder about N prompts: K points each, with a vector, and a vector for the text.

    Points are fractions of the original picture, and vectors know nothing of places: a decoder adds its own positional
    encodings, and fills what is not shown.

    Attributes:
        keypoints: K of each prompt, the hottest first.
        shown: bool (N, K), those that the decoder is to see: the valid ones, but for what training drops.
        point_vectors: (N, K, C). None: the head has no vectors, and the decoder takes the points as clicks of its own.
        text_vector: (N, C); None: likewise.
        heatmap: float32 (N, H, W) in [0, 1], over the original picture; 0 beyond `size`.
        size: long (N, 2), rows and columns (h, w) of each prompt's own heatmap.
        presence: (N,) in [0, 1], the head's own word on whether the prompt names anything in the picture. None: it has
            none, and a score is what the decoder thinks of its mask.
    """

    keypoints: Keypoints
    shown: Tensor
    point_vectors: Tensor | None
    text_vector: Tensor | None
    heatmap: Tensor
    size: Tensor
    presence: Tensor | None = None

    def __post_init__(self) -> None:
        n, k = self.keypoints.valid.shape
        require_shape("SparsePrompts.shown", self.shown, n, k)
        if self.point_vectors is not None and self.text_vector is not None:
            require_shape("SparsePrompts.point_vectors", self.point_vectors, n, k, None)
            require_shape("SparsePrompts.text_vector", self.text_vector, n, self.point_vectors.shape[-1])
        elif self.point_vectors is not None or self.text_vector is not None:
            raise LensError("SparsePrompts: expected vectors of the points and of the text, or neither.")
        require_shape("SparsePrompts.heatmap", self.heatmap, n, None, None)
        require_shape("SparsePrompts.size", self.size, n, 2)
