"""To the Hub: one checkpoint, one commit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, cast

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from yaml import YAMLError

from lens_adapter.checkpoint import current, tidy
from lens_adapter.config import LensConfig
from lens_adapter.errors import HubError, InputError, LensError, brief, one_line
from lens_adapter.hub.card import CARD_FILE, is_generated, model_card
from lens_adapter.hub.names import usable_name
from lens_adapter.results import RESULTS_FILE, load_results

# What a checkpoint is made of: what else lies in its folder (optimizer states, pickles, logs) stays at home ...
_CHECKPOINT = ("config.json", "*.safetensors", "model.safetensors.index.json", RESULTS_FILE)
_BESIDE = (CARD_FILE, "LICENSE*", "*.png", "*.jpg", "*.jpeg", "*.webp", "*.gif")
# ... and what of it an earlier push left in the repository goes.
_OURS = (*_CHECKPOINT, ".eval_results/lens_adapter-*.yaml")
# huggingface_hub lets through what its HTTP library raises: requests' errors are OSErrors, those of httpx are not.
HTTP_ERRORS: tuple[type[Exception], ...] = (OSError, *cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__))
_FAILURES: tuple[type[Exception], ...] = (RuntimeError, ValueError, *HTTP_ERRORS)


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    commit_message: str = "Upload LENS head",
    revision: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    create_pr: bool = False,
    license: str | None = None,
    base_model: str | None = None,
) -> CommitInfo:
    """Upload a saved head in one commit: afterwards the repository holds this checkpoint and nothing of an earlier one.

    The card is written anew for the repository, unless somebody wrote one: a card by hand in the folder is uploaded,
    else one in the repository stays.

    Args:
        folder: as `LensAdapter.save_pretrained` writes it.
        repo_id: "owner/name", or "name" in the owner's own space; made if there is none.
        commit_message: its first line.
        revision: branch; made if there is none.
        private: of a repository that is made now.
        token: of the Hub; default: that of `hf auth login` or of HF_TOKEN.
        create_pr: propose the commit as a pull request.
        license: as for `card.model_card`; default: that of the card in the folder.
        base_model: "owner/name" of the frozen model that the head is for; default: what its config says. It stands in
            the config and the card there; the folder stays as it is.

    Raises:
        InputError: the folder holds no head, or its card is none; or nobody else could find the base by its name.
        HubError: the Hub refuses, or cannot be reached; nothing is uploaded by halves.
    """
    folder = Path(folder)
    with suppress(OSError):
        tidy(folder)  # what an interrupted save has left
    if current(folder) != folder:
        raise InputError(
            f"{folder} holds a save that was interrupted, and cannot be written. Copy it, and push the copy."
        )
    files = files_to_publish(folder)
    config, results = LensConfig.from_pretrained(folder), load_results(folder)
    base_model = findable(base_model or config.base_model_name_or_path)
    if base_model != config.base_model_name_or_path:
        config.base_model_name_or_path, config.base_model_revision = base_model, None
        files["config.json"] = config.to_json_string().encode()
    if not results:
        files.pop(RESULTS_FILE, None)
    for result in (result for result in results if result.head_sha256):  # a leaderboard has no room for a doubt
        files |= {path: text.encode() for path, text in result.leaderboard_file().items()}
    api = HfApi(token=token)
    with explained_errors(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision and not create_pr and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        local, remote = files.pop(CARD_FILE, None), remote_card(api, repo_id, revision)
        if local and not is_generated(local.read_text(encoding="utf-8")):
            files[CARD_FILE] = local
        elif remote is None or not is_written_by_hand(remote):
            earlier = [ModelCard(text).data for text in (local and local.read_text(encoding="utf-8"), remote) if text]
            license = license or next((data.get("license") for data in earlier if data.get("license")), None)
            tags = [tag for data in earlier for tag in data.get("tags", [])]
            files[CARD_FILE] = model_card(config, results, location=repo_id, license=license, tags=tags).encode()
        there = api.list_repo_files(repo_id, revision=revision)
        gone = [CommitOperationDelete(path) for path in there if path not in files and _matches(path, _OURS)]
        changes: list[CommitOperationAdd | CommitOperationDelete] = [*gone]
        changes += [CommitOperationAdd(path, content) for path, content in files.items()]
        return api.create_commit(
            repo_id, changes, commit_message=commit_message, revision=revision, create_pr=create_pr
        )


def findable(base: str | None) -> str:
    """The name by which anybody finds the base of a head.

    Raises:
        InputError: it has a name on this machine alone, or none; says what to do.
    """
    if (name := usable_name(base)) is None:
        raise InputError(
            f"Nobody else can find the base of this head: its name is {brief(base, 300)}; expected a repository of the "
            "Hub (owner/name). Say which it is: --base-model owner/name, or base_model= in Python."
        )
    return name


def files_to_publish(folder: Path) -> dict[str, Any]:
    """What of a folder belongs into a repository: path there -> file here.

    Raises:
        InputError: the folder holds no head, or its card is none.
    """
    names = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    if "config.json" not in names or not any(_matches(name, ["*.safetensors"]) for name in names):
        raise InputError(f"{folder} must be a folder with config.json and model.safetensors; it holds {sorted(names)}.")
    if CARD_FILE in names:
        try:
            ModelCard.load(folder / CARD_FILE)
        except (ValueError, TypeError, YAMLError) as error:
            raise InputError(f"The metadata of {folder / CARD_FILE} cannot be read: {one_line(error)}") from error
    return {name: folder / name for name in sorted(names) if _matches(name, (*_CHECKPOINT, *_BESIDE))}


def remote_card(api: HfApi, repo_id: str, revision: str | None) -> str | None:
    """The model card of a repository, if it has one."""
    if not api.file_exists(repo_id, CARD_FILE, revision=revision):
        return None
    return Path(api.hf_hub_download(repo_id, CARD_FILE, revision=revision)).read_text(encoding="utf-8")


def is_written_by_hand(card: str) -> bool:
    """Whether somebody wrote it: neither we nor the Hub, whose own holds metadata alone."""
    return not is_generated(card) and bool(re.sub(r"\A---\n.*?\n---(\n|\Z)", "", card, flags=re.DOTALL).strip())


@contextmanager
def explained_errors(repo_id: str) -> Iterator[None]:
    """Say what huggingface_hub and its HTTP library raise inside in one line, with what to do.

    Raises:
        InputError: `repo_id` is none.
        HubError: all else.
    """
    try:
        yield
    except LensError:
        raise
    except HFValidationError as error:
        raise InputError(f"{repo_id!r} is no repository of the Hub. {one_line(error)}") from error
    except _FAILURES as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error  # of an upload
        status = getattr(getattr(cause, "response", None), "status_code", None)
        advice = _ADVICE.get(status or 0, "" if isinstance(cause, ValueError) else "Try again later.")
        raise HubError(
            f"Publishing to {repo_id} failed; the repository holds no half of it. {one_line(cause)} {advice}".rstrip()
        ) from error


_ADVICE = {
    401: "Log in with `hf auth login`, or pass a token that may write.",
    403: "Use a token that may write there, or a repository of your own.",
    404: "Check the name of repository and branch, and that the token may see them.",
}


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(path, pattern) and path.count("/") == pattern.count("/") for pattern in patterns)
