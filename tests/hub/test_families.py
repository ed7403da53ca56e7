"""A SAM of transformers, and a head on it, from the Hub and back."""

from __future__ import annotations

import torch
from huggingface_hub import HfApi

from lens_adapter import LensAdapter
from tests.tiny.families import save_family
from tests.tiny.pairs import tiny_pair
from tests.tiny.sam import noise_image


def test_there_and_back(hub, tmp_path, caplog):
    HfApi().create_repo("me/sam")
    HfApi().upload_folder(repo_id="me/sam", folder_path=save_family("sam2", tmp_path / "sam"))
    fields = {"fusion": "lite", "fusion_width": 32, "sam": "me/sam", "base_model_name_or_path": "me/base"}
    adapter = LensAdapter.from_model(*tiny_pair("llava"), **fields).eval()
    said = "Fetching the SAM of me/sam from the Hub (its size is not known)."
    assert caplog.text.count(said) == 1
    sam = adapter.config.sam
    assert (sam["weights"], sam["revision"]) == ("me/sam", HfApi().model_info("me/sam").sha)
    image, prompts = noise_image(50, 90), ["the cat", "a dog on the left"]
    out = adapter.segment(image, prompts, mask_threshold=0.5)
    adapter.push_to_hub("me/lens")
    asked = len(hub.requests)
    loaded = LensAdapter.from_pretrained("me/lens")
    assert not any("me/sam" in request for request in hub.requests[asked:])  # a head loads by itself
    again = loaded.attach(*tiny_pair("llava")).segment(image, prompts, mask_threshold=0.5)
    assert torch.equal(out.masks, again.masks) and torch.allclose(out.scores, again.scores)
    assert caplog.text.count(said) == 1  # the second time it was in the cache
    assert not any(".bin" in request or ".py" in request for request in hub.requests)
