"""`from_pretrained` of a repository: who may, what is missing, and connections that break."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save

from lens_adapter import LensAdapter
from lens_adapter.errors import CheckpointMismatchError, one_line
from lens_adapter.hub.publishing import HTTP_ERRORS, publish
from tests.hub.conftest import PATIENT, offline
from tests.hub.server import OWNER, READER, STRANGER, LocalHub

HEAD = "me/lens"


@pytest.fixture
def head(hub: LocalHub, saved: Path) -> Path:
    """A head in a private repository, and the folder that it came from."""
    publish(saved, HEAD, private=True)
    return saved


def assert_whole(saved: Path, **how: object) -> None:
    found, expected = (
        LensAdapter.from_pretrained(HEAD, **how).state_dict(),
        LensAdapter.from_pretrained(saved).state_dict(),
    )
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


@pytest.mark.parametrize("token", [OWNER, READER])
def test_a_private_head_for_those_who_may(head, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    assert_whole(head)
    monkeypatch.delenv("HF_TOKEN")
    assert_whole(head, token=token, force_download=True)


@pytest.mark.parametrize("token", [None, STRANGER, "hf_wrong"])
def test_a_private_head_for_those_who_may_not(hub, head, monkeypatch, tmp_path, token):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        OSError, match="401" if token == "hf_wrong" else "not a valid model identifier(.|\n)*pass a token"
    ):
        LensAdapter.from_pretrained(HEAD, token=token)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize(
    "name, how, complaint",
    [
        ("me/nothing", {}, "me/nothing is not a local folder and is not a valid model identifier"),
        (HEAD, {"revision": "v9"}, "v9 is not a valid git identifier"),
    ],
)
def test_what_is_not_there(head, name, how, complaint):
    with pytest.raises(OSError, match=complaint):
        LensAdapter.from_pretrained(name, **how)


def test_a_file_that_is_missing(hub, head):
    del hub.files(HEAD)["model.safetensors"]
    for how in ({"revision": hub.repositories[HEAD].branches["main"]}, {"revision": "next", "subfolder": "heads"}):
        hub.repositories[HEAD].branches["next"] = hub.repositories[HEAD].branches["main"]
        with pytest.raises(OSError, match="me/lens does not appear to have a file named"):
            LensAdapter.from_pretrained(HEAD, **how)


def test_a_gated_head(hub, head):
    hub.repositories[HEAD].gated = True
    with pytest.raises(OSError, match="gated repo"):
        LensAdapter.from_pretrained(HEAD)


@pytest.mark.parametrize("status", [403, 429, 500])
def test_a_hub_that_refuses(hub, head, naps, status):
    hub.fail(r"(GET|HEAD) /me/lens/resolve", status=status, headers={"Retry-After": "3"}, times=99)
    with pytest.raises(OSError, match="couldn't connect") as caught:
        LensAdapter.from_pretrained(HEAD)
    assert f"The server said: {status}" in one_line(caught.value) or f"'{status}" in one_line(caught.value)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("couldn't connect to 'http://127.0.0.1:44295'", True),  # a port that holds the digits
        ("couldn't connect to 'http://127.0.0.1:429/me'", True),
        ("couldn't load me/lens at a429c1", True),
        ("429 Client Error: Too Many Requests", False),
        ("the server answered with 429.", False),
    ],
)
def test_a_status_is_said_once(message, said):
    class Answer(Exception):
        response = SimpleNamespace(status_code=429)

    error = OSError(message)
    error.__cause__ = Answer("429 Too Many Requests")
    assert ("The server said: 429 Too Many Requests" in one_line(error)) is said


def test_a_download_that_breaks_goes_on_where_it_was(hub, head, naps, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 20_000)  # what is kept when it breaks
    hub.fail(r"GET /cdn/", drop_after=100_000)
    if not PATIENT:
        with pytest.raises(HTTP_ERRORS, match="Connection broken"):
            LensAdapter.from_pretrained(HEAD)
    assert_whole(head)
    assert sum("GET /cdn/" in request for request in hub.requests) == 2
    assert hub.sent == (head / "model.safetensors").stat().st_size


def test_a_download_that_stays_broken_leaves_no_half_file(hub, head, naps, tmp_path):
    hub.fail(r"GET /cdn/", drop_after=0, times=99)
    with pytest.raises(HTTP_ERRORS):
        LensAdapter.from_pretrained(HEAD)
    size = (head / "model.safetensors").stat().st_size
    assert all(file.stat().st_size == size for file in (tmp_path / "cache").rglob("model.safetensors"))
    hub.faults.clear()
    assert_whole(head)


def test_offline_from_the_cache(hub, head, monkeypatch):
    with pytest.raises(OSError, match="cached files"):
        LensAdapter.from_pretrained(HEAD, local_files_only=True)
    assert_whole(head)
    asked = len(hub.requests)
    assert_whole(head, local_files_only=True)
    offline(monkeypatch, True)
    assert_whole(head)
    assert len(hub.requests) == asked
    with pytest.raises(OSError, match="cached files"):
        LensAdapter.from_pretrained("me/another")


def test_a_hub_that_is_down_is_no_matter_for_what_is_cached(hub, head, naps):
    assert_whole(head)
    hub.shutdown()
    hub.server_close()
    assert_whole(head)


def test_weights_of_another_save_are_refused_from_the_hub_too(hub, head):
    tensors = load_file(head / "model.safetensors")
    tensors["head.descriptors.text_vector"] += 1e-6
    data = save(tensors, {"format": "pt"})
    HfApi(endpoint=hub.url, token=OWNER).upload_file(
        path_or_fileobj=data, path_in_repo="model.safetensors", repo_id=HEAD
    )
    with pytest.raises(CheckpointMismatchError, match="not of one save"):
        LensAdapter.from_pretrained(HEAD, force_download=True)
