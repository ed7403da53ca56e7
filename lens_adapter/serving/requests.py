"""What a request holds, and what is answered: the same for the server and for the handler of an Inference Endpoint.

{"inputs": <a picture as base64, or a data URI>,
 "parameters": {"prompts": ["the dog on the left"], "score_threshold": 0.5, "mask_threshold": 0.5, "instances": false}}

{"image_size": [H, W], "results": [<a dict per prompt, see LensOutput.to_records>]}
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from lens_adapter.adapter import LensAdapter
from lens_adapter.annotation.tasks import is_whole_text
from lens_adapter.bounds import is_real
from lens_adapter.data.files import as_flag, json_line
from lens_adapter.errors import InputError, brief
from lens_adapter.serving.bounds import BATCH_SIZE, LONGEST_PROMPT, MOST_PIXELS, MOST_PROMPTS
from lens_adapter.vlm.images import load_image, open_image, require_pixels

Answer = dict[str, Any]  # ready for JSON


@dataclass(frozen=True)
class AnswerOptions:
    """How prompts are answered; as for `LensAdapter.segment`, where None is the head's own."""

    mask_threshold: float | None = None
    score_threshold: float | None = None
    instances: bool = False


@dataclass(frozen=True, eq=False)
class SegmentationRequest:
    """One picture (RGB, upright) and what to find in it."""

    picture: Image.Image
    prompts: list[str]
    options: AnswerOptions


def parse_request(body: bytes) -> SegmentationRequest:
    """What the JSON of a request says.

    Raises:
        InputError: it is no JSON, or see `read_request`.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"A request must be JSON in UTF-8: {error}.") from error
    return read_request(json_line(text))


def read_request(data: Any) -> SegmentationRequest:
    """Check a request and decode its picture. No path is opened and no URL is fetched, whatever it names.

    Args:
        data: a mapping with `inputs`: the picture, as base64, as a data URI or as a PIL image; and `parameters`:
            `prompts`, a text or a list of them, and the fields of `AnswerOptions`.

    Raises:
        InputError: something in it cannot be used, or goes over a bound of `lens_adapter.serving.bounds`.
    """
    _require_keys(data, "A request", ("inputs", "parameters"))
    parameters = data.get("parameters", {})
    _require_keys(parameters, "parameters", ("prompts", *AnswerOptions.__dataclass_fields__))
    prompts = _prompts(parameters.get("prompts"))
    options = AnswerOptions(
        _threshold(parameters, "mask_threshold"),
        _threshold(parameters, "score_threshold"),
        as_flag(parameters.get("instances", False), "parameters.instances"),
    )
    return SegmentationRequest(_picture(data.get("inputs")), prompts, options)


def answer_all(
    adapter: LensAdapter, requests: Sequence[SegmentationRequest], batch_size: int = BATCH_SIZE
) -> list[Answer | Exception]:
    """Ask an attached adapter about several requests at once.

    Args:
        batch_size: prompts that run together, of several pictures too.

    Returns:
        An answer for each, in order, or the error that it met. Where something goes wrong, each is asked alone, so that
        an error is that of its own request.
    """
    answers: dict[int, Answer | Exception] = {}
    groups: dict[AnswerOptions, list[int]] = {}
    for place, request in enumerate(requests):
        groups.setdefault(request.options, []).append(place)
    for options, places in groups.items():
        answered = _ask(adapter, [requests[place] for place in places], options, batch_size)
        answers.update(zip(places, answered, strict=True))
    return [answers[place] for place in range(len(requests))]


def _ask(
    adapter: LensAdapter, requests: Sequence[SegmentationRequest], options: AnswerOptions, batch_size: int
) -> list[Answer | Exception]:
    pictures, prompts = [one.picture for one in requests], [one.prompts for one in requests]
    try:
        outputs = adapter.segment(pictures, prompts, batch_size=batch_size, **asdict(options))
        return [{"image_size": list(output.image_size), "results": output.to_records()} for output in outputs]
    except Exception as error:  # whatever one request met, the others are answered
        if len(requests) == 1:
            return [error]
        return [answer for request in requests for answer in _ask(adapter, [request], options, batch_size)]


def _require_keys(value: Any, name: str, known: Sequence[str]) -> None:
    if not isinstance(value, Mapping):
        raise InputError(f"{name} must be an object with {', '.join(known)}; got {brief(value)}.")
    if unknown := sorted(map(str, value.keys() - set(known))):
        raise InputError(f"{name} may have {', '.join(known)}; got {brief(unknown)} too.")


def _prompts(given: Any) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list | tuple) or not 1 <= len(texts) <= MOST_PROMPTS:
        raise InputError(
            f"parameters.prompts must be a text, or a list of at most {MOST_PROMPTS}, that say what to find; got "
            f"{f'{len(texts)} of them' if isinstance(texts, list | tuple) else brief(given)}."
        )
    for text in texts:
        if not isinstance(text, str) or not text.strip() or not is_whole_text(text) or len(text) > LONGEST_PROMPT:
            raise InputError(
                f"A prompt must be a text of at most {LONGEST_PROMPT} letters that says what to find; got "
                f"{brief(text)}."
            )
    return list(texts)


def _threshold(parameters: Mapping[str, Any], key: str) -> float | None:
    value = parameters.get(key)
    if value is not None and not (is_real(value) and 0 <= value < 1):
        raise InputError(f"parameters.{key} must be a number in [0, 1); got {brief(value)}.")
    return None if value is None else float(value)


def _picture(given: Any) -> Image.Image:
    if isinstance(given, Image.Image):  # of a request whose body was a picture
        require_pixels(given, MOST_PIXELS)
        return load_image(given)
    with open_image(_file(given), "picture") as opened:
        require_pixels(opened, MOST_PIXELS)
        return load_image(opened)


def _file(given: Any) -> str | bytes:
    """What `open_image` can take for nothing but the picture itself."""
    if isinstance(given, str) and given[:5].lower() == "data:":
        return given
    try:
        if isinstance(given, str) and given:
            return base64.b64decode("".join(given.split()), validate=True)
    except (binascii.Error, ValueError):  # the latter of letters that are not ASCII
        pass
    raise InputError(
        f"inputs must be a picture as base64 or as a data URI; got {brief(given)}. URLs are not fetched, and no "
        "path is opened."
    )
