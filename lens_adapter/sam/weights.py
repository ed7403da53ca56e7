"""segment-anything's weights: from its own `.pth` files, or in the layout of transformers' `SamModel`."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from lens_adapter.builtin import names
from lens_adapter.errors import CheckpointMismatchError

# A tensor's name in SamModel -> in segment-anything: patterns, each applied to what those above it made of the name.
_RENAMES = [
    (r"^shared_image_embedding\.positional_embedding$", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"^vision_encoder\.patch_embed\.projection\.", "image_encoder.patch_embed.proj."),
    (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
    (r"^vision_encoder\.neck\.conv1\.", "image_encoder.neck.0."),
    (r"^vision_encoder\.neck\.layer_norm1\.", "image_encoder.neck.1."),
    (r"^vision_encoder\.neck\.conv2\.", "image_encoder.neck.2."),
    (r"^vision_encoder\.neck\.layer_norm2\.", "image_encoder.neck.3."),
    (r"^vision_encoder\.", "image_encoder."),
    (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"^prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
    (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "prompt_encoder.mask_downscaling.1."),
    (r"^prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
    (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "prompt_encoder.mask_downscaling.4."),
    (r"^prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
    (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
    (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
    (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
    # Feed-forward networks of three layers, of which SamModel names the first and the last.
    (r"^(mask_decoder\.(output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.0\.", r"\1.layers.1."),
    (r"^(mask_decoder\.(output_hypernetworks_mlps\.\d+|iou_prediction_head))\.proj_in\.", r"\1.layers.0."),
    (r"^(mask_decoder\.(output_hypernetworks_mlps\.\d+|iou_prediction_head))\.proj_out\.", r"\1.layers.2."),
    (r"\.layer_norm(\d|_final_attn)\.", r".norm\1."),
]
_SAM_MODEL_PARTS = ("shared_image_embedding.", "vision_encoder.", "prompt_encoder.", "mask_decoder.")
# Some files hold the one positional embedding under both names that SamModel has for it.
_TIED = ("prompt_encoder.shared_embedding.positional_embedding", "shared_image_embedding.positional_embedding")


def load_sam_weights(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    subfolder: str | None = None,
) -> dict[str, Tensor]:
    """Read a complete SAM, on the CPU, under segment-anything's tensor names.

    Args:
        source: "builtin" for the one that ships; an original `.pth` file; or a folder or Hub repository in the layout
            of transformers' `SamModel`, in safetensors, in one file or sharded.
        revision, token, cache_dir, local_files_only: as for `huggingface_hub.hf_hub_download`.
        subfolder: where in the folder or repository the weights are.

    Raises:
        CheckpointMismatchError: nothing readable there, a damaged file, or another layout. Pickles are read from a
            local `.pth` only, and then by `torch.load(weights_only=True)`.
    """
    if source == "builtin":
        source = names.SAM
    path = Path(source)
    if path.suffix == ".pth" or path.is_file():
        return _read_pth(path)
    hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    weights: dict[str, Tensor] = {}
    for file in _safetensors_files(source, subfolder, hub):
        try:
            weights.update(load_file(file))
        except SafetensorError as error:
            raise CheckpointMismatchError(
                f"{file} is damaged or truncated ({error}). Delete it and fetch it again."
            ) from error
    return rename_from_sam_model(weights, source)


def rename_from_sam_model(weights: dict[str, Tensor], source: str | Path = "the state dict") -> dict[str, Tensor]:
    """The same tensors under segment-anything's names instead of those of transformers' `SamModel`.

    Raises:
        CheckpointMismatchError: names that `SamModel` does not have; the message begins with `source`.
    """
    strangers = sorted(name for name in weights if not name.startswith(_SAM_MODEL_PARTS))
    if strangers or not weights:
        raise CheckpointMismatchError(
            f"{source} is not in the layout of transformers' SamModel: expected tensors named {_SAM_MODEL_PARTS}*, "
            f"got {_first(strangers) or 'none at all'}."
        )
    copy, original = _TIED
    weights = {original if name == copy and original not in weights else name: weights[name] for name in weights}
    renamed = {}
    for name in weights.keys() - {copy}:
        new = name
        for pattern, replacement in _RENAMES:
            new = re.sub(pattern, replacement, new)
        renamed[new] = weights[name]
    return renamed


def load_parts(parts: dict[str, nn.Module], weights: dict[str, Tensor], source: str | Path) -> None:
    """Copy `weights` into `parts`, e.g. {"mask_decoder": ...}; what belongs to a part not asked for is passed over.

    Raises:
        CheckpointMismatchError: names or shapes do not fit; nothing has been copied then.
    """
    expected = {f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in _tensors(module)}
    others = {"image_encoder", "prompt_encoder", "mask_decoder"} - parts.keys()
    given = {name: tensor for name, tensor in weights.items() if name.partition(".")[0] not in others}
    problems = {
        "missing": sorted(expected.keys() - given.keys()),
        "unexpected": sorted(given.keys() - expected.keys()),
        "mismatched": [
            f"{name} (expected {tuple(tensor.shape)}, got {tuple(given[name].shape)})"
            for name, tensor in sorted(expected.items())
            if name in given and given[name].shape != tensor.shape
        ],
    }
    if any(problems.values()):
        told = "; ".join(f"{len(names)} {kind}: {_first(names)}" for kind, names in problems.items() if names)
        raise CheckpointMismatchError(
            f"{source} does not fit the dimensions in LensConfig.sam: {told}. "
            "Choose the variant these weights are of, or weights of this variant."
        )
    for part, module in parts.items():
        module.load_state_dict({name: given[f"{part}.{name}"] for name, _ in _tensors(module)})


def _read_pth(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".pth" or not path.is_file():
        raise CheckpointMismatchError(f"Expected an existing .pth file, a folder or a Hub repository; got {path}.")
    # A truncated archive has lost its table of contents; torch would take it for a format older than SAM.
    if not zipfile.is_zipfile(path):
        raise CheckpointMismatchError(f"{path} is truncated or was not written by torch.save. Fetch it again.")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointMismatchError(f"{path} is damaged or holds more than tensors. {error}") from error
    values = list(weights.values()) if isinstance(weights, dict) else [weights]
    if strangers := sorted({type(value).__name__ for value in values if not isinstance(value, Tensor)}):
        raise CheckpointMismatchError(
            f"{path}: expected a flat dict of tensors, as segment-anything's checkpoints are; found {strangers}."
        )
    return weights


def _safetensors_files(source: str | Path, subfolder: str | None, hub: dict[str, Any]) -> list[Path]:
    """The one file, or every shard that the index names."""
    with suppress(EntryNotFoundError):
        return [_locate(source, SAFE_WEIGHTS_NAME, subfolder, hub)]
    try:
        index = _locate(source, SAFE_WEIGHTS_INDEX_NAME, subfolder, hub)
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        return [_locate(source, name, subfolder, hub) for name in names]
    except EntryNotFoundError as error:
        raise CheckpointMismatchError(
            f"{source}: expected {SAFE_WEIGHTS_NAME}, or {SAFE_WEIGHTS_INDEX_NAME} and its shards. {error}. Pickles "
            "such as pytorch_model.bin are not read: load and save_pretrained them with transformers' SamModel."
        ) from error
    except (json.JSONDecodeError, KeyError) as error:
        raise CheckpointMismatchError(f"{index} is damaged ({error!r}). Delete it and fetch it again.") from error


def _locate(source: str | Path, name: str, subfolder: str | None, hub: dict[str, Any]) -> Path:
    """A file of a local folder or of a Hub repository; `EntryNotFoundError` if it has none of that name."""
    if Path(source).is_dir():
        folder = Path(source, subfolder or "")
        if not (folder / name).is_file():
            found = sorted(path.name for path in folder.glob("*"))
            raise LocalEntryNotFoundError(f"No {name} in {folder}, which holds {found}")
        return folder / name
    try:
        return Path(hf_hub_download(str(source), name, subfolder=subfolder, **hub))
    except HFValidationError as error:
        raise CheckpointMismatchError(
            f"{source} is neither a .pth file, nor a folder, nor the name of a Hub repository. {error}"
        ) from error


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return list(module.state_dict().items())


def _first(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
