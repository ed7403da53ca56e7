"""The families of transformers' mask generation models: what sets them apart, and how `LensConfig.sam` describes one.

Nothing here needs weights. What a family is, is a row of `FAMILIES`; what was published of each, one of `PUBLISHED`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file, extract_commit_hash

from lens_adapter.bounds import MOST_SAM_CELLS, require_bounded, without_sources
from lens_adapter.builtin.names import SAM2
from lens_adapter.errors import CheckpointMismatchError, LensConfigError, brief, did_you_mean
from lens_adapter.sam.published import PUBLISHED, SEGMENT_ANYTHING

# Of the colors 0 to 255.
_IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_HALF = ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
SHIPPED = "builtin-sam2"  # the tiny SAM 2 that comes with the package
# What classes of transformers raise, each in its own way, where no model can be built from a config.
CANNOT_BE_BUILT = (
    *(ArithmeticError, AttributeError, ImportError, LookupError, RuntimeError, StrictDataclassError, TypeError),
    ValueError,
)
_PARTS = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
_GIVEN = ("family", "variant", "weights", "revision", "include_image_encoder", "pixel_mean", "pixel_std", "config")
_DERIVED = ("image_size", "patch_size", "out_channels", "squashed")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


@dataclass(frozen=True)
class SamFamily:
    """What sets a family apart.

    Attributes:
        title: for people.
        since: the first version of transformers that has it.
        squashed: pictures are squashed into the square; else the longest side fills it.
        details: what the decoder reads beside the picture's embedding: "pyramid", two finer feature maps, whose last
            projections stand in the mask decoder (and there is a word on whether an object is there); "early", the
            features of an early layer of the encoder; "": nothing.
        colors: mean and standard deviation of R, G, B.
        also: `model_type`s of other models that hold one of these, to which transformers' own loader leads, too.
        parts: how the `model_type`s of its parts begin.
        video: transformers' names of its video model, and of the processor for that; none: it has no video model.
    """

    title: str
    since: str
    parts: tuple[str, ...]
    squashed: bool = False
    details: str = ""
    colors: tuple[tuple[float, float, float], tuple[float, float, float]] = _IMAGENET
    also: tuple[str, ...] = ()
    video: tuple[str, ...] = ()

    @property
    def has_object_score(self) -> bool:
        return self.details == "pyramid"


FAMILIES: dict[str, SamFamily] = {
    "sam": SamFamily("SAM", "4.29", ("sam_",)),
    "sam_hq": SamFamily("SAM-HQ", "4.52", ("sam_hq_",), details="early"),
    "sam2": SamFamily(
        *("SAM 2", "4.56", ("sam2_",)),
        squashed=True,
        details="pyramid",
        also=("sam2_video",),
        video=("Sam2VideoModel", "Sam2VideoProcessor"),
    ),
    "edgetam": SamFamily(
        *("EdgeTAM", "4.57", ("edgetam_", "timm_wrapper")),
        squashed=True,
        details="pyramid",
        also=("edgetam_video",),
        video=("EdgeTamVideoModel", "Sam2VideoProcessor"),
    ),
    "sam3_tracker": SamFamily(
        *("SAM 3 tracker", "5.0", ("sam3_",)),
        squashed=True,
        details="pyramid",
        colors=_HALF,
        also=("sam3_video", "sam3_tracker_video"),
        video=("Sam3TrackerVideoModel", "Sam3TrackerVideoProcessor"),
    ),
}


def family_of(sam: Mapping[str, Any]) -> str | None:
    """A key of `FAMILIES`; None: segment-anything."""
    return sam.get("family")


def family_title(sam: Mapping[str, Any]) -> str:
    """For people: "segment-anything", "SAM 2", ..."""
    family = family_of(sam)
    if family is None:
        return SEGMENT_ANYTHING
    return FAMILIES[family].title if family in FAMILIES else str(family)


def require_same_family(trained: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse a mask decoder of another family than the one a head was trained with.

    Raises:
        CheckpointMismatchError: names both.
    """
    if family_of(trained) != family_of(asked):
        own, other = family_title(trained), family_title(asked)
        raise CheckpointMismatchError(
            f"This head was trained with {own} and cannot decode with {other}: expected a `sam` of {own}, got "
            f"{asked['variant']!r} of {other}. Load it without `sam`, or train a new head for {other}."
        )


def installed_families() -> dict[str, bool]:
    """{`model_type`: whether the installed transformers has it}"""
    return {name: name in CONFIG_MAPPING for name in FAMILIES}


def encoding_facts(sam: Mapping[str, Any]) -> dict[str, Any]:
    """What an image's embedding, or a target in the decoder's frame, depends on beside the weights."""
    facts = {name: sam[name] for name in (*_DERIVED, "family", "pixel_mean", "pixel_std")}
    return {**facts, "vision": sam["config"]["vision_config"]}


