"""The handler of an Inference Endpoint, loaded and asked as the endpoint's own server does it."""

from __future__ import annotations

import base64
import json
from configparser import ConfigParser
from importlib.util import module_from_spec, spec_from_file_location
from io import BytesIO
from pathlib import Path

import pytest
from pycocotools import mask as coco

from lens_adapter import builtin
from lens_adapter.app.examples import EXAMPLES, PICTURE_SIZE
from lens_adapter.errors import InputError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "endpoint"


@pytest.fixture(scope="module")
def handler():
    """The class, out of the file that lies in the repository."""
    spec = spec_from_file_location("handler", FOLDER / "handler.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler


@pytest.fixture(scope="module")
def scene():
    return EXAMPLES[0].scene().draw(PICTURE_SIZE)


def test_masks_are_those_of_segment(handler, scene):
    buffer = BytesIO()
    scene.save(buffer, "PNG")
    prompts = list(EXAMPLES[0].prompts)
    data = {"inputs": base64.b64encode(buffer.getvalue()).decode(), "parameters": {"prompts": prompts}}
    answering = handler()
    answer = json.loads(json.dumps(answering(data)))
    assert answering({**data, "inputs": scene}) == answer  # as for a body that is a picture
    expected = answering.adapter.segment(scene, prompts)
    assert answer["image_size"] == [scene.height, scene.width]
    assert [one["prompt"] for one in answer["results"]] == prompts
    for one, mask, score in zip(answer["results"], expected.masks, expected.scores, strict=True):
        assert (coco.decode(one["segmentation"]).astype(bool) == mask.numpy()).all()
        assert one["score"] == pytest.approx(float(score), abs=1e-5) and one["area"] == int(mask.sum())
    with pytest.raises(InputError, match="URLs are not fetched"):
        answering({**data, "inputs": "http://127.0.0.1:1/a.png"})
    with pytest.raises(InputError, match="special tokens"):  # what only the model knows
        answering({**data, "parameters": {"prompts": "<image>"}})


def test_a_repository_with_a_head(handler, scene, tmp_path):
    head = builtin.load_head("lite")
    head.config.base_model_name_or_path = str(builtin.VLM)
    head.save_pretrained(tmp_path)
    data = {"inputs": scene, "parameters": {"prompts": list(EXAMPLES[0].prompts)}}
    assert handler(str(tmp_path))(data) == handler()(data)


def test_the_endpoint_installs_what_the_package_needs():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    needed = [line for line in config["options"]["install_requires"].split("\n") if line and not line.startswith("#")]
    lines = (FOLDER / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == needed
