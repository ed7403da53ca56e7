"""Models by the names that a command line has for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lens_adapter.cli.arguments import BUILTIN
from lens_adapter.errors import InputError, UnsupportedModelError, brief, one_line


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
        InputError: it is neither here nor on the Hub.
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
    except OSError as error:
        raise _not_there("--model", name, error) from error
    return model.eval(), processor


def head_by_name(name: Any) -> Any:
    """The LENS head that `name` stands for, not attached.

    Raises:
        InputError: it is neither here nor on the Hub, or no repository can be called so.
    """
    from huggingface_hub.errors import HFValidationError

    from lens_adapter.adapter import LensAdapter

    try:
        return LensAdapter.from_pretrained(name)
    except HFValidationError as error:
        raise InputError(f"--adapter {name} is neither a folder nor a Hub repository. {error}") from error
    except OSError as error:
        raise _not_there("--adapter", name, error) from error


def loaded_adapter(model: Any, head: Any, dtype: str, device: Any) -> Any:
    """The head that one name stands for, attached to the frozen model that the other does."""
    return head_by_name(head).attach(*base_by_name(model, dtype, device))


def _not_there(flag: str, name: Any, error: OSError) -> InputError:
    here = "" if Path(name).is_dir() else " There is no such folder here, so it was looked for on the Hub."
    return InputError(f"{flag} {brief(str(name), 300)} cannot be loaded.{here} {one_line(error)}")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
