"""The local Hub in the place of the real one, for huggingface_hub and transformers in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import transformers
from huggingface_hub import constants, hf_api

from tests.hub.server import OWNER, LocalHub, running
from tests.tiny.adapters import tiny_trio

# 0.36 tries fewer requests again: then a failure must be clean.
PATIENT = not huggingface_hub.__version__.startswith("0.")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A fresh Hub, an empty cache, and the owner's token in the environment.

    HF_ENDPOINT, HF_HOME and HF_HUB_DISABLE_XET are read when huggingface_hub is imported, so their values are put where
    they would have gone; `test_command.py` sets the variables themselves, in a process of its own.
    """
    with running() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        for module in (constants, huggingface_hub.file_download):
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(hf_api.api, "endpoint", server.url)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)
        cache = str(tmp_path / "cache")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
        monkeypatch.setattr(transformers.utils.hub, "TRANSFORMERS_CACHE", cache, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        offline(monkeypatch, False)
        monkeypatch.setenv("HF_TOKEN", OWNER)
        yield server


def offline(monkeypatch: pytest.MonkeyPatch, value: bool) -> None:
    """As HF_HUB_OFFLINE would have it."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", value)
    monkeypatch.setattr(transformers.utils.hub, "_is_offline_mode", value, raising=False)
    if hasattr(huggingface_hub.utils._http, "reset_sessions"):  # 0.36 decides once per session
        huggingface_hub.utils._http.reset_sessions()


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Retries do not wait; these are the seconds that they would have waited."""
    taken: list[float] = []
    monkeypatch.setattr("time.sleep", taken.append)
    return taken


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lite head on disk; read only."""
    folder = tmp_path_factory.mktemp("head")
    tiny_trio()[0].save_pretrained(folder, license="mit")
    return folder
