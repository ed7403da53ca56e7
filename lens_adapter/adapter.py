"""`LensAdapter`: what users meet. It composes the rooms and owns nothing of the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from itertools import groupby
from numbers import Integral, Real
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from huggingface_hub import CommitInfo, HfApi
from PIL.Image import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from lens_adapter.card import write_model_card
from lens_adapter.config import LensConfig
from lens_adapter.errors import CheckpointMismatchError, InputError, NotAttachedError
from lens_adapter.head.decoder import SamDecoder
from lens_adapter.head.head import HeadOutput, LensHead
from lens_adapter.signals import LensOutput, LensSignals, TokenLayout
from lens_adapter.vlm.anatomy import Anatomy, build_layers, find_anatomy
from lens_adapter.vlm.inputs import build_inputs, load_image
from lens_adapter.vlm.layout import token_layouts
from lens_adapter.vlm.mirror import MirrorLayers
from lens_adapter.vlm.taps import capture, prefill

logger = logging.get_logger(__name__)

# What tells apart two text configs of one architecture, beside the widths that every LensConfig holds.
_BUILD = ("model_type", "intermediate_size", "num_key_value_heads", "head_dim", "vocab_size")
# Taps are state of the base: threads that share one take turns.
_turns: WeakKeyDictionary[PreTrainedModel, RLock] = WeakKeyDictionary()


@dataclass(frozen=True)
class LensPrediction:
    """What `LensAdapter.forward` says about N prompts.

    Attributes:
        logits: float32 (N, g, g), mask logits over SAM's padded square at the decoder's own resolution.
        quality: float32 (N,), the decoder's estimate of each mask's IoU, not clamped.
        head: heatmaps, keypoints and sparse prompts.
    """

    logits: Tensor
    quality: Tensor
    head: HeadOutput


@dataclass(frozen=True)
class _Attachment:
    """What `attach` found. Kept outside module registration: no weight of the base is ever a weight of the adapter."""

    anatomy: Anatomy
    processor: Any


class LensAdapter(PreTrainedModel):
    """A LENS head and its mask decoder, attached to a frozen vision-language model (arXiv 2510.16785).

    Example:
        adapter = LensAdapter.from_pretrained("org/lens-llava-1.5-7b")
        adapter.attach(model, processor)
        out = adapter.segment(image, "the dog on the left")
        out.save("overlay.png")
        adapter.detach()

    Args:
        config: everything the head needs to know; weights are random (see `from_model` for a start from the base).

    Raises:
        LensConfigError: a "mirror" without `base_config`.
    """

    config_class = LensConfig
    base_model_prefix = "lens"
    main_input_name = "signals"

    def __init__(self, config: LensConfig):
        super().__init__(config)
        self._attachment: _Attachment | None = None
        mirror = None
        if config.fusion == "mirror":
            last = config.tap_layer + config.fusion_layers
            mirror = MirrorLayers(build_layers(config.require_base_config(), range(config.tap_layer, last)))
        self.head = LensHead(config, mirror)
        self.decoder = SamDecoder(config.sam)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Nothing: every room initializes itself, and a checkpoint that lacks tensors is refused."""

    # -- making, loading, saving --------------------------------------------------------------------------------------

    @classmethod
    def from_model(cls, model: Any, processor: Any = None, *, load_sam: bool = True, **overrides: Any) -> LensAdapter:
        """A new, untrained adapter for a loaded base, attached to it.

        The mirror starts as a copy of the base's layers, the decoder from the published weights that
        `config.sam["weights"]` names.

        Args:
            model, processor: as for `attach`.
            load_sam: False leaves the decoder at random weights.
            overrides: any field of `LensConfig`.
        """
        adapter = cls(LensConfig.from_model(model, processor, **overrides))
        if load_sam:
            adapter.decoder.load_weights()
        adapter.attach(model, processor)
        if adapter.config.fusion == "mirror":
            adapter.head.fusion.layers.warm_start(adapter._attached().anatomy, adapter.config.tap_layer)
        return adapter

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Load a head and its mask decoder from a folder or a Hub repository.

        Takes what `PreTrainedModel.from_pretrained` takes (`revision`, `token`, `subfolder`, `cache_dir`,
        `local_files_only`, `dtype`, ...). Only safetensors are read; no remote code is run.

        Raises:
            CheckpointMismatchError: damaged weights, or tensors that do not fit the config.
            LensConfigError: an impossible value in `config.json`.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        # Wrong shapes are listed with all else that is wrong, below.
        kwargs |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
        source = pretrained_model_name_or_path
        try:
            adapter, info = super().from_pretrained(source, *args, **kwargs)
        except SafetensorError as error:
            raise CheckpointMismatchError(
                f"{source}: model.safetensors is damaged ({error}). Fetch it again."
            ) from error
        problems = {
            key: sorted(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]
        }
        if problems:
            listing = "; ".join(f"{len(names)} {key}: {str(names[:4])[1:-1]}" for key, names in problems.items())
            raise CheckpointMismatchError(
                f"{source}: the tensors of model.safetensors are not those that config.json describes: {listing}. "
                "Fetch it again, or load it with the version of lens_adapter that wrote it."
            )
        adapter.decoder.freeze()
        return (adapter, info) if wants_info else adapter

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write `config.json`, `model.safetensors` and, unless there is one, the model card `README.md`."""
        self._keys_to_ignore_on_save = {f"decoder.{key}" for key in self.decoder.unsaved_keys}
        write_model_card(Path(save_directory), self.config)
        super().save_pretrained(save_directory, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload LENS head",
        revision: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        """Upload what `save_pretrained` writes; a model card that the repository already has stays.

        (transformers' own would put a generic card in the place of ours.)
        """
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        keep = ["README.md"] if api.file_exists(repo_id, "README.md", revision=revision) else None
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
                ignore_patterns=keep,
            )

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are detached: they never take the base along."""
        return {**vars(self), "_attachment": None}

    # -- attaching ----------------------------------------------------------------------------------------------------

    @property
    def is_attached(self) -> bool:
        return self._attachment is not None

    @property
    def processor(self) -> Any:
        """The base's processor, or None if it came without one.

        Raises:
            NotAttachedError: there is no base.
        """
        return self._attached().processor

    def attach(self, model: Any, processor: Any = None) -> LensAdapter:
        """Get to know the frozen base. Checks everything first; installs no hook; moves the adapter to its device.

        Args:
            model: a `PreTrainedModel` of `AutoModelForVision2Seq` / `AutoModelForImageTextToText`, a `PeftModel` around
                one, or a transformers `Pipeline`.
            processor: of the base; a pipeline brings its own. Needed by `segment`, not by `capture`.

        Returns:
            The adapter itself, usable as a context manager that detaches at its end.

        Raises:
            UnsupportedModelError: the base cannot work.
            CheckpointMismatchError: the head was trained for another base.
        """
        anatomy = find_anatomy(model)
        if processor is None:
            processor = getattr(model, "processor", None)
        _check_base(self.config, anatomy)
        self._attachment = _Attachment(anatomy, processor)
        device = next(anatomy.layers[self.config.tap_layer].parameters()).device
        if device.type != "meta":  # offloaded layers live nowhere between forwards
            self.to(device)
        return self

    def detach(self) -> None:
        """Let go of the base. Calling it again does nothing."""
        self._attachment = None

    def __enter__(self) -> LensAdapter:
        return self

    def __exit__(self, *_: Any) -> None:
        self.detach()

    def _attached(self) -> _Attachment:
        if self._attachment is None:
            raise NotAttachedError("This LensAdapter is not attached; call adapter.attach(model, processor) first.")
        return self._attachment

    # -- reading the base ---------------------------------------------------------------------------------------------

    def _about_to_read(self) -> Anatomy:
        """The base; the mirror follows the attention implementation that it has now, since recorded masks fit that."""
        anatomy = self._attached().anatomy
        if self.config.fusion == "mirror":
            self.head.fusion.layers.set_attention_implementation(
                anatomy.attention_implementation(self.config.tap_layer)
            )
        return anatomy

    def capture(
        self, *, query: str | Sequence[int] = "last", layers: Sequence[int] | None = None, attention: bool = True
    ) -> AbstractContextManager[LensSignals]:
        """Record every forward of the base that YOU run inside the context; outside it no hook exists.

        Args:
            query: tokens whose attention rows are kept: "last" (the last one that is not padding), "all", or positions
                counted from the end, e.g. [-1, -2].
            layers: decoder layers whose rows are kept; default: those of the config, or the tapped one.
            attention: False keeps hidden states only.

        Yields:
            `LensSignals` of the first forward; later ones (`generate`: one per token) are in its `steps`.

        Raises:
            NotAttachedError, InputError (an impossible query), LensConfigError (no such layer), LensError (no forward
            ran, or a tap was silent).
        """
        anatomy = self._about_to_read()
        chosen = self._attention_layers(layers, fallback=[self.config.tap_layer]) if attention else []
        return capture(anatomy, tap_layer=self.config.tap_layer, layers=chosen, query=query)

    def prefill(
        self, inputs: Any, *, query: str | Sequence[int] = "last", layers: Sequence[int] | None = None
    ) -> LensSignals:
        """Run the base on processor inputs only as far as the signals need, without gradients, and return them.

        Args:
            inputs: what the processor returned, on any device.
            query, layers: as for `capture`; `layers` defaults to those the head reads.
        """
        anatomy = self._about_to_read()
        _require_mapping(inputs)
        device = anatomy.model.device
        if device.type != "meta":  # an offloaded base moves its inputs itself
            inputs = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in inputs.items()}
        chosen = self._attention_layers(layers, fallback=[])
        with _turn(anatomy):
            return prefill(anatomy, inputs, tap_layer=self.config.tap_layer, layers=chosen, query=query)

    def _attention_layers(self, layers: Sequence[int] | None, fallback: list[int]) -> list[int]:
        if layers is not None:
            return list(layers)
        return list(self.config.attention_layers) or fallback

    def layout(self, inputs: Any, image_sizes: Sequence[tuple[int, int]] | None = None) -> list[TokenLayout]:
        """Where each image token of a processed batch looks: one `TokenLayout` per image, in order.

        Args:
            inputs: what the processor returned.
            image_sizes: (H, W) of the original images; without them, or without a processor, boxes are fractions of
                `pixel_values`.
        """
        attached = self._attached()
        _require_mapping(inputs)
        return token_layouts(attached.anatomy.model, attached.processor, inputs, image_sizes)

    # -- segmenting ---------------------------------------------------------------------------------------------------

    def forward(
        self,
        signals: LensSignals,
        layouts: Sequence[TokenLayout],
        image_embeddings: Tensor,
        image_index: Tensor,
        image_sizes: Sequence[tuple[int, int]],
        keypoint_dropout: float = 0.0,
    ) -> LensPrediction:
        """Signals of N prompts -> heatmaps, keypoints and masks; differentiable, for training too.

        Args:
            signals: one prefill of N rows, each one image and one prompt.
            layouts: one per row.
            image_embeddings: (B, C, g, g), from `decoder.encode_images`.
            image_index: long (N,), which of the B images each row is about.
            image_sizes: (H, W) of each of the N rows' original image.
            keypoint_dropout: in training, the probability that a row goes without its keypoint prompts.
        """

        def encode_points(points: Tensor) -> Tensor:
            return self.decoder.point_encoding(points, image_sizes)

        head = self.head(signals, layouts, encode_points, self.decoder.not_a_point, keypoint_dropout)
        logits, quality = self.decoder(image_embeddings, image_index, head.sparse)
        return LensPrediction(logits, quality, head)

    @torch.no_grad()
    def segment(
        self,
        images: Any,
        prompts: str | Sequence[str] | Sequence[str | Sequence[str]],
        *,
        batch_size: int | None = None,
        mask_threshold: float | None = None,
        return_logits: bool = False,
    ) -> LensOutput | list[LensOutput]:
        """Masks for prompts.

        Args:
            images: one image (PIL, path, numpy HxWx3 uint8, torch 3xHxW uint8) or a list of them.
            prompts: for one image a prompt or a list of prompts; for a list of images a list as long, each entry a
                prompt or a list of prompts.
            batch_size: rows (image and prompt) run through the base together; default: all prompts of one image.
            mask_threshold: a pixel is foreground above this probability; default: the config's.
            return_logits: keep the logits at the image's resolution too.

        Returns:
            One `LensOutput`, or a list of them for a list of images. Masks are at each image's own size.

        Raises:
            NotAttachedError, InputError (an image or prompt that cannot be used, lists that do not fit each other).
        """
        attached = self._attached()
        if attached.processor is None:
            raise InputError(
                "segment needs the base's processor. Call adapter.attach(model, processor) with "
                "AutoProcessor.from_pretrained(...) of the same repository."
            )
        threshold = self.config.mask_threshold if mask_threshold is None else mask_threshold
        if not isinstance(threshold, Real) or not 0 <= threshold < 1:
            raise InputError(f"mask_threshold must be a number in [0, 1); got {threshold!r}.")
        if batch_size is not None and (not isinstance(batch_size, Integral) or batch_size < 1):
            raise InputError(f"batch_size must be an integer of at least 1; got {batch_size!r}.")
        single = not isinstance(images, (list, tuple))
        requests = _pair(images, prompts)
        with _turn(attached.anatomy):
            if self.decoder.image_encoder is None:
                with torch.inference_mode(False):  # weights made in it could never learn or be written again
                    self.decoder.load_image_encoder()
            modes = [(module, module.training) for module in self.modules()]
            self.eval()
            try:
                drafts = self._drafts(attached, requests, batch_size)
            finally:
                for module, training in modes:
                    module.training = training
        outputs = [
            self._assemble(picture, prompts, drafts[i], threshold, return_logits)
            for i, (picture, prompts) in enumerate(requests)
        ]
        return outputs[0] if single else outputs

    def _drafts(
        self, attached: _Attachment, requests: list[tuple[Image, list[str]]], batch_size: int | None
    ) -> list[list[_Draft]]:
        """Every prompt's result, by image; each image goes through SAM's encoder once."""
        rows = [(i, prompt) for i, (_, prompts) in enumerate(requests) for prompt in prompts]
        drafts: list[list[_Draft]] = [[] for _ in requests]
        embeddings: dict[int, Tensor] = {}
        for batch in _batches(rows, batch_size):
            used = list(dict.fromkeys(i for i, _ in batch))
            if new := [i for i in used if i not in embeddings]:
                encoded = self.decoder.encode_images([requests[i][0] for i in new])
                embeddings.update(zip(new, encoded, strict=True))
            embeddings = {i: embeddings[i] for i in used}  # rows are in order: earlier images are done
            for (i, _), draft in zip(batch, self._decode(attached, requests, batch, embeddings), strict=True):
                drafts[i].append(draft)
        return drafts

    def _decode(
        self,
        attached: _Attachment,
        requests: list[tuple[Image, list[str]]],
        batch: list[tuple[int, str]],
        embeddings: dict[int, Tensor],
    ) -> list[_Draft]:
        pictures = [requests[i][0] for i, _ in batch]
        sizes = [(picture.height, picture.width) for picture in pictures]
        inputs = build_inputs(
            attached.processor,
            pictures,
            [text for _, text in batch],
            self.config.prompt_template,
            max_length=getattr(_text_config(attached.anatomy.config), "max_position_embeddings", None),
        )
        layouts = self.layout(inputs, sizes)
        signals = self.prefill(inputs)
        order = {i: k for k, i in enumerate(embeddings)}
        index = torch.tensor([order[i] for i, _ in batch], device=self.device)
        stacked = torch.stack(list(embeddings.values()))  # (images, C, g, g)
        found = self(signals, layouts, stacked, index, sizes)
        points = found.head.keypoints
        return [
            _Draft(
                logits=found.logits[k],
                score=found.quality[k].clamp(0, 1),
                points=points.points[k][points.valid[k]],
                point_scores=points.scores[k][points.valid[k]],
                heatmap=found.head.heatmap[k, : found.head.size[k, 0], : found.head.size[k, 1]],
            )
            for k in range(len(batch))
        ]

    def _assemble(
        self, picture: Image, prompts: list[str], drafts: list[_Draft], threshold: float, keep_logits: bool
    ) -> LensOutput:
        size = (picture.height, picture.width)
        logits = self.decoder.upsample(torch.stack([draft.logits for draft in drafts]), size)  # (N, H, W)
        scale = torch.tensor([picture.width, picture.height], device=logits.device)
        return LensOutput(
            prompts=prompts,
            image_size=size,
            masks=(logits > torch.logit(torch.tensor(float(threshold))).item()).cpu(),
            scores=torch.stack([draft.score for draft in drafts]).float().cpu(),
            keypoints=[(draft.points * scale).float().cpu() for draft in drafts],
            keypoint_scores=[draft.point_scores.float().cpu() for draft in drafts],
            heatmaps=torch.stack([draft.heatmap for draft in drafts]).float().cpu(),
            logits=logits.cpu() if keep_logits else None,
            image=picture,
        )


