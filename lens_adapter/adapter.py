"""`LensAdapter`: what users meet. It composes the rooms and owns nothing of the base."""

from __future__ import annotations

import inspect
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from numbers import Integral
from os import PathLike
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any, cast, overload

import torch
from huggingface_hub import CommitInfo
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedModel

from lens_adapter.chat import GroundedText, Messages, Route, Wanted, chat, ground, route
from lens_adapter.checkpoint import (
    Shapes,
    located,
    place_of,
    require_digest,
    require_loaded,
    require_no_redirection,
    require_savable,
    require_shapes,
    saving,
    shapes_in,
    tensors_digest,
    weight_files,
)
from lens_adapter.config import LensConfig
from lens_adapter.errors import InputError, LensConfigError, NotAttachedError
from lens_adapter.fitting import FitReport, Labelled, fit_readout
from lens_adapter.head.head import LensHead
from lens_adapter.head.readout import Readout
from lens_adapter.head.untrained import small_weights, warn_if_untrained
from lens_adapter.looking import look
from lens_adapter.output import LensOutput, LensOutputs
from lens_adapter.results import RESULTS_FILE, Evaluation, require_about, save_results
from lens_adapter.sam.build import build_decoder
from lens_adapter.sam.clicks import masks_of_clicks
from lens_adapter.sam.embeddings import EmbeddingCache
from lens_adapter.segmentation import (
    LensPrediction,
    assemble,
    read_requests,
    read_sizes,
    segment,
    unknown_words_of,
)
from lens_adapter.signals import LensSignals, Reading, TokenLayout
from lens_adapter.video import Frames, LensVideoOutput, LoadedTracker, load_tracker, read_frames, track_masks
from lens_adapter.vlm.base import FrozenBase
from lens_adapter.vlm.compatibility import check_base
from lens_adapter.vlm.hooks import Query
from lens_adapter.vlm.images import ImageInput
from lens_adapter.vlm.mirror import MirrorLayers
from lens_adapter.vlm.rebuilding import build_layers
from lens_adapter.vlm.state import evaluation_mode


