"""What is said before the weights of a SAM are fetched. (That it is said when they are: tests/hub/test_families.py.)"""

from __future__ import annotations

import pytest
from huggingface_hub import constants

from lens_adapter.sam.fetching import say_what_is_fetched
from lens_adapter.sam.published import PUBLISHED


@pytest.mark.parametrize(
    "source, where, said",
    [
        (
            "facebook/sam-vit-base",
            {},
            "Fetching the SAM of facebook/sam-vit-base from the Hub (vit_b, 375 MB or more).",
        ),
        ("me/sam", {}, "Fetching the SAM of me/sam from the Hub (its size is not known)."),
        ("facebook/sam-vit-base", {"local_files_only": True}, ""),
        (".", {}, ""),
    ],
)
def test_name_and_size_are_said_before(source, where, said, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    say_what_is_fetched(source, cache_dir=str(tmp_path), **where)
    assert (said in caplog.text) if said else not caplog.records


def test_nothing_is_said_offline(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    say_what_is_fetched("facebook/sam-vit-base", cache_dir=str(tmp_path))
    assert not caplog.records


def test_sizes_are_those_of_the_table():
    assert PUBLISHED["vit_h"].megabytes == 2564 and PUBLISHED["vit_b"].megabytes == 375