@dataclass(frozen=True)
class _Draft:
    """One prompt's result before it is brought to its image's size; points in fractions of the image."""

    logits: Tensor
    score: Tensor
    points: Tensor
    point_scores: Tensor
    heatmap: Tensor


def _require_mapping(inputs: Any) -> None:
    if not isinstance(inputs, Mapping):
        raise InputError(f"inputs must be what the processor returned, a mapping; got {type(inputs).__name__}.")


def _pair(images: Any, prompts: Any) -> list[tuple[Image, list[str]]]:
    """What the user gave -> one (RGB image, prompts) per image."""
    if not isinstance(images, (list, tuple)):
        images, prompts = [images], [prompts]
    elif not isinstance(prompts, (list, tuple)) or len(prompts) != len(images):
        got = f"{len(prompts)} entries" if isinstance(prompts, (list, tuple)) else repr(prompts)
        raise InputError(
            f"segment got {len(images)} images and {got} in prompts; give one entry per image, each a prompt or a list."
        )
    pairs = []
    for image, wanted in zip(images, prompts, strict=True):
        texts = [wanted] if isinstance(wanted, str) else wanted
        if not isinstance(texts, (list, tuple)) or not texts:
            raise InputError(f"Prompts of an image must be a text or a list of at least one; got {wanted!r}.")
        pairs.append((load_image(image), list(texts)))
    return pairs


