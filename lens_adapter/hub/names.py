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

    Names of the Hub stay. Those that ship are "builtin", "builtin-lite" and "builtin-mirror", which the command line
    takes. Any other folder goes by its last name. None, or an empty one: it has none.

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


def is_builtin_base(name: str | None) -> bool:
    """Whether it is the model that ships with the package."""
    return bool(name) and _ships(str(name)) and public_name(name) == BUILTIN


def others_find(name: str | None) -> bool:
    """Whether others can load the model of this name: it is on the Hub, or ships with the package."""
    return is_hub_id(name) or is_builtin_base(name)


def _ships(name: str) -> bool:
    return name == BUILTIN or PurePath(name.replace("\\", "/")).parts[-3:-1] == _SHIPPED
