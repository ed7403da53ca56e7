"""A frozen vision-language model and its LENS head as one transformers pipeline.

    import lens_adapter.pipeline                    # registers the task
    from transformers import pipeline

    pipe = pipeline("lens-segmentation", model="llava-hf/llava-1.5-7b-hf", adapter="org/lens-llava-1.5-7b")
    pipe("photo.jpg", prompts=["the dog on the left"])
    # [{"label": "the dog on the left", "score": 0.93, "mask": <a PIL image of mode "L", 0 or 255>}]

The registry of transformers lies in a module that takes seconds to import and has no room for a promise, so the task is
registered when this module is imported, not by `import lens_adapter`.
"""

from __future__ import annotations

from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image
from transformers import AutoModelForImageTextToText, Pipeline, PreTrainedModel, ProcessorMixin
from transformers.pipelines import PIPELINE_REGISTRY

from lens_adapter.adapter import LensAdapter
from lens_adapter.errors import InputError, brief, one_line
from lens_adapter.output import Instances, is_found
from lens_adapter.vlm.images import load_image

TASK = "lens-segmentation"
_PATIENCE = 10  # seconds, for a server to say something


class LensSegmentationPipeline(Pipeline):
    """Masks for what prompts name; speaks like transformers' "image-segmentation" pipeline.

    Args:
        model: the frozen base: an id, a folder or a loaded model (then `processor` is needed too).
        adapter: its head: an id, a folder or a `LensAdapter`, which gets attached to `model`. One of a certain revision
            or behind a token is loaded with `LensAdapter.from_pretrained` first.
        kwargs: what any pipeline takes (`device`, `device_map`, `dtype`, `batch_size`, ...), and the parameters of a
            call, which are then those of every call.

    Raises:
        InputError: no adapter.
        UnsupportedModelError: as `LensAdapter.attach`.
        CheckpointMismatchError: likewise.

    Examples:
        >>> from transformers import pipeline
        >>> pipe = pipeline("lens-segmentation", model=model, processor=processor, adapter=adapter)
        >>> found = pipe(image, prompts=["the dog on the left", "a cup"], threshold=0)
        >>> [(one["label"], one["mask"].size, one["mask"].mode) for one in found]
        [('the dog on the left', (640, 480), 'L'), ('a cup', (640, 480), 'L')]
    """

    # Any, since Pipeline says None of them: "as it comes".
    _load_processor: Any = True
    _load_tokenizer: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin | None = None,
        adapter: LensAdapter | str | Path | None = None,
        **kwargs: Any,
    ):
        if not isinstance(adapter, LensAdapter | str | Path):
            raise InputError(
                "adapter must be a head's id, its folder, or a LensAdapter; "
                f'got {adapter!r}. Call pipeline("{TASK}", model=..., adapter=...).'
            )
        super().__init__(model, processor=processor, **kwargs)
        self.adapter = adapter if isinstance(adapter, LensAdapter) else LensAdapter.from_pretrained(adapter)
        self.adapter.attach(self.model, self.processor)

    def __call__(self, inputs: Any, prompts: str | list[str] | None = None, **kwargs: Any) -> Any:
        """Segment one image, or many.

        Args:
            inputs: an image (as `LensAdapter.segment` takes it, or a URL, which this machine fetches: a service passes
                none of a visitor's on) or a dict {"image": ..., "prompts": ...}
                with prompts of its own; or a list, a generator or a `torch.utils.data.Dataset` of them.
            prompts: a prompt or a list of them, asked about every image that brings none.
            kwargs: `threshold`: prompts with a score below it are left out, and it alone decides which; the others come
                with their masks, however low their scores. Default: the head's `score_threshold`; 0 keeps all.
                `mask_threshold`: a pixel is foreground above this probability; default: the head's.
                `instances`: True gives an entry for each of the things that a prompt names, with its own mask.
                `batch_size`: images (with all their prompts) that run through the models together; default: 1.

        Returns:
            For one image a list of dicts, one per prompt found (or per instance): `label` (the prompt), `score` (in
            [0, 1]) and `mask` (a PIL image of mode "L" and the image's size: 255 inside, 0 outside). A list of such
            lists for a list; an iterator over them, computed on demand, for a generator or data set.
        """
        own = {} if prompts is None else {"prompts": prompts}
        return super().__call__(inputs, **own, **kwargs)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the head. (The base is frozen; transformers' own would write it, with a new entry in its config.)"""
        self.adapter.save_pretrained(save_directory, **kwargs)

    def _sanitize_parameters(
        self,
        prompts: str | list[str] | None = None,
        threshold: float | None = None,
        mask_threshold: float | None = None,
        instances: bool | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        asked = (
            {"prompts": prompts},
            {"mask_threshold": mask_threshold, "instances": instances},
            {"threshold": threshold},
        )
        preprocess, forward, postprocess = (
            {name: value for name, value in group.items() if value is not None} for group in asked
        )
        return preprocess, forward, postprocess

    def preprocess(self, inputs: Any, prompts: str | list[str] | None = None) -> dict[str, Any]:
        if isinstance(inputs, dict):
            inputs, prompts = inputs.get("image"), inputs.get("prompts", prompts)
        prompts = [prompts] if isinstance(prompts, str) else prompts
        if inputs is None or not isinstance(prompts, list | tuple):
            raise InputError(
                'The pipeline wants an image and what to find in it: pipe(image, prompts=["the dog"]) or '
                f'pipe({{"image": image, "prompts": ["the dog"]}}); got the image {brief(inputs)}, '
                f"the prompts {brief(prompts)}."
            )
        if isinstance(inputs, str) and inputs.startswith(("http://", "https://")):
            inputs = _fetched(inputs)
        return {"image": load_image(inputs), "prompts": list(prompts)}

    def _forward(
        self, model_inputs: dict[str, Any], mask_threshold: float | None = None, instances: bool = False
    ) -> dict[str, Any]:
        images, prompts = model_inputs["image"], model_inputs["prompts"]
        asked: dict[str, Any] = {"mask_threshold": mask_threshold, "instances": instances}
        asked["score_threshold"] = 0.0  # `postprocess` has its own
        if isinstance(images, list):  # a batch is collated into lists
            asked["batch_size"] = sum(map(len, prompts))
        return {"output": self.adapter.segment(images, prompts, **asked)}

    def postprocess(self, model_outputs: dict[str, Any], threshold: float | None = None) -> list[dict[str, Any]]:
        output = model_outputs["output"]
        threshold = self.adapter.config.score_threshold if threshold is None else threshold
        whole = [Instances(mask[None], score[None]) for mask, score in zip(output.masks, output.scores, strict=True)]
        rows = zip(output.prompts, output.scores.tolist(), output.instances or whole, strict=True)
        return [
            {"label": prompt, "score": score, "mask": Image.fromarray(mask.numpy().astype(np.uint8) * 255)}
            for prompt, of_prompt, named in rows
            if is_found(of_prompt, threshold)
            for mask, score in zip(named.masks, named.scores.tolist(), strict=True)
        ]


def _fetched(url: str) -> bytes:
    """The file behind a URL; it is opened as any other, and is no picture of another format than any other."""
    try:
        with urlopen(Request(url, headers={"User-Agent": "lens_adapter"}), timeout=_PATIENCE) as response:
            return bytes(response.read())
    except (OSError, ValueError, HTTPException) as error:
        raise InputError(f"The picture {brief(url, 300)} cannot be fetched: {one_line(error)}.") from error


PIPELINE_REGISTRY.register_pipeline(TASK, LensSegmentationPipeline, pt_model=AutoModelForImageTextToText)