def _batches(rows: list[tuple[int, str]], size: int | None) -> list[list[tuple[int, str]]]:
    """Runs of `size` rows; without a size, one run per image."""
    if size is None:
        return [list(group) for _, group in groupby(rows, key=itemgetter(0))]
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _turn(anatomy: Anatomy) -> RLock:
    """Held while hooks are on the base."""
    return _turns.setdefault(anatomy.model, RLock())


def _text_config(config: PretrainedConfig) -> PretrainedConfig:
    return config.get_text_config(decoder=True)


def _check_base(config: LensConfig, anatomy: Anatomy) -> None:
    """Refuse a base that this head was not trained for; warn where only the name differs."""
    expected = {
        "architecture": config.base_model_type or anatomy.architecture,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
    }
    got = {
        "architecture": anatomy.architecture,
        "hidden_size": anatomy.hidden_size,
        "num_hidden_layers": len(anatomy.layers),
        "num_attention_heads": anatomy.num_heads,
    }
    if config.base_model_type == anatomy.architecture:
        trained_for = type(anatomy.config).from_dict(deepcopy(config.base_config))
        for facts, base in ((expected, trained_for), (got, anatomy.config)):
            facts |= {f"text {key}": getattr(_text_config(base), key, None) for key in _BUILD}
    name = anatomy.config.name_or_path or None
    wrong = [f"{key} {expected[key]} (got {got[key]})" for key in expected if expected[key] != got[key]]
    if wrong:
        raise CheckpointMismatchError(
            f"This head was trained for {config.base_model_name_or_path or 'a base'} with {', '.join(wrong)}; the model "
            f"in hand is {name or anatomy.architecture}. Load the base that the head names, or a head for this base."
        )
    trained = (config.base_model_name_or_path, config.base_model_revision)
    revision = getattr(anatomy.config, "_commit_hash", None)
    if trained[0] and name and trained[0] != name and not Path(name).exists():
        logger.warning("This head was trained for %s; the model in hand is %s. Masks may be poor.", trained[0], name)
    elif trained[0] == name and trained[1] and revision and trained[1] != revision:
        logger.warning("This head was trained for revision %s of %s; got %s.", trained[1], name, revision)
