"""A word before the weights of a SAM are fetched: which, from where, and how large they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from lens_adapter.sam.published import PUBLISHED

logger = logging.get_logger(__name__)


def say_what_is_fetched(source: str | Path, **hub_kwargs: Any) -> None:
    """Log one line if weights are about to come from the Hub; nothing where they are here, or nothing may be fetched.

    Args:
        source: a folder, a file or a Hub repository.
        hub_kwargs: as they are fetched with.
    """
    if Path(source).exists() or hub_kwargs.get("local_files_only") or constants.HF_HUB_OFFLINE:
        return
    where = {key: hub_kwargs[key] for key in ("cache_dir", "revision") if hub_kwargs.get(key)}
    for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME):
        inside = "/".join(part for part in (hub_kwargs.get("subfolder"), name) if part)
        try:
            kept = try_to_load_from_cache(str(source), inside, **where)
        except HFValidationError:  # no name of a repository: the loader's error says what it is not
            return
        if isinstance(kept, str):
            return
    size = {one.weights: f"{name}, {one.megabytes:,} MB or more" for name, one in PUBLISHED.items()}
    logger.warning("Fetching the SAM of %s from the Hub (%s).", source, size.get(str(source), "its size is not known"))
