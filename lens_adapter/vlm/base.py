"""`FrozenBase`: the frozen model and its processor between `attach` and `detach`, and the one way to read them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel
from transformers.utils import logging

from lens_adapter.config import LensConfig
from lens_adapter.devices import sent
from lens_adapter.errors import InputError, brief
from lens_adapter.signals import LensSignals, Reading, TokenLayout, whole_numbers
from lens_adapter.vlm.anatomy import Anatomy, find_anatomy, text_config
from lens_adapter.vlm.hooks import Query, capture, prefill
from lens_adapter.vlm.inputs import build_inputs
from lens_adapter.vlm.layout.tokens import token_layouts
from lens_adapter.vlm.replica import replicated
from lens_adapter.vlm.shared_prefix import SharedInputs, can_share, prefill_shared, share_inputs
from lens_adapter.vlm.threads import one_at_a_time
from lens_adapter.vlm.words import unknown_words

logger = logging.get_logger(__name__)

# The model's likeliest words, whatever its own generation config prefers.
GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}

# Readings of one model take turns, through whatever adapter: each is private, but needs the device and its memory.
_turns: WeakKeyDictionary[PreTrainedModel, RLock] = WeakKeyDictionary()
if hasattr(os, "register_at_fork"):  # Windows knows no fork
    os.register_at_fork(after_in_child=_turns.clear)  # whoever has the turn does not exist in the child


@dataclass(frozen=True)
class Prepared:
    """N rows before the model reads them.

    Attributes:
        inputs: what the processor makes of them, or of the first, if they share their picture.
        layouts: where the image tokens of each look.
        sizes: (H, W) of their pictures.
        shared: what they share, and what they do not.
    """

    inputs: Mapping[str, Any]
    layouts: list[TokenLayout]
    sizes: list[tuple[int, int]]
    shared: SharedInputs | None = None


class FrozenBase:
    """A vision-language model that is read and never changed. Holds references; no module of anybody's.

    Args:
        model: as `LensAdapter.attach` takes it.
        processor: of the model; None: that of a `Pipeline`, or none: then pictures and prompts cannot be read.
        config: what is read: `tap_layer`, `attention_layers`, `prompt_template`. Default: that of a new lite head.

    Attributes:
        anatomy: the model's parts.
        processor: or None.
        config: as given; a change of it counts from the next reading on.

    Raises:
        UnsupportedModelError: the model cannot be read.
    """

    def __init__(self, model: Any, processor: Any = None, config: LensConfig | None = None) -> None:
        self.anatomy: Anatomy = find_anatomy(model)
        self.processor: Any = getattr(model, "processor", None) if processor is None else processor
        self.config: LensConfig = LensConfig.from_model(model, fusion="lite") if config is None else config
        self._said: set[str] = set()  # words that were warned of

    @property
    def model(self) -> Any:
        """The model without wrappers. (Any: `generate` is a mixin's, which `PreTrainedModel` does not know.)"""
        return self.anatomy.model

    @property
    def device(self) -> torch.device | None:
        """Where the model wants its inputs; None: it is offloaded, and moves them itself."""
        device = self.anatomy.model.device
        return None if device.type == "meta" else device

    @property
    def tap_device(self) -> torch.device | None:
        """Where the tapped layer is; None: it is offloaded, and nowhere between forwards."""
        device = next(self.anatomy.layers[self.config.tap_layer].parameters()).device
        return None if device.type == "meta" else device

    def turn(self) -> RLock:
        """To be held while the model is read. The model itself is free meanwhile, and `generate` does not wait."""
        return _turns.setdefault(self.anatomy.model, RLock())

    def require_processor(self) -> Any:
        """The processor.

        Raises:
            InputError: there is none.
        """
        if self.processor is None:
            raise InputError(
                "This needs the base's processor. Call adapter.attach(model, processor) with "
                "AutoProcessor.from_pretrained(...) of the same repository."
            )
        return self.processor

    def unknown_words(self, texts: Sequence[str]) -> list[list[str]]:
        """Of each text the words that the tokenizer has no token for, so that the model cannot know what they mean.

        A warning names them all, each word once in the life of this object. Most tokenizers spell out what they do not
        know: then there are none.

        Raises:
            InputError: there is no processor.
        """
        processor = self.require_processor()
        found = [unknown_words(processor, [text]) for text in texts]
        new = dict.fromkeys(word for words in found for word in words if word not in self._said)
        if new:
            self._said.update(new)
            logger.warning(
                "The model has no token for %s: it cannot understand these words, and what it makes of texts with "
                "them means little.",
                brief(list(new), 300),
            )
        return found

    # -- from pictures and prompts to a reading ------------------------------------------------------------------------

    @property
    def build_inputs(self) -> Callable[..., BatchFeature]:
        """(images, prompts) -> what the model is called with, as `inputs.build_inputs`; can be sent to other processes.

        `template="{prompt}"` asks the prompts as they are.

        Raises:
            InputError: there is no processor.
        """
        processor, template = self.require_processor(), self.config.prompt_template
        return partial(build_inputs, processor, template=template, max_length=self.max_length)

    def read(
        self,
        images: Sequence[Image],
        prompts: Sequence[str],
        *,
        layers: Sequence[int] | None = None,
        inputs: Mapping[str, Any] | None = None,
        prepared: Prepared | None = None,
        ask: bool = True,
    ) -> Reading:
        """Read the model about N prompts, as far as a head needs it, without gradients.

        Prompts about one picture (the very same object) share its tokens, if the model can do that.

        Args:
            images: N RGB pictures, as `load_image` returns them.
            prompts: N texts.
            layers: whose attention rows are read; default: those of the config.
            inputs: what `build_inputs(images, prompts)` made of them before, in another process say: then they are read
                row by row.
            prepared: what `prepare(images, prompts, layers=layers)` returned, where it was called before.
            ask: also ask the model whether each thing is there, if the config has a question for that: one whole
                forward more of every row.

        Raises:
            InputError: no processor, or a picture or prompt that cannot be used.
            UnsupportedModelError: how its image tokens lie in the picture is not known.
            LensError: the model computed numbers that are infinite or none, as half precision does beyond 65504.
        """
        question = self.config.presence_question if ask else None
        yes = self.yes_over_no(images, prompts, question) if question else None
        if inputs is not None:
            prepared = self._prepared(inputs, images)
        elif prepared is None:
            prepared = self.prepare(images, prompts, layers=layers)
        if inputs is None:
            self.unknown_words(prompts)  # which warns; only now are they known to be texts
        tap = self.config.tap_layer
        if prepared.shared is not None:
            with self.turn():
                moved = prepared.shared.moved(self.moved)
                signals = prefill_shared(self.anatomy, moved, tap_layer=tap, layers=self._layers(layers))
            if signals is not None:
                return Reading(signals, prepared.layouts, prepared.sizes, yes, tap_layer=tap)
            prepared = self._prepared(self.build_inputs(images, prompts), images)
        signals = self.prefill(prepared.inputs, layers=layers)
        return Reading(signals, prepared.layouts, prepared.sizes, yes, tap_layer=tap)

    def prepare(
        self, images: Sequence[Image], prompts: Sequence[str], *, layers: Sequence[int] | None = None
    ) -> Prepared:
        """What `read` does before the model runs: it only asks the processor, so another thread may do it ahead.

        Args, Raises: as for `read`.
        """
        if len(images) > 1 and all(image is images[0] for image in images) and self._can_share(layers):
            processor, template = self.require_processor(), self.config.prompt_template
            first = self._prepared(self.build_inputs(images[:1], prompts[:1]), images[:1])
            last = int(first.layouts[0].positions.max())
            shared = share_inputs(processor, first.inputs, last, prompts, template, self.max_length)
            if shared is not None:
                return Prepared(first.inputs, first.layouts * len(prompts), first.sizes * len(prompts), shared)
        return self._prepared(self.build_inputs(images, prompts), images)

    def _prepared(self, inputs: Mapping[str, Any], images: Sequence[Image]) -> Prepared:
        sizes = [(image.height, image.width) for image in images]
        return Prepared(inputs, self.layout(inputs, sizes), sizes)

    def runs(self, images: Sequence[Image]) -> list[list[int]]:
        """Rows that are best read together: several prompts about one picture where they can share its tokens.

        Args:
            images: of each row; those of one picture stand next to each other.
        """
        rows = list(range(len(images)))
        if not self._can_share(None):
            return [rows]
        groups = [list(group) for _, group in groupby(rows, key=lambda row: id(images[row]))]
        alone = [row for group in groups if len(group) == 1 for row in group]
        return [group for group in groups if len(group) > 1] + ([alone] if alone else [])

    def _can_share(self, layers: Sequence[int] | None) -> bool:
        return can_share(self.anatomy, tap_layer=self.config.tap_layer, layers=self._layers(layers))

    # -- its steps, for whoever has processor inputs already -----------------------------------------------------------

    def layout(
        self, inputs: Mapping[str, Any], image_sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[TokenLayout]:
        """As `LensAdapter.layout`."""
        _require_mapping(inputs)
        return token_layouts(self.anatomy, self.processor, inputs, image_sizes)

    def prefill(
        self, inputs: Mapping[str, Any], *, query: Query = "last", layers: Sequence[int] | None = None
    ) -> LensSignals:
        """As `LensAdapter.prefill`."""
        _require_mapping(inputs)
        tap, chosen = self.config.tap_layer, self._layers(layers)
        with self.turn():
            return prefill(self.anatomy, self.moved(inputs), tap_layer=tap, layers=chosen, query=query)

    def capture(
        self, *, query: Query = "last", layers: Sequence[int] | None = None, attention: bool = True
    ) -> AbstractContextManager[LensSignals]:
        """As `LensAdapter.capture`."""
        tap = self.config.tap_layer
        wanted = [tap] if layers is None and not self.config.attention_layers else self._layers(layers)
        return capture(self.anatomy, tap_layer=tap, layers=wanted if attention else [], query=query)

    def generate(self, inputs: Mapping[str, Any], **options: Any) -> Any:
        """What the model's own `generate` returns.

        It runs on a replica: it waits for nobody, and what the user's own `generate` in another thread remembers stays.
        Code that torch.compile made does not take part.
        """
        with replicated(self.anatomy) as private:
            model: Any = private.model
            return model.generate(**self.moved(inputs), **options)

    def answers(self, images: Sequence[Image], questions: Sequence[str], *, max_new_tokens: int) -> list[str]:
        """The model's greedy answers to one question about each picture, in its own words."""
        inputs = self.build_inputs(images, questions, template="{prompt}")
        tokens = self.generate(inputs, **GREEDY, max_new_tokens=max_new_tokens)
        start = 0 if self.anatomy.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        said = self.require_processor().batch_decode(tokens[:, start:], skip_special_tokens=True)
        return [answer.strip() for answer in said]

    @torch.no_grad()
    def yes_over_no(self, images: Sequence[Image], prompts: Sequence[str], question: str) -> Tensor:
        """What the model itself says to a question about each picture, by one forward of it all, and no sampling.

        The logits of "yes" and "no" as the answer's first token are compared, in all ways of writing them (where a
        tokenizer splits the words, their first pieces).

        Args:
            question: with `{prompt}` where the prompt goes.

        Returns:
            float64 (N,), the logit of yes minus that of no, on the CPU.

        Raises:
            InputError: "yes" and "no" look the same to the tokenizer, or the model does not answer token by token.
        """
        return self.yes_over_no_of(self.build_inputs(images, prompts, template=question))

    def yes_over_no_of(self, inputs: Mapping[str, Any]) -> Tensor:
        """As `yes_over_no`, of inputs that ask the question."""
        yes, no = self.yes_and_no_tokens()
        try:
            made = self.generate(inputs, **GREEDY, max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
        except (TypeError, ValueError) as error:  # some models' own `generate` refuses what their processors make
            raise InputError(
                f"{type(self.model).__name__} cannot be asked: its generate refuses the inputs ({error})."
            ) from error
        if not getattr(made, "logits", None):  # diffusion, not token by token
            raise InputError(f"{type(self.model).__name__} cannot be asked: it does not answer token by token.")
        logits = made.logits[0].double()  # (N, vocabulary)
        return (logits[:, yes].logsumexp(1) - logits[:, no].logsumexp(1)).cpu()

    def yes_and_no_tokens(self) -> tuple[list[int], list[int]]:
        """The tokens that answers of yes, and of no, start with. Raises InputError: the tokenizer has none."""
        tokenizer = self.require_processor().tokenizer
        yes, no = (_first_tokens(tokenizer, word) for word in ("yes", "no"))
        yes, no = yes - no, no - yes  # a space that stands alone says nothing
        if not yes or not no:
            raise InputError(
                f'{type(tokenizer).__name__} starts "yes" and "no" with the same tokens or does not know them, so they '
                "cannot be compared. This base cannot route or say whether a thing is there; decide by other means."
            )
        return sorted(yes), sorted(no)

    @property
    def can_be_asked(self) -> bool:
        """Whether `yes_over_no` works: the model generates, and its tokenizer tells yes from no."""
        if self.processor is None or not self.anatomy.model.can_generate():
            return False
        try:
            return bool(self.yes_and_no_tokens())
        except InputError:
            return False

    def moved(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """`inputs` with their tensors where the model wants them."""
        device = self.device
        return {name: value if device is None else _on(device, value) for name, value in inputs.items()}

    @property
    def max_length(self) -> int | None:
        """Tokens that the model has positions for, where its config says so."""
        return getattr(text_config(self.anatomy.config), "max_position_embeddings", None)

    def _layers(self, layers: Sequence[int] | None) -> list[int]:
        return list(self.config.attention_layers if layers is None else whole_numbers("layers", layers))


@one_at_a_time
def _first_tokens(tokenizer: Any, word: str) -> set[int]:
    """What a tokenizer starts the ways of writing a word with."""
    spellings = [space + case for space in ("", " ") for case in (word, word.capitalize(), word.upper())]
    tokens = [tokenizer.encode(spelling, add_special_tokens=False) for spelling in spellings]
    return {ids[0] for ids in tokens if ids} - {tokenizer.unk_token_id}


def _on(device: torch.device, value: Any) -> Any:
    """A tensor, or a list of them, on a device; all else as it is."""
    if isinstance(value, list | tuple):
        return type(value)(_on(device, item) for item in value)
    return sent(value, device) if isinstance(value, Tensor) else value


def _require_mapping(inputs: Any) -> None:
    if not isinstance(inputs, Mapping):
        raise InputError(f"inputs must be what the processor returned, a mapping; got {type(inputs).__name__}.")