def complete_family(
    sam: str | Mapping[str, Any], variants: Mapping[str, Any], *, read: bool = True
) -> dict[str, Any] | None:
    """What a user says of a SAM of transformers -> everything there is to know about it, spelt out and checked.

    Args:
        sam: as for `LensConfig`.
        variants: names that mean a segment-anything.
        read: False: refuse what has to be read from a folder or repository. A head's own config says it all.

    Returns:
        `family`, `variant`, `weights`, `revision`, `include_image_encoder`, `pixel_mean`, `pixel_std`, `config` (of the
        model, as its class has it), and what follows from that: `image_size`, `patch_size`, `out_channels`, `squashed`.
        None: it is a segment-anything.

    Raises:
        LensConfigError: unknown, unreadable, impossible, or not in the installed transformers.
    """
    given = {"variant": sam} if isinstance(sam, str) else dict(sam)
    variant = given.get("variant", "custom")
    if given.get("family") is None and (not isinstance(variant, str) or variant in variants):
        return None
    if unknown := [key for key in given if key not in (*_GIVEN, *_DERIVED)]:
        raise LensConfigError(
            f"LensConfig.sam: unknown keys {brief(unknown)}; known of a family: {sorted(_GIVEN)}."
            f"{did_you_mean(unknown, _GIVEN)}"
        )
    for key in ("variant", "family"):
        if not isinstance(given.get(key), str | None):
            raise LensConfigError(f"LensConfig.sam[{key!r}] must be a text; got {brief(given[key])}.")
    known: dict[str, Any] = {}
    if variant in PUBLISHED:
        published = PUBLISHED[variant]
        _require_installed(published.family)  # before its repository is asked
        known = {"weights": published.weights, "family": published.family}
        if published.config is not None:
            known["config"] = published.config
    elif variant == SHIPPED:
        kind, config, _ = read_family(folder_of(SHIPPED))
        known = {"weights": SHIPPED, "family": kind, "config": config}
    elif given.get("family") is None:  # a folder or repository
        known = {"weights": given.pop("variant")}
    full: dict[str, Any] = {"variant": "custom", "weights": None, "revision": None, "include_image_encoder": False}
    full = deepcopy({**full, **known, **{key: value for key, value in given.items() if key not in _DERIVED}})
    if full.get("config") is None and not read:
        raise LensConfigError(
            f"LensConfig.sam must spell out the config of its family in a head's config.json; got {brief(sam)}, which "
            "would have to be fetched. Pass `sam` yourself if you trust it."
        )
    if full.get("config") is None:
        full |= _read(full["weights"], full["revision"], variants)
    family = full.get("family")
    if family not in FAMILIES:
        raise LensConfigError(f"LensConfig.sam['family'] must be one of {sorted(FAMILIES)}; got {brief(family)}.")
    full["config"] = whole_config(family, full["config"])
    mean, std = FAMILIES[family].colors
    full = {"pixel_mean": list(mean), "pixel_std": list(std), **full}
    prompts = full["config"]["prompt_encoder_config"]
    derived = {
        "image_size": prompts["image_size"],
        "patch_size": prompts["patch_size"],
        "out_channels": prompts["hidden_size"],
        "squashed": FAMILIES[family].squashed,
    }
    _check(full, derived, given)
    return {**full, **derived}


