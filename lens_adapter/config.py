"""`LensConfig`: the only place where a default stands; but for SAM's dimensions, which are in `variants`."""

from __future__ import annotations

import inspect
import json
import re
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from transformers import PretrainedConfig
from transformers.utils import logging

from lens_adapter import bounds
from lens_adapter.checkpoint import located
from lens_adapter.errors import InputError, LensConfigError, brief, did_you_mean
from lens_adapter.sam.families import family_of, require_same_family
from lens_adapter.sam.published import DEFAULT_SAM
from lens_adapter.variants import BUILTIN_SAM, SAM_VARIANTS, complete_sam

if TYPE_CHECKING:
    from lens_adapter.vlm.anatomy import Anatomy

__all__ = ["BUILTIN_SAM", "SAM_VARIANTS", "LensConfig", "Thresholds"]

logger = logging.get_logger(__name__)

ROUTING_QUESTION = (
    'Somebody asks: "{prompt}" Do they want something in the image to be segmented, marked or outlined, rather than an '
    "answer in words? Answer yes or no."
)

FUSIONS = ("mirror", "lite", "readout")
PRESENCE_QUESTION = "Is there {prompt} in this image? Answer yes or no."


class Thresholds(NamedTuple):
    """What counts as found.

    Attributes:
        mask: a pixel is foreground where the mask's probability is above this. A new readout's default is
            0.5, as SAM's is.
        score: a prompt whose score is below this names nothing.
    """

    mask: float
    score: float


