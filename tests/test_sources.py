"""What a model or head is called: folders, repositories, those that ship; and what is none of them."""

from __future__ import annotations

import pytest
from transformers import pipeline

import lens_adapter.pipeline  # noqa: F401  # registers the task
from lens_adapter import LensAdapter, LensConfig, builtin
from tests.tiny.sam import noise_image


@pytest.mark.parametrize("name, head", builtin.HEAD_NAMES.items())
def test_heads_that_ship_have_names(name, head):
    assert LensAdapter.from_pretrained(name).digest() == builtin.load_head(head).digest()
    assert LensConfig.from_pretrained(name).fusion == head.removesuffix("-sam2")


def test_builtin_is_a_head_and_a_sam_wherever_one_is_asked_for():
    pipe = pipeline("lens-segmentation", model=str(builtin.VLM), adapter="builtin")
    assert pipe(noise_image(40, 50), prompts="the dog", threshold=0)[0]["mask"].size == (50, 40)
    made = LensAdapter.from_model(pipe.model, pipe.processor, fusion="lite", sam="builtin")
    assert made.config.sam["weights"] == "builtin" == LensConfig(sam="builtin").sam["weights"]
    loaded = LensAdapter.from_pretrained("builtin-lite", sam="builtin")  # which carries its encoder
    assert loaded.digest() == builtin.load_head("lite").digest() and loaded.decoder.image_encoder is not None


@pytest.mark.parametrize(
    "name, complaint",
    [
        ("https://huggingface.co/org/lens", "is a URL, which is not fetched; name the repository: 'org/lens'"),
        ("./nowhere", "is a folder that does not exist"),
        ("/no/such/folder", "is a folder that does not exist"),
        ("no head", "is neither a folder nor a Hub repository"),
        (__file__, "is a file; name its folder"),
    ],
)
def test_what_no_head_can_be_called_is_said_without_asking_the_hub(name, complaint):
    with pytest.raises(OSError, match=complaint):
        LensAdapter.from_pretrained(name)
    with pytest.raises(OSError, match=complaint):
        LensConfig.from_pretrained(name)
