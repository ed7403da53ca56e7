"""A head as a Hugging Face Inference Endpoint: a picture and prompts in, masks as COCO run lengths out.

`LENS_HEAD`, an environment variable of the endpoint, names another head than the repository's; "builtin": the model and
the head that ship with the package.
"""

from __future__ import annotations

import os
from typing import Any

from transformers import AutoModelForImageTextToText, AutoProcessor

from lens_adapter import LensAdapter, builtin
from lens_adapter.serving.requests import answer_all, read_request


class EndpointHandler:
    """What the endpoint's own server loads once, and calls for every request.

    Args:
        path: the repository, in which the head lies.
    """

    def __init__(self, path: str = ""):
        head = os.environ.get("LENS_HEAD") or path or "builtin"
        if head == "builtin":
            adapter, model, processor = builtin.load_head("lite"), *builtin.load_base()
        else:
            adapter = LensAdapter.from_pretrained(head)
            name, revision = adapter.config.base_model_name_or_path, adapter.config.base_model_revision
            model = AutoModelForImageTextToText.from_pretrained(
                name, revision=revision, dtype="auto", device_map="auto"
            )
            processor = AutoProcessor.from_pretrained(name, revision=revision)
        self.adapter = adapter.attach(model.eval(), processor)

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Answer one request; `lens_adapter.serving.requests` says what it may hold.

        Raises:
            InputError: it cannot be used. The endpoint's server answers 400 with these words.
        """
        (answer,) = answer_all(self.adapter, [read_request(data)])
        if isinstance(answer, Exception):
            raise answer
        return answer
