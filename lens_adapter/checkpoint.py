"""The files of a head: all of one save or all of another, and tensors that are what the config says before any is made.

Saving writes everything into a hidden folder inside the target, `.lens-save.*.part`, and renames that to `.lens-save`
in one step: from then on the save counts. Then its files take their places, and it goes. Whoever is stopped before the
step has changed nothing; whoever is stopped after it leaves `.lens-save`, which loading reads and the next save tidies.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import __version__ as transformers_version
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from lens_adapter.builtin.names import head_folder
from lens_adapter.errors import CheckpointMismatchError, InputError, LensError, brief
from lens_adapter.finite import not_finite
from lens_adapter.sources import why_no_source
from lens_adapter.writing import new_file_mode, require_here

SAVED = ".lens-save"  # a save that counts, whose files have not all taken their places
_PART = ".part"
_FORGOTTEN = 3600.0  # seconds after which an unfinished save is taken for one of a process that was killed
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
_FLOATS = {"F64", "F32", "F16", "BF16"}  # as safetensors calls them
_COUNTERS = "num_batches_tracked"  # of batch norms, which some image encoders have
_WHERE = ("revision", "subfolder", "cache_dir", "token", "force_download", "local_files_only", "proxies")
_MOST_SHARDS = 1000

Shapes = dict[str, tuple[int, ...]]


# -- saving -----------------------------------------------------------------------------------------------------------


def require_savable(tensors: Mapping[str, Tensor]) -> None:
    """Refuse to save numbers that are none.

    Raises:
        LensError: names the tensors.
    """
    if wrong := not_finite(tensors.items()):
        raise LensError(
            f"This head is not saved: {len(wrong)} of its tensors hold numbers that are infinite or none (NaN): "
            f"{str(wrong[:4])[1:-1]}. Go back to an earlier checkpoint; train with a smaller learning_rate, or in "
            "bfloat16 or float32."
        )


@contextmanager
def saving(folder: Path) -> Iterator[Path]:
    """An empty folder to write a whole checkpoint to; at the end its files take the place of those in `folder`.

    However the process ends, and if the disk is full, `current(folder)` is what it was before, or all that is new.
    What else lies in `folder` stays, but for weights of an earlier save that this one does not have.

    Raises:
        InputError: nothing can be written there.
    """
    require_here(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tidy(folder)
        aside = Path(mkdtemp(prefix=f"{SAVED}.", suffix=_PART, dir=folder))
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}. Choose another place.") from error
    try:
        yield aside
        for file in aside.iterdir():
            file.chmod(new_file_mode())
            _to_disk(file)
        _to_disk(aside)
        os.rename(aside, folder / SAVED)
        _to_disk(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _take_places(folder)


def current(folder: Path) -> Path:
    """Where the checkpoint of a folder is: in it, or in what an interrupted save has left there. Changes nothing."""
    saved = folder / SAVED
    return saved if (saved / CONFIG_NAME).is_file() else folder


def located(source: str | os.PathLike[str], subfolder: str | None) -> tuple[str | os.PathLike[str], str]:
    """Source and subfolder of a head as they are to be read: see `current`. A repository is what it was.

    Raises:
        OSError: there is no such folder, and no repository can be called so.
    """
    source, subfolder = head_folder(source), subfolder or ""
    if why := why_no_source(source):
        raise OSError(f"{brief(str(source), 300)} {why}")
    if Path(source).is_dir() and (place := current(Path(source, subfolder))).name == SAVED:
        return place, ""
    return source, subfolder


def tidy(folder: Path) -> None:
    """Bring an interrupted save that counts to its end, and remove those that do not."""
    for left in folder.glob(f"{SAVED}.*{_PART}"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _FORGOTTEN:
                shutil.rmtree(left, ignore_errors=True)
    _take_places(folder)


def _take_places(folder: Path) -> None:
    saved = folder / SAVED
    if not saved.is_dir():
        return
    names = {file.name for file in saved.iterdir()}
    for name in sorted(names):
        beside = folder / f".{name}{_PART}"
        beside.unlink(missing_ok=True)
        try:
            os.link(saved / name, beside)
        except OSError:  # a file system without links
            shutil.copy2(saved / name, beside)
            _to_disk(beside)
        os.replace(beside, folder / name)
        beside.unlink(missing_ok=True)  # renaming a link onto its like does nothing
    if names & {SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME}:
        for file in folder.iterdir():
            if _WEIGHTS.fullmatch(file.name) and file.name not in names:
                file.unlink()
    _to_disk(folder)
    done = Path(mkdtemp(prefix=f"{SAVED}.", suffix=_PART, dir=folder))
    os.rename(saved, done)  # in one step, so that no half of it is taken for a save
    shutil.rmtree(done, ignore_errors=True)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# -- reading ----------------------------------------------------------------------------------------------------------


def place_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What of the arguments of `from_pretrained` says where a file is, if it was given."""
    return {name: arguments[name] for name in _WHERE if arguments.get(name) is not None}


