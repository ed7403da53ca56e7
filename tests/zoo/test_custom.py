"""A model of the user's own: not in transformers, known after one row."""

from __future__ import annotations

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from lens_adapter.errors import UnsupportedModelError
from lens_adapter.vlm.architectures import ARCHITECTURES, Architecture, Layout, register
from lens_adapter.vlm.layout.single import ImageTokens, Window, fixed_grid, require_tensor
from tests.tiny.adapters import tiny_adapter
from tests.tiny.pairs import tiny_pair
from tests.zoo.checks import examine, noise_image
from tests.zoo.specimen import Specimen


class MyConfig(LlavaConfig):
    model_type = "my_vlm"


class MyModel(LlavaForConditionalGeneration):
    config_class = MyConfig


def my_pair():
    model, processor = tiny_pair("llava", attention="sdpa", num_hidden_layers=1, initializer_factor=0.2)
    facts = model.config.to_dict()
    mine = MyModel(MyConfig.from_dict({**facts, "model_type": "my_vlm"})).eval()
    mine.load_state_dict(model.state_dict())
    return mine, processor


def my_family(inputs, *, patch):
    """Every picture is a grid of patches, found by code that is not ours."""
    pictures = require_tensor(inputs, "pixel_values")
    grid = (pictures.shape[-2] // patch, pictures.shape[-1] // patch)
    return [ImageTokens(grid[0] * grid[1], (Window(0, grid, picture.float().mean(0)),)) for picture in pictures]


def test_a_model_of_the_users_own_works_once_its_layout_is_registered(monkeypatch):
    monkeypatch.delitem(ARCHITECTURES, "my_vlm", raising=False)
    model, processor = my_pair()
    adapter = tiny_adapter(model, processor)  # attaching and capturing need no row
    with pytest.raises(UnsupportedModelError, match=r"my_vlm: .* register"):
        adapter.segment(noise_image((50, 70)), "the cat")
    monkeypatch.setitem(ARCHITECTURES, "my_vlm", None)  # so that what is registered here goes again
    register("my_vlm", Architecture(Layout(my_family, {"patch": "vision_config.patch_size"})))
    report = examine(Specimen(my_pair))
    assert report.segmented and report.hits == 1
    register(
        "my_vlm", Architecture(Layout(fixed_grid, {"patch": "vision_config.patch_size"}))
    )  # or one of the families
    assert torch.equal(*(a.layout(inputs(processor), [(50, 70)])[0].boxes for a in (adapter, tiny_adapter(*my_pair()))))


def inputs(processor):
    image = noise_image((50, 70))
    return processor(images=[image], text=["USER: <image>\nwhat"], return_tensors="pt")