class LensAdapter(PreTrainedModel):
    """A LENS head and its mask decoder, attached to a frozen vision-language model (arXiv 2510.16785).

    Args:
        config: everything the head needs to know; weights are random (see `from_model` for a start from the base).

    Attributes:
        embedding_cache: the embeddings of the images that `segment` was last given, so that asking about one again does
            not encode it again. `None` turns it off, `EmbeddingCache(max_bytes)` sets how much it may hold.

    Raises:
        LensConfigError: a "mirror" without `base_config`.

    Examples:
        With the models that ship in the package; a base and a head of your own are used alike.

        >>> from PIL import Image
        >>> from lens_adapter import LensAdapter, builtin
        >>> model, processor = builtin.load_base()
        >>> adapter = LensAdapter.from_pretrained(builtin.HEADS["lite"])
        >>> image = Image.new("RGB", (640, 480), "white")
        >>> with adapter.attach(model, processor):
        ...     out = adapter.segment(image, ["the dog on the left", "a cup"])
        >>> out.masks.shape, adapter.is_attached
        (torch.Size([2, 480, 640]), False)
    """

    config: LensConfig
    config_class = LensConfig
    base_model_prefix = "lens"
    main_input_name = "reading"

    def __init__(self, config: LensConfig):
        super().__init__(config)
        self._base: FrozenBase | None = None
        self.embedding_cache: EmbeddingCache | None = EmbeddingCache()
        self.head = _build_head(config)
        self.decoder = build_decoder(config.sam)
        # SAM as it was published is named, not copied: a readout's checkpoint is a few kilobytes.
        self._names_sam = config.fusion == "readout" and bool(config.sam["weights"])
        self._sam_is_loaded = True
        # The video model that `segment_video` was last asked for, and by what name.
        self._tracker: LoadedTracker | None = None
        # Some weights that a new head began with, until it is asked for its first masks.
        self._untrained: dict[str, Tensor] = {}
        if self._names_sam:
            self._keys_to_ignore_on_load_missing = [r"^decoder\."]
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Nothing: every room initializes itself, and a checkpoint that lacks tensors is refused."""

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """What moves and converts modules (`to`, `half`, `cuda`, ...): embeddings made before are of no use after."""
        if self.embedding_cache is not None:
            self.embedding_cache.clear()
        return super()._apply(*args, **kwargs)

    # -- making, loading, saving --------------------------------------------------------------------------------------

    @classmethod
    def from_model(cls, model: Any, processor: Any = None, *, load_sam: bool = True, **overrides: Any) -> LensAdapter:
        """A new, untrained adapter for a loaded base, attached to it.

        The mirror starts as a copy of the base's layers, the decoder from the published weights that
        `config.sam["weights"]` names.

        Args:
            model: as for `attach`.
            processor: as for `attach`.
            load_sam: False leaves the decoder at random weights.
            overrides: any field of `LensConfig`.
        """
        adapter = cls(LensConfig.from_model(model, processor, **overrides))
        if load_sam:
            adapter.decoder.load_weights()
        adapter.attach(model, processor)
        if "presence_question" not in overrides and not adapter.base.can_be_asked:
            adapter.config.presence_question = None
        if adapter.config.fusion == "mirror":
            adapter.mirror.warm_start(adapter.base.anatomy, adapter.config.tap_layer)
        if adapter.config.fusion != "readout":  # which says so itself
            adapter._untrained = small_weights(adapter.head)
        return adapter

    @classmethod
    def from_pretrained(  # type: ignore[override]  # None is no source of a head
        cls, pretrained_model_name_or_path: str | PathLike[str], *args: Any, **kwargs: Any
    ) -> LensAdapter:
        """Load a head and its mask decoder from a folder or a Hub repository.

        Takes what `PreTrainedModel.from_pretrained` takes (`revision`, `token`, `subfolder`, `cache_dir`,
        `local_files_only`, `dtype`, ...). Only safetensors are read; no remote code is run, and nothing but this folder
        or repository is touched. What the files hold is compared with the config before a tensor is made.

        Raises:
            CheckpointMismatchError: damaged weights, numbers that are not finite or no floats, tensors that do not fit
                the config, or that are of another save than it (their digest is not its `head_sha256`).
            LensConfigError: an impossible value in `config.json`.
            UnsupportedModelError: a mirror of a base that this version of transformers does not know.
            OSError: there is no such folder or repository, or no `model.safetensors`.

        Examples:
            >>> from lens_adapter import builtin
            >>> LensAdapter.from_pretrained(builtin.HEADS["mirror"], dtype=torch.bfloat16).dtype
            torch.bfloat16
        """
        source = pretrained_model_name_or_path
        wants_info = kwargs.pop("output_loading_info", False)
        source, kwargs["subfolder"] = located(source, kwargs.get("subfolder"))
        config = kwargs.pop("config", None)
        if not isinstance(config, LensConfig):
            fields = {key: kwargs.pop(key) for key in inspect.signature(LensConfig).parameters if key in kwargs}
            config = LensConfig.from_pretrained(source if config is None else config, **place_of(kwargs), **fields)
        require_no_redirection(source, **kwargs)
        files = weight_files(source, **kwargs)
        with torch.device("meta"):  # nothing is made before it is known to be what the files hold
            needed, known = _shapes(cls(config))
        require_shapes(pretrained_model_name_or_path, shapes_in(files), needed, known)
        require_digest(pretrained_model_name_or_path, config.head_sha256, files)
        kwargs |= {"use_safetensors": True, "output_loading_info": True, "config": config}
        loaded: Any = super().from_pretrained(source, *args, **kwargs)
        adapter, info = loaded
        require_loaded(source, info, adapter._saved_tensors())
        adapter.decoder.freeze()
        adapter._sam_is_loaded = not adapter._names_sam
        return cast(LensAdapter, (adapter, info) if wants_info else adapter)  # transformers says so too

    def save_pretrained(  # type: ignore[override]  # what transformers takes by place is taken by name
        self,
        save_directory: str | PathLike[str],
        *,
        results: Sequence[Evaluation] | None = None,
        license: str | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Write `config.json`, `model.safetensors` and the model card `README.md`; a card that somebody wrote stays.

        Args:
            save_directory: made if there is none.
            results: what `evaluate` measured of these very weights, for the card.
            license: for the card, e.g. "apache-2.0"; default: that of our earlier card there, or none.
            push_to_hub: publish the folder too, with what else `publishing.publish` takes.
            repo_id: where to; default: the folder's own name.
            kwargs: as for `PreTrainedModel.save_pretrained`.

        However the process ends meanwhile, the folder holds the head that it held before, or this one (see
        `lens_adapter.checkpoint`).

        Raises:
            LensError: the weights hold numbers that are infinite or none; nothing is written.
            InputError: the results are about other weights, or nothing can be written there; nothing is changed.
        """
        from lens_adapter.hub.card import CARD_FILE, write_model_card
        from lens_adapter.hub.publishing import publish

        folder = Path(save_directory)
        hub = {
            key: kwargs.pop(key)
            for key in ("private", "commit_message", "revision", "create_pr", "base_model")
            if key in kwargs
        }
        self._keys_to_ignore_on_save = self._unsaved_keys
        require_savable(kwargs.get("state_dict") or self._saved_tensors())
        if any(getattr(result, "head_sha256", None) for result in results or ()):
            require_about(results or (), self.digest(), "this head")
        if not kwargs.get("is_main_process", True):
            return
        self.config.head_sha256 = _digest(kwargs.get("state_dict") or self._saved_tensors(), self._unsaved_keys)
        with saving(folder) as aside:
            for name in (CARD_FILE, RESULTS_FILE):  # that of an earlier save may stay
                if (folder / name).is_file():
                    copyfile(folder / name, aside / name)
            super().save_pretrained(aside, **kwargs)
            if results is not None:
                save_results(aside, results)
            tags = self.model_tags or ()
            write_model_card(aside, self.config, location=folder.as_posix(), license=license, tags=tags)
        if push_to_hub:
            publish(folder, repo_id or folder.name, token=kwargs.get("token"), **hub)

    def digest(self) -> str:
        """SHA-256 of the tensors that a checkpoint of this head holds, whatever their precision: which head it is."""
        return _digest(self._saved_tensors())

    @property
    def _unsaved_keys(self) -> set[str]:
        """Names of the tensors that come from elsewhere: the image encoder, and a SAM that the config names."""
        return {
            f"decoder.{key}" for key in (self.decoder.state_dict() if self._names_sam else self.decoder.unsaved_keys)
        }

    def _saved_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint of this head holds, by name."""
        unsaved = self._unsaved_keys
        return {name: tensor for name, tensor in self.state_dict().items() if name not in unsaved}

    def push_to_hub(  # type: ignore[override]  # its result is the commit
        self,
        repo_id: str,
        *,
        results: Sequence[Evaluation] | None = None,
        license: str | None = None,
        **kwargs: Any,
    ) -> CommitInfo:
        """Upload what `save_pretrained` writes, in one commit; a model card that somebody wrote stays.

        (transformers' own would put a generic card in the place of ours.)

        Args:
            results: as for `save_pretrained`.
            license: as for `save_pretrained`.
            kwargs: `commit_message`, `private`, `revision`, `token`, `create_pr` and `base_model`, as for
                `publishing.publish`.

        Raises:
            InputError: the base has no name that others can use, and no `base_model` was given.
            HubError: the Hub refuses, or cannot be reached.
        """
        from lens_adapter.hub.publishing import publish

        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, results=results, license=license)
            return publish(folder, repo_id, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are detached: they never take the base along."""
        return {**vars(self), "_base": None, "_tracker": None}

    # -- attaching ----------------------------------------------------------------------------------------------------

    @property
    def is_attached(self) -> bool:
        return self._base is not None

    @property
    def base(self) -> FrozenBase:
        """The frozen model and its processor, and the way to read them.

        Raises:
            NotAttachedError: there is none.
        """
        if self._base is None:
            raise NotAttachedError("This LensAdapter is not attached; call adapter.attach(model, processor) first.")
        return self._base

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

        Examples:
            >>> adapter = adapter.attach(model, processor)
            >>> adapter.detach()
            >>> adapter.segment(image, "a cup")  # doctest: +ELLIPSIS
            Traceback (most recent call last):
                ...
            lens_adapter.errors.NotAttachedError: This LensAdapter is not attached; ...
        """
        base = FrozenBase(model, processor, self.config)
        check_base(self.config, base.anatomy)
        self._base = base
        if base.tap_device is not None:
            self.to(base.tap_device)  # type: ignore[arg-type]  # as transformers wraps it, it has lost its `self`
        return self

    def detach(self) -> None:
        """Let go of the base. Calling it again does nothing."""
        self._base = None

    def __enter__(self) -> LensAdapter:
        return self

    def __exit__(self, *_: Any) -> None:
        self.detach()

    # -- reading the base ---------------------------------------------------------------------------------------------

    @property
    def mirror(self) -> MirrorLayers:
        """The copies of the base's layers that a head with the "mirror" fusion is made of."""
        return cast(MirrorLayers, cast(LensHead, self.head).fusion.layers)

    def capture(
        self, *, query: Query = "last", layers: Sequence[int] | None = None, attention: bool = True
    ) -> AbstractContextManager[LensSignals]:
        """Record every forward of the base that YOU run inside the context; outside it no hook exists.

        A base compiled with torch.compile runs uncompiled meanwhile: compiled code does not see hooks.

        Args:
            query: tokens whose attention rows are kept: "last" (the last one that is not padding), "all", or positions
                counted from the end, e.g. [-1, -2].
            layers: decoder layers whose rows are kept; default: those of the config, or the tapped one.
            attention: False keeps hidden states only.

        Yields:
            `LensSignals` of the first forward; later ones (`generate`: one per token) are in its `steps`.

        Raises:
            NotAttachedError: there is no base.
            InputError: an impossible query.
            LensConfigError: no such layer.
            LensError: no forward ran, or a tap was silent.

        Examples:
            >>> inputs = processor(images=image, text=f"{processor.image_token} where is it ?", return_tensors="pt")
            >>> with adapter.capture(query="last", layers=[0, 1]) as signals:
            ...     tokens = model.generate(**inputs, min_new_tokens=3, max_new_tokens=3)
            >>> list(signals.attention), signals.attention[0].shape[2:] == (1, inputs["input_ids"].shape[1])
            ([0, 1], True)
            >>> len(signals.steps)  # the third new token was not read again
            2
        """
        return self.base.capture(query=query, layers=layers, attention=attention)

    def prefill(
        self, inputs: Any = None, *, query: Query = "last", layers: Sequence[int] | None = None, **unpacked: Any
    ) -> LensSignals:
        """Run the base on processor inputs only as far as the signals need, without gradients, and return them.

        Args:
            inputs: what the processor returned, on any device.
            query: as for `capture`.
            layers: as for `capture`; default: those the head reads.
            unpacked: the same by name, `prefill(**inputs)`, as the base itself is called.

        Raises:
            NotAttachedError: there is no base.
            InputError: no inputs, or both ways of giving them.

        Examples:
            >>> inputs = processor(images=image, text=f"{processor.image_token} where is it ?", return_tensors="pt")
            >>> signals = adapter.prefill(inputs)
            >>> signals.hidden.shape == (*inputs["input_ids"].shape, adapter.config.hidden_size)
            True
            >>> torch.equal(adapter.prefill(**inputs).hidden, signals.hidden)
            True
        """
        if (inputs is None) == (not unpacked):
            raise InputError("prefill takes what the processor returned: prefill(inputs) or prefill(**inputs).")
        return self.base.prefill(unpacked if inputs is None else inputs, query=query, layers=layers)

    def layout(self, inputs: Any, image_sizes: Sequence[tuple[int, int]] | None = None) -> list[TokenLayout]:
        """Where each image token of a processed batch looks: one `TokenLayout` per image, in order.

        Args:
            inputs: what the processor returned, with the settings that it has. Settings of a call alone
                (`processor(..., size=...)`) are not known here: where they change the pixels' shape, the tokens' grid
                or the padding, the inputs are refused; a squashed picture of the same shape as a cropped one cannot be
                told from it. Change the processor instead.
            image_sizes: (H, W) of the original images; without them, or without a processor, boxes are fractions of
                `pixel_values`.

        Examples:
            >>> inputs = processor(images=image, text=f"{processor.image_token} where is it ?", return_tensors="pt")
            >>> (layout,) = adapter.layout(inputs, [(480, 640)])
            >>> layout.boxes.shape == (len(layout.positions), 4)
            True
        """
        return self.base.layout(inputs, image_sizes)

    # -- fitting a readout ---------------------------------------------------------------------------------------------

    def fit(
        self,
        examples: str | PathLike[str] | Mapping[str, Any] | Iterable[Labelled] | None = None,
        *,
        count: int = 50,
        validation: float = 0.25,
    ) -> FitReport:
        """Fit a readout: choose the attention heads of the base that point, and weights for them. A matter of seconds.

        Only forwards of the base are run: each example is read once, and asked about once where the config has a
        `presence_question`. No gradient flows through anything large. How well it does was measured on the built-in
        model alone. Whether drawn scenes carry over to photographs is not known: look at the report, and give
        photographs with masks if you have some.

        Args:
            examples: prompts with masks (those with an empty mask name nothing): a source as
                `lens_adapter.data.formats` describes it, or `Example`s; None: `count` prompts of every kind about
                scenes of the built-in world, whose masks are exact.
            count: how many, where no examples are given.
            validation: share of the pictures that every fold of the judgement holds out.

        Returns:
            What was chosen, and how good it is on pictures that had no part in it.

        Raises:
            LensConfigError: the head is no readout.
            NotAttachedError: there is no base.
            InputError: no processor, too few pictures, or examples that cannot be used.
            FitError: it points no better than chance on held-out pictures. The head stays as it was.
        """
        if self.config.fusion != "readout":
            raise LensConfigError(
                f'fit is for fusion="readout"; this head is {self.config.fusion!r}, which learns by LensTrainer. Make '
                'one with LensAdapter.from_model(model, processor, fusion="readout", sam=...).'
            )
        self.base.require_processor()
        data = ""
        if examples is None:
            from lens_adapter.builtin.world.labelled import labelled_scenes

            examples, data = labelled_scenes(count), "drawn scenes of the built-in world"
        elif isinstance(examples, (str, PathLike, Mapping)):
            from lens_adapter.data.formats import DataSource

            source = Path(examples) if isinstance(examples, PathLike) else examples
            examples = DataSource.of(source).examples()
        report, config, readout = fit_readout(self.base, self.config, examples, validation=validation, data=data)
        for name in ("attention_layers", "tap_layer", "score_threshold", "presence_question", "readout"):
            setattr(self.config, name, getattr(config, name))
        readout.config = self.config
        self.head = readout.to(self.device)
        return report

    # -- segmenting ---------------------------------------------------------------------------------------------------

    def forward(
        self, reading: Reading, image_embeddings: Tensor, image_index: Tensor, keypoint_dropout: float = 0.0
    ) -> LensPrediction:
        """A reading of N prompts -> heatmaps, keypoints and masks; differentiable, for training too.

        Args:
            reading: what `base.read(images, prompts)` returned.
            image_embeddings: (B, E, g, g), from `decoder.encode_images`.
            image_index: long (N,), which of the B images each prompt is about.
            keypoint_dropout: in training, the probability that a prompt goes without its keypoints.
        """
        prompts, sizes = self.head(reading, keypoint_dropout), reading.image_sizes
        if prompts.point_vectors is None:
            found = masks_of_clicks(self.decoder, prompts, image_embeddings, image_index, sizes)
            logits, quality, things = found
            return LensPrediction(logits, quality if prompts.presence is None else prompts.presence, prompts, things)
        sparse = self.decoder.sparse_prompts(prompts, sizes)
        dense = None
        if (layer := cast(LensHead, self.head).dense) is not None:
            dense = self.decoder.no_mask + layer(self.decoder.heat(prompts, sizes))
        decoded = self.decoder(image_embeddings, image_index, sparse, dense)
        return LensPrediction(decoded.logits, decoded.score, prompts)

    def encode_images(self, images: Sequence[Image | Tensor]) -> Sequence[Tensor]:
        """The mask decoder's embeddings (E, g, g) of RGB pictures: kept ones, or new ones (see `embedding_cache`).

        Tensors are as `MaskDecoder.preprocess` takes them.

        The frozen image encoder is loaded if it has to be.
        """
        with torch.inference_mode(False):  # weights made in it could never learn or be written again
            if not self._sam_is_loaded:
                self.decoder.load_weights()
                self._sam_is_loaded = True
            if self.decoder.image_encoder is None:
                self.decoder.load_image_encoder()
        if self.embedding_cache is None:
            return list(self.decoder.encode_images(images))
        return self.embedding_cache.encode(self.decoder, images)

    @overload
    def segment(
        self,
        images: ImageInput,
        prompts: str | Sequence[str],
        *,
        image_sizes: tuple[int, int] | None = None,
        batch_size: int | None = None,
        mask_threshold: float | None = None,
        score_threshold: float | None = None,
        return_logits: bool = False,
        instances: bool = False,
    ) -> LensOutput: ...

    @overload
    def segment(
        self,
        images: list[Any] | tuple[Any, ...],
        prompts: Sequence[str | Sequence[str]],
        *,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        batch_size: int | None = None,
        mask_threshold: float | None = None,
        score_threshold: float | None = None,
        return_logits: bool = False,
        instances: bool = False,
    ) -> list[LensOutput]: ...

    @torch.no_grad()
    def segment(
        self,
        images: ImageInput | list[Any] | tuple[Any, ...],
        prompts: str | Sequence[str] | Sequence[str | Sequence[str]],
        *,
        image_sizes: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
        batch_size: int | None = None,
        mask_threshold: float | None = None,
        score_threshold: float | None = None,
        return_logits: bool = False,
        instances: bool = False,
    ) -> LensOutput | list[LensOutput]:
        """Masks for prompts.

        Args:
            images: one image (PIL, path, bytes of a file, data URI, numpy HxWx3, torch 3xHxW; these two uint8, or
                floats in [0, 1]) or a list.
            prompts: for one image a prompt or a list of prompts; for a list of images a list as long, each entry a
                prompt or a list of prompts.
            image_sizes: (H, W) of the original, or a list of them for a list of images, where the images are smaller
                copies: masks and keypoints are at that size then, and outputs hold no `image`. Default: the images are
                the originals.
            batch_size: rows (image and prompt) that run together, of several images too, which pays on an accelerator;
                default: the prompts of one image, 32 at a time. Prompts in one batch share their image's tokens.
            mask_threshold: a pixel is foreground above this probability; default: the config's.
            score_threshold: a prompt whose score is below this names nothing, and its mask is empty; 0: never; default:
                the config's. Logits are as they are.
            return_logits: keep the logits at the image's resolution too.
            instances: also tell the things apart that a prompt names, as "both cars" does (`LensOutput.instances`).

        Returns:
            One `LensOutput`, or a list of them, which a notebook shows, for a list of images. Masks are at each image's
            own size, or that in `image_sizes`. Words that the model has no token for are in its `unknown_words`; a
            warning names each of them once while the adapter is attached.

        Raises:
            NotAttachedError: there is no base.
            InputError: an image, prompt, size or threshold that cannot be used, or lists that do not fit each other.

        Examples:
            >>> adapter.segment(image, "a cup").masks.shape
            torch.Size([1, 480, 640])
            >>> first, second = adapter.segment([image, image.resize((64, 64))], ["a cup", ["a dog", "a cat"]])
            >>> first.masks.shape, second.masks.shape
            (torch.Size([1, 480, 640]), torch.Size([2, 64, 64]))
            >>> adapter.segment(image.resize((320, 240)), "a cup", image_sizes=(480, 640)).masks.shape
            torch.Size([1, 480, 640])
        """
        self.base.require_processor()
        thresholds = self.config.thresholds(mask_threshold, score_threshold)
        if batch_size is not None and (not isinstance(batch_size, Integral) or batch_size < 1):
            raise InputError(f"batch_size must be an integer of at least 1; got {batch_size!r}.")
        requests = read_requests(images, prompts)
        sizes = read_sizes(image_sizes, requests, images)
        if self._untrained:
            began, self._untrained = self._untrained, {}  # once
            warn_if_untrained(self.head, began, self.config.fusion)
        with self.base.turn(), evaluation_mode(self):
            drafts = segment(requests, self.base, self.decoder.shrink, self.encode_images, self, batch_size)
        outputs = LensOutputs(
            assemble(
                request,
                drafted,
                self.decoder,
                thresholds,
                size=size,
                keep_logits=return_logits,
                instances=instances,
                unknown_words=words,
            )
            for request, size, drafted, words in zip(
                requests, sizes, drafts, unknown_words_of(requests, self.base), strict=True
            )
        )
        return outputs if isinstance(images, (list, tuple)) else outputs[0]

    def segment_video(
        self,
        frames: Frames,
        prompts: str | Sequence[str],
        *,
        track: bool | str | PathLike[str] = False,
        batch_size: int | None = None,
        mask_threshold: float | None = None,
        score_threshold: float | None = None,
    ) -> LensVideoOutput:
        """Masks for prompts in every frame of a video, by what `segment` does; nothing is trained.

        The base reads each frame as a picture of its own. Masks are drawn frame by frame, or, with `track`, carried
        from the frame where a prompt's score is best on to the last and back to the first, by the video model of the
        mask decoder's family: the image encoder, the prompt encoder and the tuned mask decoder in it are this head's,
        its memory is that of the video model's weights.

        Args:
            frames: T frames of one size: a list of what `segment` takes as images, a numpy array (T, H, W, 3) or a
                torch tensor (T, 3, H, W). Files of videos are for a decoder of videos to read.
            prompts: one, or a list; asked about every frame.
            track: True: by the video model in the weights that `config.sam` names; a text: by that of this folder or
                repository, of the same family and size.
            batch_size: as for `segment`: rows (frame and prompt) that run together; default: those of one frame.
            mask_threshold: as for `segment`.
            score_threshold: as for `segment`; also of the frame from which a mask is carried.

        Raises:
            NotAttachedError: there is no base.
            InputError: frames, a prompt or a threshold that cannot be used.
            LensConfigError: `track`, and the family of the head's mask decoder has no video model.
            CheckpointMismatchError: `track`, and the weights hold no memory, or do not fit.

        Examples:
            >>> video = adapter.segment_video([image, image.rotate(5)], ["the dog on the left", "a cup"])
            >>> video.masks.shape, video.scores.shape, len(video[0].heatmaps)
            (torch.Size([2, 2, 480, 640]), torch.Size([2, 2]), 2)
        """
        self.base.require_processor()
        thresholds = self.config.thresholds(mask_threshold, score_threshold)
        pictures, texts = read_frames(frames), [prompts] if isinstance(prompts, str) else prompts
        tracker = None
        if track:
            tracker = self._tracker = load_tracker(track, self.decoder, self._tracker)
        outputs = self.segment(
            pictures,
            [texts] * len(pictures),
            batch_size=batch_size,
            mask_threshold=mask_threshold,
            score_threshold=score_threshold,
        )
        video = LensVideoOutput(outputs)
        return video if tracker is None else track_masks(video, tracker.model, self.decoder, thresholds)

    @torch.no_grad()
    def look(self, image: ImageInput, prompt: str, *, layer: int | None = None, head: int | None = None) -> Image:
        """Where the base looks when it is asked about a prompt: a picture, in one line and without a SAM.

        Works under every attention implementation, for bases of any size: only the rows of one token are computed.

        Args:
            image: one image, as for `segment`.
            prompt: what is asked.
            layer: the decoder layer whose attention is shown. None: what a fitted readout or a trained head makes of
                it; of a readout that was not fitted, the tapped layer's.
            head: of that layer; None: their mean.

        Returns:
            The picture in grey under its heat, over its peak.

        Raises:
            NotAttachedError: there is no base.
            InputError: no processor; a picture or prompt that cannot be used.
            LensConfigError: no such layer or head.

        Examples:
            >>> adapter.look(image, "a cup").size, adapter.look(image, "a cup", layer=2, head=0).size
            ((640, 480), (640, 480))
        """
        return look(self.base, self.head, self.config, image, prompt, layer=layer, head=head)

    # -- chatting -----------------------------------------------------------------------------------------------------

    def chat(self, image: Any, messages: Messages, phrases: Wanted = None, **generate_kwargs: Any) -> GroundedText:
        """Let the base answer, and segment what the answer names. No hook is on the base while it speaks.

        Args:
            image: one image, as for `segment`.
            messages: a question, or a conversation in transformers' form; its one image part ("image" or "image_url")
                says where the image goes (without one: first in the user's first turn); what else it holds is ignored,
                and nothing is fetched. Parts of other types, a video say, are refused. Of every turn the role and each
                text are checked as a question is: no special token, at most `vlm.inputs.LONGEST_TEXT` letters.
            phrases: what to segment: a name, a regular expression (`re.compile`), or a list of both; None: what a
                simple rule for English finds in the answer (see `lens_adapter.chat.find_phrases`).
            generate_kwargs: for the base's `generate`, whose tokens are the same as without an adapter.

        Returns:
            The answer, its tokens, and a mask, a score and a place in the text for every phrase.

        Raises:
            NotAttachedError: there is no base.
            InputError: no processor or chat template; messages or an image that cannot be used; a conversation of more
                tokens than the base takes.
        """
        return chat(self.base, self.segment, image, messages, phrases, **generate_kwargs)

    def ground(self, image: Any, text: str, phrases: Wanted = None) -> GroundedText:
        """As `chat`, for a text that is there already.

        Examples:
            >>> grounded = adapter.ground(image, "A dog sits under the table.")
            >>> [(phrase.text, phrase.span, phrase.mask.shape) for phrase in grounded.phrases]
            [('A dog', (0, 5), torch.Size([480, 640])), ('the table', (17, 26), torch.Size([480, 640]))]
        """
        return ground(self.base, self.segment, image, text, phrases)

    def route(self, text: str, image: Any = None, question: str | None = None) -> Route:
        """Ask the base itself whether a request wants a mask or an answer in words, by one forward and no sampling.

        The logits of "yes" and "no" as the answer's first token are compared (in all ways of writing them; where a
        tokenizer splits the words, their first pieces). How good this is depends on the base: measure it.

        Args:
            text: the request.
            image: what it is about; None: the base reads the request alone.
            question: what the base is asked, with `{prompt}` for the request; default: `config.routing_question`, which
                a checkpoint carries.

        Raises:
            NotAttachedError: there is no base.
            InputError: no processor; a text or question that cannot be used; "yes" and "no" look the same.
        """
        return route(self.base, text, image, question)


def _shapes(adapter: LensAdapter) -> tuple[Shapes, Shapes]:
    """Of the tensors that a checkpoint must hold, and of those that it may."""
    state, saved = adapter.state_dict(), adapter._saved_tensors()
    known = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return {name: known[name] for name in saved}, known


def _digest(tensors: Mapping[str, Tensor], without: Container[str] = ()) -> str:
    return tensors_digest({name: tensor.detach for name, tensor in tensors.items() if name not in without})


def _build_head(config: LensConfig) -> LensHead | Readout:
    if config.fusion == "readout":
        return Readout(config)
    mirror = None
    if config.fusion == "mirror":
        last = config.tap_layer + config.fusion_layers
        mirror = MirrorLayers(build_layers(config.require_base_config(), range(config.tap_layer, last)))
    return LensHead(config, mirror)