def weight_files(source: str | os.PathLike[str], **where: Any) -> list[Path]:
    """The safetensors of a head, here or on the Hub (then they are fetched): one, or the shards that the index names.

    Args:
        source: folder or repository.
        where: as for `from_pretrained`; what is of no use here is passed over.

    Raises:
        OSError: there are none.
        CheckpointMismatchError: a damaged index, or one that names what is not beside it.
    """
    found = partial(_find, source, place_of(where))
    variant = f".{where['variant']}" if where.get("variant") else ""
    name, index = (name.replace("model.", f"model{variant}.", 1) for name in _NAMES)
    if (file := found(name)) is not None:
        return [file]
    if (file := found(index)) is None:
        raise OSError(f"{source} does not appear to have a file named {name}: weights are read from safetensors alone.")
    files = []
    for shard in _shards(file):
        if (place := found(shard)) is None:
            raise CheckpointMismatchError(
                f"{source}: {index} names {brief(shard)}, which is not there. Fetch it again."
            )
        files.append(place)
    return files


def require_no_redirection(source: str | os.PathLike[str], **where: Any) -> None:
    """Refuse a folder or repository with an `adapter_config.json`: transformers goes where that points, for weights.

    Raises:
        CheckpointMismatchError: there is one.
    """
    place = {**place_of(where), "_raise_exceptions_for_connection_errors": False}
    if _find(source, place, "adapter_config.json") is not None:
        raise CheckpointMismatchError(
            f"{source} holds an adapter_config.json, by which transformers loads another repository: this is an "
            "adapter of peft and no LENS head. Load it with peft, or delete that file."
        )


def shapes_in(files: list[Path]) -> Shapes:
    """Name -> shape of all tensors; no tensor is read.

    Raises:
        CheckpointMismatchError: a file is damaged, tensors are no floating-point numbers, or one is there twice.
    """
    shapes: Shapes = {}
    wrong = []
    for path in files:
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                tensor = file.get_slice(name)
                if (kind := tensor.get_dtype()) not in _FLOATS and not name.endswith(_COUNTERS):
                    wrong.append(f"{name[:200]} ({kind})")
                if name in shapes:
                    raise CheckpointMismatchError(f"{path}: {brief(name)} is in another shard too. Fetch it again.")
                shapes[name] = tuple(tensor.get_shape())
    if wrong:
        raise CheckpointMismatchError(
            f"{files[0].parent}: {len(wrong)} tensors are no floating-point numbers: {', '.join(wrong[:4])}; expected "
            f"one of {sorted(_FLOATS)}. Save the head in float32 or bfloat16."
        )
    return shapes


def require_shapes(source: object, got: Shapes, needed: Shapes, known: Shapes) -> None:
    """Refuse tensors that are not those which a config describes.

    Args:
        source: for the message.
        got: what is in the files.
        needed: what must be there.
        known: what may be there, `needed` included.

    Raises:
        CheckpointMismatchError: names the first of them.
    """
    problems = {
        "missing_keys": sorted(needed.keys() - got.keys()),
        "unexpected_keys": sorted(got.keys() - known.keys()),
        "mismatched_keys": [
            f"{name}: expected {known[name]}, got {shape}"
            for name, shape in sorted(got.items())
            if name in known and known[name] != shape
        ],
    }
    if any(problems.values()):
        first = {key: str(names[:4])[1:-1][:400] for key, names in problems.items() if names}
        listing = "; ".join(f"{len(problems[key])} {key}: {names}" for key, names in first.items())
        raise CheckpointMismatchError(
            f"{source}: the tensors of model.safetensors are not those that config.json describes: {listing}. "
            "Fetch it again, or load it with the version of lens_adapter that wrote it."
        )


