"""What a model is called where others read it: in cards and records, which leave this machine."""

from __future__ import annotations

from pathlib import Path, PurePath

from huggingface_hub.utils import HFValidationError, validate_repo_id

BUILTIN = "builtin"
_SHIPPED = ("lens_adapter", "builtin")


def is_hub_id(name: str | None) -> bool:
    """Whether `name` can be an "owner/name" of the Hub and is no folder here."""
    if not isinstance(name, str) or name.count("/") != 1 or Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def public_name(name: str | None) -> str | None:
    """The name of a model or head without the folders above it, which are nobody else's business.

    Names of the Hub stay. Those that ship are "builtin", "builtin-lite" and so on, which the command line takes. Any
    other folder goes by its last name. None, or an empty one: it has none.

    Examples:
        >>> public_name("llava-hf/llava-1.5-7b-hf"), public_name("/home/me/models/my-llava/")
        ('llava-hf/llava-1.5-7b-hf', 'my-llava')
    """
    if not name or is_hub_id(name):
        return name or None
    last = PurePath(name.replace("\\", "/")).name
    if not _ships(name):
        return last or None
    return BUILTIN if last in ("vlm", BUILTIN) else last.replace("lens-", f"{BUILTIN}-")


def usable_name(name: str | None) -> str | None:
    """The name by which anybody can load it, on the Hub or as one that ships; None: there is none."""
    if not name or not (is_hub_id(name) or _ships(name)):
        return None
    return public_name(name)


def _ships(name: str) -> bool:
    return name == BUILTIN or PurePath(name.replace("\\", "/")).parts[-3:-1] == _SHIPPED