def whole_config(family: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config as its class has it: every dimension, and nothing that is foreign to a model's dimensions.

    Classes of others (`auto_map`), attention implementations, dtypes and paths are left out. A single mask stays the
    single mask: the switch that may put another in its place is off, since heads learn without it.

    Raises:
        LensConfigError: the installed transformers has no such model, or the config is none.
    """
    row = FAMILIES[family]
    _require_installed(family)
    if not isinstance(config, Mapping):
        raise LensConfigError(f"LensConfig.sam['config'] must be the config of a {row.title}; got {brief(config)}.")
    config, _ = without_sources(config, "sam")
    require_bounded(config, "sam.config")
    parts = {name: without_foreign(config[name]) for name in _PARTS if isinstance(config.get(name), Mapping)}
    _require_own(parts, row)
    if row.has_object_score:
        parts["mask_decoder_config"] = {
            **parts.get("mask_decoder_config", {}),
            "dynamic_multimask_via_stability": False,
        }
    try:
        made = CONFIG_MAPPING[family](**parts).to_dict()
    except ImportError as error:
        raise LensConfigError(f"LensConfig.sam: {row.title} needs another package. {error}") from error
    except CANNOT_BE_BUILT as error:
        raise LensConfigError(f"LensConfig.sam['config'] is none of a {row.title}: {error}") from error
    whole: dict[str, Any] = json.loads(json.dumps({name: without_foreign(made[name]) for name in _PARTS}))
    return whole


def folder_of(source: str | Path) -> str:
    """Where weights are: the folder of those that ship, else what was named."""
    return str(SAM2) if str(source) == SHIPPED else str(source)


def read_family(source: str | Path, **hub_kwargs: Any) -> tuple[str, dict[str, Any], str | None]:
    """What the `config.json` of a folder or Hub repository says.

    Args:
        source: where.
        hub_kwargs: revision, token, cache_dir, local_files_only, subfolder.

    Returns:
        The family; the model's config, as it stands there; the commit, where it is from the Hub.

    Raises:
        CheckpointMismatchError: there is none, or of no model of these families.
    """
    try:
        file = str(cached_file(str(source), CONFIG_NAME, **hub_kwargs))
        found = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointMismatchError(f"{source}: no {CONFIG_NAME} of a SAM could be read there. {error}") from error
    kind = found.get("model_type") if isinstance(found, dict) else None
    for name, family in FAMILIES.items():
        if kind == name or kind in family.also:
            return name, found.get("tracker_config") or found, extract_commit_hash(file, None)
    raise CheckpointMismatchError(
        f"{source} is a model of the type {kind!r}; expected one of {sorted(FAMILIES)}: the models that transformers' "
        "AutoModelForMaskGeneration loads."
    )


def _require_installed(family: str) -> None:
    row = FAMILIES[family]
    if family not in CONFIG_MAPPING:
        raise LensConfigError(
            f"LensConfig.sam: {row.title} ({family!r}) came with transformers {row.since}; installed is "
            f"{transformers.__version__}. Upgrade it (pip install -U transformers), or choose one of "
            f"{[name for name, there in installed_families().items() if there]} or a segment-anything, e.g. 'vit_b'."
        )


def _read(weights: Any, revision: Any, variants: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(weights, str) or not (Path(weights).is_dir() or _REPOSITORY.fullmatch(weights)):
        names = [*variants, SHIPPED, *(name for name, one in PUBLISHED.items() if one.family != SEGMENT_ANYTHING)]
        got = f"{brief(weights)}.{did_you_mean(weights, names)}"
        raise LensConfigError(
            f"LensConfig.sam: variant must be one of {names}, or a folder or Hub repository (owner/name) of a SAM; got "
            f"{got} segment-anything's own .pth files: {{'variant': 'vit_b', 'weights': FILE}}."
        )
    try:
        family, config, commit = read_family(weights, **({} if revision is None else {"revision": revision}))
    except CheckpointMismatchError as error:
        raise LensConfigError(f"LensConfig.sam: {error}") from error
    return {"family": family, "config": config, "revision": revision or commit}


def _check(full: Mapping[str, Any], derived: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    def require(key: str, good: bool, allowed: str) -> None:
        if not good:
            raise LensConfigError(f"LensConfig.sam[{key!r}] must be {allowed}; got {brief(full.get(key))}.")

    for key in ("weights", "revision"):
        require(key, full[key] is None or isinstance(full[key], str), "a text or None")
    require("variant", isinstance(full["variant"], str), "a text")
    require("include_image_encoder", isinstance(full["include_image_encoder"], bool), "True or False")
    for key, least in (("pixel_mean", 0.0), ("pixel_std", 1e-6)):
        value = full[key]
        three = isinstance(value, list | tuple) and len(value) == 3
        good = three and all(isinstance(x, int | float) and least <= x <= 255 for x in value)
        require(key, good, f"three numbers, R G B, from {least} to 255")
    for key in ("image_size", "patch_size", "out_channels"):
        whole = isinstance(derived[key], int) and derived[key] >= 1
        require("config", whole, f"of a square picture; its {key} must be a whole number, not {brief(derived[key])}")
    require(
        "config",
        derived["image_size"] % derived["patch_size"] == 0 and derived["out_channels"] % 8 == 0,
        "of a picture's side that is a multiple of patch_size, and a width that is a multiple of 8",
    )
    cells = derived["image_size"] // derived["patch_size"]
    require("config", cells <= MOST_SAM_CELLS, f"of at most {MOST_SAM_CELLS} cells to a side; it has {cells}")
    for key in derived:
        if key in given and given[key] != derived[key]:
            raise LensConfigError(f"LensConfig.sam[{key!r}] is {derived[key]!r} by its config; got {given[key]!r}.")


def without_foreign(config: Any) -> Any:
    """Without what any config may hold, whatever the model: paths, dtypes, implementations, classes of others."""
    if not isinstance(config, Mapping):
        return config
    foreign = {*PretrainedConfig().to_dict(), "auto_map", "attn_implementation", "torch_dtype", "dtype"}
    foreign |= {"num_labels", "label_names"}
    return {
        key: without_foreign(value)
        for key, value in config.items()
        if key == "model_type" or not (key in foreign or key.startswith("_"))
    }


def _require_own(parts: Any, family: SamFamily) -> None:
    """Refuse a config whose parts would be models of other kinds, or would be fetched from elsewhere."""
    if not isinstance(parts, Mapping):
        return
    kind = parts.get("model_type")
    if kind and not str(kind).startswith(family.parts):
        raise LensConfigError(f"LensConfig.sam['config']: {brief(kind)} is no part of a {family.title}.")
    if kind == "timm_wrapper":
        settings = parts.get("model_args") or {}
        plain = isinstance(settings, Mapping) and not any(isinstance(value, str) for value in settings.values())
        if not plain or not re.fullmatch(r"[\w.]+", str(parts.get("architecture", "")), re.ASCII):
            raise LensConfigError(
                f"LensConfig.sam['config']: expected the name of an architecture of timm and numbers in its "
                f"model_args; got {brief(parts.get('architecture'))} with {brief(settings)}."
            )
    for part in parts.values():
        _require_own(part, family)