def require_loaded(source: object, info: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse a head that transformers did not load whole, or that holds numbers which are none.

    Args:
        source: for the message.
        info: transformers' word on what it loaded.
        tensors: what it loaded, by name.

    Raises:
        CheckpointMismatchError: says which.
    """
    if problems := {key: info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]}:
        raise CheckpointMismatchError(f"{source}: transformers {transformers_version} did not load {problems}.")
    if wrong := not_finite(tensors.items()):
        raise CheckpointMismatchError(
            f"{source}: {len(wrong)} tensors hold numbers that are infinite or none (NaN): {str(wrong[:4])[1:-1]}; "
            "expected finite ones. Fetch it again; if it was trained so, train it anew."
        )


def files_digest(files: list[Path]) -> str:
    """`tensors_digest` of what some files hold, read tensor by tensor.

    Raises:
        CheckpointMismatchError: one is damaged.
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(_opened(path)) for path in files]
        place = {name: file for file in opened for name in file.keys()}  # noqa: SIM118  # no mapping
        return tensors_digest({name: partial(file.get_tensor, name) for name, file in place.items()})


def require_digest(source: object, expected: str | None, files: list[Path]) -> None:
    """Refuse weights that are not those which the config was saved with. `expected` None: not known, all are taken.

    Raises:
        CheckpointMismatchError: says what was expected and what came.
    """
    if expected is None or (got := files_digest(files)) == expected:
        return
    raise CheckpointMismatchError(
        f"{source}: config.json and model.safetensors are not of one save: expected tensors with the digest "
        f"{expected[:12]}..., got {got[:12]}.... Fetch both again; whoever changed the weights on purpose removes "
        "head_sha256 from config.json."
    )


def tensors_digest(tensors: Mapping[str, Callable[[], Tensor]]) -> str:
    """SHA-256 of a head's tensors: names, shapes and values, in the order of the names.

    Values are taken in float32 (float64 as it is), so that a head is the same in bfloat16 and in the float32 it is
    loaded to; one that is rounded to bfloat16 is another.

    Args:
        tensors: name -> what gives the tensor; one is held at a time.
    """
    digest = sha256()
    for name in sorted(tensors):
        values = tensors[name]().detach().cpu()
        values = (values if values.element_size() == 8 else values.float()).contiguous()
        digest.update(f"{name} {tuple(values.shape)} {values.element_size()}\n".encode())
        digest.update(values.reshape(-1).numpy().data)
    return digest.hexdigest()


_NAMES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise CheckpointMismatchError(f"{path}: {path.name} is damaged ({error}). Fetch it again.") from error


def _find(source: str | os.PathLike[str], where: dict[str, Any], name: str) -> Path | None:
    found = cached_file(os.fspath(source), name, _raise_exceptions_for_missing_entries=False, **where)
    return None if found is None else Path(found)


def _shards(index: Path) -> list[str]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        names = [*content["weight_map"].values()]
        if not isinstance(content.get("metadata"), dict) or not all(isinstance(name, str) for name in names):
            raise ValueError("metadata must be an object, and weight_map lead to names of files")
        shards = sorted(set(names))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointMismatchError(
            f"{index} is damaged ({type(error).__name__}: {brief(str(error), 200)}). Fetch it again."
        ) from error
    if not 0 < len(shards) <= _MOST_SHARDS:
        raise CheckpointMismatchError(
            f"{index} must name 1 to {_MOST_SHARDS} files; got {len(shards)}. Fetch it again."
        )
    for shard in shards:
        if not re.fullmatch(r"[\w-][\w.-]{0,200}\.safetensors", shard):
            raise CheckpointMismatchError(
                f"{index} must name safetensors that lie beside it; got {brief(shard)}. Fetch it again."
            )
    return shards