class LensConfig(PretrainedConfig):
    """Everything a LENS head needs to know about itself, its base model and its mask decoder.

    Method and most numbers: LENS, arXiv 2510.16785. Unknown keys warn and are dropped; so are those that name an
    implementation of attention, remote code or another source of weights, here and anywhere in `base_config`: which
    code runs is for those to say who load a head. Numbers have ends, see `lens_adapter.bounds`.

    Args:
        fusion: `"mirror"` (trainable copies of the base's own decoder layers, as the paper), `"lite"` (a small
            transformer of our own) or `"readout"` (a linear reading of chosen attention heads: see `LensAdapter.fit`).
        tap_layer: index of the decoder layer whose INPUT hidden states are read; default: half of the layers, or the
            layer nearest to that whose attention can be read and sees all earlier tokens (see `from_model`).
        fusion_layers: number of trainable layers that refine the attention.
        fusion_width: width of the lite fusion (the mirror has the base's width).
        attention_layers: decoder layers whose captured attention rows the head reads; default: none for the mirror,
            the layer before the tap and the tapped one for lite.
        dense_prompt: True: the mask decoder is told the heat, too, cell by cell, through a layer that starts at zero.
            Not for a readout, whose SAM is untouched. `from_model` makes new lite heads with it.
        num_keypoints: at most this many keypoints per prompt.
        suppression_radius: in heatmap cells; no two keypoints are this close or closer.
        keypoint_threshold: a keypoint is kept while its heat is above this fraction of the peak.
        mask_threshold: a pixel is foreground where the mask's probability is above this. A new readout's default is
            0.5, as SAM's is.
        score_threshold: a prompt whose score is below this is not found: its mask is empty, and it has no keypoints.
            0, which finds everything, as long as nothing is known about the scores; `LensTrainer.calibrate` chooses it.
        prompt_template: what is asked of the base; `{prompt}` is replaced by the expression.
        routing_question: what `LensAdapter.route` asks of the base, to be answered by yes (a mask is wanted) or no;
            `{prompt}` is replaced by the request. A base that knows few words needs one of its own.
        presence_question: what a readout asks the base, to be answered by yes or no, to know whether a prompt names
            anything in the picture: one whole forward more for every prompt. None: it is not asked. A new readout's
            default is `PRESENCE_QUESTION`.
        sam: the mask decoder. A variant's name (of `lens_adapter.sam.published.PUBLISHED`: the default `"vit_b"`, the
            small `"slimsam_77"`, `"sam2.1-small"`, ...; "builtin": the tiny one that ships), or any folder or Hub
            repository of a SAM of transformers, whose `config.json` is read then. Or a dict: `variant` and / or any
            dimension of a segment-anything, `weights` (an original `.pth`, a folder or a Hub repository in
            transformers' `SamModel` layout; None: none) and `include_image_encoder` (True: the frozen image encoder
            travels in the checkpoint); of another family as `lens_adapter.sam.families.complete_family` describes it.
        base_model_name_or_path: the frozen model this head was trained for.
        base_model_revision: its commit, where it came from the Hub.
        base_config: its configuration as a dict; the mirror rebuilds its layers from it.
        hidden_size: width of the base's decoder.
        num_hidden_layers: of the base's decoder.
        num_attention_heads: of the base's decoder; a list with one number for each layer where layers differ.
        readout: of a fitted readout, what `LensAdapter.fit` notes: `heads` (the chosen ones, [layer, head] each), and
            what it was fitted and judged on.
        training: what `LensTrainer` notes about each training of this head, earliest first; the model card shows it.
        head_sha256: `LensAdapter.digest()` of the tensors that this config was saved with; loading compares them.
            None: not known, as in heads from before there were digests.

    Raises:
        LensConfigError: an impossible value.

    Examples:
        >>> config = LensConfig(fusion="lite", hidden_size=2048, num_hidden_layers=24, num_attention_heads=16)
        >>> config.tap_layer, config.attention_layers
        (12, [11, 12])
        >>> LensConfig(fusion="lite", mask_threshold=2.0)
        Traceback (most recent call last):
            ...
        lens_adapter.errors.LensConfigError: LensConfig.mask_threshold must be a number in [0, 1); got 2.0.
    """

    model_type = "lens"

    def __init__(
        self,
        *,
        fusion: str = "mirror",
        tap_layer: int | None = None,
        fusion_layers: int = 2,
        fusion_width: int = 256,
        attention_layers: list[int] | None = None,
        dense_prompt: bool = False,
        num_keypoints: int = 16,
        suppression_radius: float = 4.0,
        keypoint_threshold: float = 0.4,
        mask_threshold: float = 0.6,
        score_threshold: float = 0.0,
        prompt_template: str = "Where is {prompt} in this image?",
        routing_question: str = ROUTING_QUESTION,
        presence_question: str | None = None,
        sam: str | dict[str, Any] = DEFAULT_SAM,
        base_model_name_or_path: str | None = None,
        base_model_revision: str | None = None,
        base_config: dict[str, Any] | None = None,
        hidden_size: int = 4096,
        num_hidden_layers: int = 32,
        num_attention_heads: int | list[int] = 32,
        readout: dict[str, Any] | None = None,
        training: list[dict[str, Any]] | None = None,
        head_sha256: str | None = None,
        **kwargs: Any,
    ):
        base_config, dropped = bounds.without_sources(base_config)
        super().__init__(**self._carried(kwargs, dropped))
        self.fusion = fusion
        self.tap_layer = cast(int, tap_layer)  # _check fills in None
        self.fusion_layers = fusion_layers
        self.fusion_width = fusion_width
        self.attention_layers = cast(list[int], attention_layers)  # so does what follows it
        self.dense_prompt = dense_prompt
        self.num_keypoints = num_keypoints
        self.suppression_radius = suppression_radius
        self.keypoint_threshold = keypoint_threshold
        self.mask_threshold = mask_threshold
        self.score_threshold = score_threshold
        self.prompt_template = prompt_template
        self.routing_question = routing_question
        self.presence_question = presence_question
        self.sam = complete_sam(sam)
        self.base_model_name_or_path = base_model_name_or_path
        self.base_model_revision = base_model_revision
        self.base_config = base_config
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.readout = readout
        self.training = training
        self.head_sha256 = head_sha256
        self._check()
        if self.attention_layers is None:
            before = max(self.tap_layer - 1, 0)
            self.attention_layers = sorted({before, self.tap_layer}) if fusion == "lite" else []
        self.attention_layers = list(self.attention_layers)

    @property
    def base_model_type(self) -> str | None:
        """`model_type` of the base, e.g. "llava"; None when the config was not made from a model."""
        return None if self.base_config is None else self.base_config.get("model_type")

    def thresholds(self, mask_threshold: float | None = None, score_threshold: float | None = None) -> Thresholds:
        """The thresholds of a call: those given, else this config's.

        Raises:
            InputError: one that no probability or score can be compared with.
        """
        given = {"mask_threshold": mask_threshold, "score_threshold": score_threshold}
        for key, value in given.items():
            if value is not None and not (isinstance(value, Real) and 0 <= float(value) < 1):
                raise InputError(f"{key} must be a number in [0, 1); got {value!r}.")
        mask, score = (getattr(self, key) if value is None else float(value) for key, value in given.items())
        return Thresholds(mask, score)

    def heads_of(self, layer: int) -> int:
        """Query heads of one decoder layer of the base."""
        heads = self.num_attention_heads
        return heads if isinstance(heads, int) else heads[layer]

    def require_base_config(self) -> dict[str, Any]:
        """`base_config`, which a mirror cannot do without.

        Raises:
            LensConfigError: there is none.
        """
        if self.base_config is None:
            raise LensConfigError(
                'LensConfig.base_config must be the configuration of the base as a dict for fusion="mirror"; got None. '
                "Use LensConfig.from_model(model)."
            )
        return self.base_config

    @classmethod
    def from_model(cls, model: Any, processor: Any = None, **overrides: Any) -> LensConfig:
        """Read widths, layer count and family off a loaded vision-language model.

        Where only some layers have attention that can be read and sees all earlier tokens (hybrid decoders, sliding
        windows), the defaults of `tap_layer` and `attention_layers` are the nearest of those, and a mirror ends before
        a layer of another kind.

        Args:
            model: as `LensAdapter.attach` takes it (a `PreTrainedModel`, a `PeftModel` or a `Pipeline`).
            processor: unused by today's fields; accepted so that the call reads like `attach`.
            overrides: any field of `LensConfig`.

        Raises:
            UnsupportedModelError: the model has no decoder that an adapter can read, or none that can be mirrored.
            LensConfigError: an impossible value, or one that this model does not allow.

        Examples:
            >>> config = LensConfig.from_model(model, fusion="lite", num_keypoints=8)
            >>> config.num_keypoints, config.hidden_size == model.config.get_text_config().hidden_size
            (8, True)
        """
        from lens_adapter.vlm.anatomy import find_anatomy

        anatomy = find_anatomy(model)
        facts = {
            "hidden_size": anatomy.hidden_size,
            "num_hidden_layers": len(anatomy.layers),
            "num_attention_heads": _one_if_alike(anatomy.num_heads),
            # Without the folder that it was loaded from, which is nobody else's business.
            "base_config": bounds.without_sources(anatomy.config.to_dict())[0],
            "base_model_name_or_path": anatomy.config.name_or_path or None,
            "base_model_revision": getattr(anatomy.config, "_commit_hash", None),
        }
        if overrides.get("fusion") == "readout":
            facts["presence_question"] = PRESENCE_QUESTION
            facts["mask_threshold"] = 0.5  # an untouched SAM's own
        if overrides.get("fusion") == "lite":
            facts["dense_prompt"] = True  # measured on the built-in world: docs/train.md
        config = cls(**{**facts, **overrides})
        config._fit(anatomy, {key for key, value in overrides.items() if value is not None})
        return config

    def _fit(self, anatomy: Anatomy, given: set[str]) -> None:
        """Move defaults to layers of the base that serve; refuse `given` values that cannot."""
        possible = anatomy.readable
        if "tap_layer" not in given:
            self.tap_layer = min(possible, key=lambda layer: abs(layer - self.tap_layer))
        if "attention_layers" not in given and self.fusion == "lite":
            nearest = min(possible, key=lambda layer: abs(layer - self.tap_layer))
            self.attention_layers = [layer for layer in possible if layer <= nearest][-2:]
        read = [self.tap_layer] if self.fusion == "mirror" else []
        for key, layers in (("tap_layer", read), ("attention_layers", self.attention_layers or [])):
            if blind := [layer for layer in layers if anatomy.attentions[layer] is None]:
                raise LensConfigError(
                    f"LensConfig.{key}: the attention of layers {blind} of {anatomy.architecture!r} cannot be read, so "
                    f"it must be chosen from {possible}."
                )
        if self.fusion != "mirror":
            return
        kinds = anatomy.kinds[self.tap_layer :]
        alike = next((count for count, kind in enumerate(kinds) if kind != kinds[0]), len(kinds))
        if "fusion_layers" in given and self.fusion_layers > alike:
            raise LensConfigError(
                f"LensConfig.fusion_layers must be at most {alike} for this base and tap_layer {self.tap_layer}, as "
                f"mirrored layers share a mask and must be of one kind; got {self.fusion_layers}, of the kinds "
                f'{kinds[: self.fusion_layers]}. Take fewer, or fusion="lite".'
            )
        self.fusion_layers = min(self.fusion_layers, alike)
        anatomy.require_mirrorable(range(self.tap_layer, self.tap_layer + self.fusion_layers))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers', which sets overrides on the finished config; here they are checked like any other value."""
        if (kind := config_dict.get("model_type", cls.model_type)) != cls.model_type:
            raise LensConfigError(
                f"model_type in config.json must be {cls.model_type!r}; got {kind!r}: this is no LENS head. Load it "
                "with AutoModelForImageTextToText if it is a base, and name a head's folder or repository here."
            )
        ours = {key: kwargs.pop(key) for key in inspect.signature(cls.__init__).parameters if key in kwargs}
        if "sam" in config_dict:
            saved = complete_sam(config_dict["sam"], read=False)
            config_dict = {**config_dict, "sam": saved}
            if "sam" in ours:
                asked = complete_sam(ours["sam"])
                require_same_family(saved, asked)
                names = ("variant", "weights", "revision", "include_image_encoder")
                alike = all(asked.get(key) == value for key, value in saved.items() if key not in names)
                if isinstance(ours["sam"], str) and alike:  # a name says nothing about what travels in the checkpoint
                    ours["sam"] = {**asked, "include_image_encoder": saved["include_image_encoder"]}
        if (named := config_dict.get("attn_implementation")) is not None:  # transformers 4 puts its own in that place
            ours["_attn_implementation"] = named
        return super().from_dict({**config_dict, **ours}, **kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As transformers'; a `config.json` that is none is a `LensConfigError`."""
        source, kwargs["subfolder"] = located(pretrained_model_name_or_path, kwargs.get("subfolder"))
        try:
            found: Any = super().get_config_dict(source, **kwargs)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise _no_config(pretrained_model_name_or_path, error) from error
        except OSError as error:  # also where the file is there and is no JSON
            if isinstance(error.__context__, json.JSONDecodeError | UnicodeDecodeError):
                raise _no_config(pretrained_model_name_or_path, error.__context__) from error
            raise
        if not isinstance(found[0], dict):
            raise _no_config(pretrained_model_name_or_path, TypeError(f"it holds a {type(found[0]).__name__}"))
        return cast(tuple[dict[str, Any], dict[str, Any]], found)

    @classmethod
    def _carried(cls, kwargs: dict[str, Any], dropped: list[str]) -> dict[str, Any]:
        """What of transformers' own a head's config carries. Else it is dropped: in silence what any bare config has.

        Args:
            kwargs: beside our own fields.
            dropped: what is gone already, of the base's config.
        """
        carried = {key: kwargs[key] for key in _CARRIED if kwargs.get(key) is not None}
        for key, value in carried.items():
            _require_carried(key, value)
        if "torch_dtype" in carried:  # an older name
            carried = {"dtype": carried.pop("torch_dtype"), **carried}
        others = {key: value for key, value in kwargs.items() if key not in _CARRIED}
        sources = [key for key, value in others.items() if bounds.names_a_source(key) and value is not None]
        if gone := sorted({*sources, *dropped}):
            logger.warning(
                "LensConfig: dropped %s: a head does not say which implementation or whose code is run. Choose it when "
                "you load the base.",
                brief(gone, 200),
            )
        bare = set(PretrainedConfig().to_dict()) | set(inspect.signature(PretrainedConfig.__init__).parameters)
        unknown = [key for key in others if key not in bare and not bounds.names_a_source(key)]
        if unknown:
            logger.warning(
                "LensConfig: unknown keys dropped: %s.%s Known: see the docstring of LensConfig.",
                brief(sorted(unknown), 200),
                did_you_mean(sorted(unknown), inspect.signature(cls.__init__).parameters),
            )
        return carried

    def _is_a_head(self, pair: Any) -> bool:
        whole = isinstance(pair, list | tuple) and len(pair) == 2 and all(map(bounds.is_int, pair))
        return whole and 0 <= pair[0] < self.num_hidden_layers and 0 <= pair[1] < self.heads_of(pair[0])

    def _check(self) -> None:
        def require(key: str, good: bool, allowed: str) -> None:
            if not good:
                raise LensConfigError(f"LensConfig.{key} must be {allowed}; got {brief(getattr(self, key))}.")

        if self.fusion not in FUSIONS:
            meant = did_you_mean(self.fusion, FUSIONS)
            raise LensConfigError(
                f'LensConfig.fusion must be "mirror", "lite" or "readout"; got {brief(self.fusion)}.{meant}'
            )
        for key, most in _MOST.items():
            value = getattr(self, key)
            require(key, bounds.is_int(value) and 1 <= value <= most, f"an integer of at least 1 and at most {most}")
        heads = self.num_attention_heads  # of a layer whose attention cannot be read: 0
        each = isinstance(heads, list) and len(heads) == self.num_hidden_layers and all(map(bounds.is_int, heads))
        require(
            "num_attention_heads",
            each and min(heads) >= 0 and 1 <= max(heads) <= bounds.MOST_HEADS
            if isinstance(heads, list)
            else bounds.is_int(heads) and 1 <= heads <= bounds.MOST_HEADS,
            f"an integer of 1 to {bounds.MOST_HEADS}, or a list of such, one for each layer of the base",
        )
        if self.tap_layer is None:
            self.tap_layer = self.num_hidden_layers // 2
        require(
            "tap_layer",
            bounds.is_int(self.tap_layer) and 0 <= self.tap_layer < self.num_hidden_layers,
            f"a layer index from 0 to {self.num_hidden_layers - 1}",
        )
        room = self.num_hidden_layers - self.tap_layer
        require(
            "fusion_layers",
            self.fusion != "mirror" or self.fusion_layers <= room,
            f"at most {room}, the layers that the base has from its tap_layer {self.tap_layer} on",
        )
        require("fusion_width", self.fusion_width % 32 == 0, "a positive multiple of 32")
        layers = [] if self.attention_layers is None else self.attention_layers
        require(
            "attention_layers",
            isinstance(layers, (list, tuple))
            and len(layers) <= self.num_hidden_layers
            and all(bounds.is_int(k) and 0 <= k < self.num_hidden_layers for k in layers),
            f"a list of layer indices from 0 to {self.num_hidden_layers - 1}",
        )
        dense = isinstance(self.dense_prompt, bool) and not (self.dense_prompt and self.fusion == "readout")
        require("dense_prompt", dense, 'False, or True with the fusion "mirror" or "lite"')
        radius, most_radius = self.suppression_radius, bounds.MOST_RADIUS
        require(
            "suppression_radius",
            bounds.is_real(radius) and 0 <= radius <= most_radius,
            f">= 0 and <= {most_radius:g} cells",
        )
        for key in ("keypoint_threshold", "mask_threshold", "score_threshold"):
            value = getattr(self, key)
            require(key, bounds.is_real(value) and 0 <= value < 1, "a number in [0, 1)")
        for key in ("prompt_template", "routing_question", "presence_question"):
            text = getattr(self, key)
            if key == "presence_question" and text is None:
                continue
            require(key, bounds.is_text(text) and "{prompt}" in text, "a text that holds {prompt}")
        for key in ("base_model_name_or_path", "base_model_revision"):
            require(key, getattr(self, key) is None or bounds.is_text(getattr(self, key)), "a text or None")
        digest = self.head_sha256
        require(
            "head_sha256",
            digest is None or (isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest) is not None),
            "a SHA-256 in hexadecimal, or None",
        )
        chosen = (self.readout or {}).get("heads", []) if isinstance(self.readout, dict | None) else None
        require(
            "readout",
            isinstance(chosen, list)
            and len(chosen) <= bounds.MOST_HEADS
            and all(self._is_a_head(pair) for pair in chosen),
            "None or a dict with `heads`, a list of [layer, head] that the base has",
        )
        base = {} if self.base_config is None else self.base_config
        known = isinstance(base, dict) and bounds.is_text(base.get("model_type", ""))
        require("base_config", known, "a dict, whose model_type is a text, or None")
        bounds.require_bounded(base)
        runs = [] if self.training is None else self.training
        require("training", isinstance(runs, list) and all(isinstance(run, dict) for run in runs), "a list of dicts")
        for key in ("readout", "training"):
            bounds.require_shallow(getattr(self, key), key)
        if (gigabytes := 4e-9 * self._parameters()) > bounds.MOST_GIGABYTES:
            raise LensConfigError(
                f"LensConfig: a head of these dimensions takes about {gigabytes:.0f} GB, more than "
                f"{bounds.MOST_GIGABYTES}; make hidden_size, fusion_width, fusion_layers or the dimensions in `sam` "
                "smaller."
            )

    def _parameters(self) -> float:
        """About how many numbers a head and its mask decoder hold, without mirrored layers: these are counted when they
        are built (see `lens_adapter.vlm.rebuilding`)."""
        sam = self.sam if family_of(self.sam) is None else _decoder_numbers(self.sam)
        channels, decoder = sam["out_channels"], sam["decoder_mlp_dim"]
        count = sam["decoder_depth"] * (8 * channels**2 + 2 * channels * decoder) + 20 * channels**2
        count += 4 * sam["iou_head_dim"] * (channels + sam["iou_head_dim"])
        if sam["include_image_encoder"]:
            width, cells = sam["embed_dim"], sam["image_size"] // sam["patch_size"]
            count += sam["depth"] * (4 + 2 * sam["mlp_ratio"]) * width**2 + width * (cells**2 + 10 * channels)
            count += 3 * width * sam["patch_size"] ** 2 + 9 * channels**2
        if self.fusion == "lite":
            width, layers = self.fusion_width, self.attention_layers or []
            count += (12 * self.fusion_layers + 20) * width**2 + width * self.hidden_size
            count += width * sum(self.heads_of(layer) for layer in layers)
        elif self.fusion == "mirror":
            count += 16 * self.hidden_size**2
        return float(count)


