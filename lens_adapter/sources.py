"""What may name a model or a head: a folder here, or a repository of the Hub."""

from __future__ import annotations

import re
from os import PathLike, fspath
from pathlib import Path

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/+(?P<host>[^/]*)/?(?P<path>.*)", re.DOTALL)
_HUBS = ("huggingface.co", "www.huggingface.co", "hf.co")


def why_no_source(name: str | PathLike[str]) -> str:
    """Why nothing can be loaded by this name, and what to do; "": it is a folder, or may be a repository.

    Examples:
        >>> why_no_source("https://huggingface.co/org/lens-llava/tree/main")
        "is a URL, which is not fetched; name the repository: 'org/lens-llava'."
        >>> why_no_source("./heads/mine"), why_no_source("org/lens-llava")
        ('is a folder that does not exist.', '')
    """
    text = fspath(name)
    try:
        if Path(text).is_dir():
            return ""
        if Path(text).is_file():
            return f"is a file; name its folder, {str(Path(text).parent)!r}, or a Hub repository (owner/name)."
    except (OSError, ValueError):
        return "is neither a folder nor a Hub repository (owner/name)."
    if url := _URL.fullmatch(text):
        repository = "/".join(url["path"].split("/")[:2])
        if url["host"] in _HUBS and _HUB_NAME.fullmatch(repository):
            return f"is a URL, which is not fetched; name the repository: {repository!r}."
        return "is a URL, which is not fetched; download it and name the folder, or name a Hub repository (owner/name)."
    is_path = text.startswith((".", "/", "~", "\\")) or text.count("/") > 1 or text.endswith("/")
    if is_path or isinstance(name, Path):
        return "is a folder that does not exist."
    return "" if _HUB_NAME.fullmatch(text) else "is neither a folder nor a Hub repository (owner/name)."
