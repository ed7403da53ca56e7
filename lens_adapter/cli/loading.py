"""Models by the names that a command line has for them."""

from __future__ import annotations

from typing import Any

from lens_adapter.cli.arguments import BUILTIN
from lens_adapter.errors import InputError, UnsupportedModelError


def checked_device(name: str | None) -> str:
    """A device that can be used here; default: cuda where there is one, else the CPU.

    Raises:
        InputError: there is no such device.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "auto":  # accelerate spreads the model over what there is
        return name
    try:
        if torch.empty(0, device=name).is_meta:
            raise RuntimeError("It holds no numbers.")
    except (RuntimeError, AssertionError, ImportError, AttributeError) as error:
        raise InputError(f"--device {name} cannot be used here; try cpu. {_first_line(error)}") from error
    return name


def base_by_name(name: Any, dtype: str, device: Any) -> tuple[Any, Any]:
    """The frozen model that `name` stands for, in eval mode, and its processor.

    Raises:
        UnsupportedModelError: it is no vision-language model, or needs a package that is not installed.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from lens_adapter import builtin

    name = builtin.VLM if name == BUILTIN else name
    try:
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, device_map=device)
        processor = AutoProcessor.from_pretrained(name)
    except (ValueError, ImportError) as error:
        raise UnsupportedModelError(
            f"--model {name} is nothing that AutoModelForImageTextToText loads here; name a vision-language model. "
            f"{_first_line(error)}"
        ) from error
    return model.eval(), processor


def head_by_name(name: Any) -> Any:
    """The LENS head that `name` stands for, not attached.

    Raises:
        InputError: there is no such folder, and no repository can be called so.
    """
    from huggingface_hub.errors import HFValidationError

    from lens_adapter.adapter import LensAdapter

    try:
        return LensAdapter.from_pretrained(head_folder(name))
    except HFValidationError as error:
        raise InputError(f"--adapter {name} is neither a folder nor a Hub repository. {error}") from error


def loaded_adapter(model: Any, head: Any, dtype: str, device: Any) -> Any:
    """The head that one name stands for, attached to the frozen model that the other does."""
    return head_by_name(head).attach(*base_by_name(model, dtype, device))


def head_folder(name: Any) -> Any:
    """What the name of a head stands for."""
    from lens_adapter import builtin

    return builtin.HEADS["lite"] if name == BUILTIN else name


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