def _decoder_numbers(sam: dict[str, Any]) -> dict[str, Any]:
    """Of a family's mask decoder, by the names that a segment-anything has. The image encoder is not counted: its
    numbers are bounded, and what a checkpoint holds of it is compared before it is made."""
    decoder = sam["config"]["mask_decoder_config"]
    return {
        "out_channels": sam["out_channels"],
        "decoder_mlp_dim": decoder["mlp_dim"],
        "decoder_depth": decoder["num_hidden_layers"],
        "iou_head_dim": decoder["iou_head_hidden_dim"],
        "include_image_encoder": False,
    }


def _one_if_alike(heads: list[int]) -> int | list[int]:
    """Heads of each layer (0: cannot be read) -> the one number that those have which can be read, if there is one."""
    numbers = {count for count in heads if count}
    return numbers.pop() if len(numbers) == 1 else heads


# What of transformers' own keys a head's config carries.
_CARRIED = (
    *("architectures", "dtype", "torch_dtype", "transformers_version", "model_type"),
    *("name_or_path", "_name_or_path", "_commit_hash"),
)
_DTYPES = ("float32", "bfloat16", "float16", "float64")
_MOST = {
    "num_hidden_layers": bounds.MOST_LAYERS,
    "hidden_size": bounds.MOST_WIDTH,
    "fusion_layers": bounds.MOST_FUSION_LAYERS,
    "fusion_width": bounds.MOST_FUSION_WIDTH,
    "num_keypoints": bounds.MOST_KEYPOINTS,
}


def _require_carried(key: str, value: Any) -> None:
    if key == "architectures":
        good, allowed = (
            isinstance(value, list) and len(value) < 10 and all(map(bounds.is_text, value)),
            "a list of names",
        )
    elif key in ("dtype", "torch_dtype"):
        name = str(value).removeprefix("torch.")
        good = isinstance(value, str | torch.dtype) and name in _DTYPES
        allowed = f"one of {_DTYPES}"
    else:
        good, allowed = bounds.is_text(value), "a text"
    if not good:
        raise LensConfigError(f"LensConfig.{key} must be {allowed}; got {brief(value)}.")


def _no_config(source: Any, error: BaseException) -> LensConfigError:
    return LensConfigError(
        f"config.json of {brief(str(source), 200)} is none of a LENS head ({type(error).__name__}: "
        f"{brief(str(error), 200)}); expected a JSON object, as `save_pretrained` writes it. Fetch it again."
    )
