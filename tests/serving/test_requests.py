"""What a request may hold: the one schema of the server and of the endpoint's handler."""

from __future__ import annotations

import base64
import json
from io import BytesIO

import pytest
from PIL import Image

from lens_adapter.errors import InputError
from lens_adapter.serving import requests
from lens_adapter.serving.bounds import LONGEST_PROMPT, MOST_PROMPTS
from lens_adapter.serving.requests import AnswerOptions, parse_request, read_request


def coded(size: tuple[int, int] = (8, 6), kind: str = "PNG", mode: str = "RGB") -> str:
    buffer = BytesIO()
    Image.new(mode, size).save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


GOOD = coded()


def asked(inputs=GOOD, **parameters):
    return {"inputs": inputs, "parameters": {"prompts": ["a cup"], **parameters}}


@pytest.mark.parametrize(
    "inputs",
    [
        GOOD,
        "\n".join(GOOD[start : start + 76] for start in range(0, len(GOOD), 76)),  # as MIME breaks lines
        f"data:image/png;base64,{GOOD}",
        Image.new("RGBA", (8, 6)),
    ],
)
def test_a_picture_in_all_its_forms(inputs):
    request = read_request(asked(inputs))
    assert request.picture.size == (8, 6) and request.picture.mode == "RGB"
    assert request.prompts == ["a cup"] and request.options == AnswerOptions()


def test_options_and_a_prompt_alone():
    request = read_request(asked(prompts="a cup", mask_threshold=0.4, score_threshold=0, instances=True))
    assert request.prompts == ["a cup"] and request.options == AnswerOptions(0.4, 0.0, True)
    assert parse_request(json.dumps(asked(mask_threshold=None)).encode()).options == AnswerOptions()


REFUSED = {
    "no object": ([], "A request must be an object with inputs, parameters"),
    "no picture": ({"parameters": {"prompts": "a cup"}}, "inputs must be a picture"),
    "another key": ({**asked(), "token": "x"}, "may have inputs, parameters; got ['token'] too"),
    "another parameter": (asked(threshold=0.5), "got ['threshold'] too"),
    "parameters that are none": ({"inputs": GOOD, "parameters": "a cup"}, "parameters must be an object"),
    "no prompts": ({"inputs": GOOD}, "parameters.prompts must be"),
    "an empty list": (asked(prompts=[]), "got 0 of them"),
    "too many prompts": (asked(prompts=["a cup"] * (MOST_PROMPTS + 1)), f"got {MOST_PROMPTS + 1} of them"),
    "a prompt that says nothing": (asked(prompts=["a cup", " "]), "A prompt must be a text of at most"),
    "a prompt that is no text": (asked(prompts=[5]), "A prompt must be a text of at most"),
    "half a letter": (asked(prompts=["\ud800"]), "A prompt must be a text of at most"),
    "a long prompt": (asked(prompts="x" * (LONGEST_PROMPT + 1)), f"at most {LONGEST_PROMPT} letters"),
    "a threshold in letters": (asked(score_threshold="0.5"), "parameters.score_threshold must be a number"),
    "a threshold of 1": (asked(mask_threshold=1), "parameters.mask_threshold must be a number in [0, 1)"),
    "a threshold that is none": (asked(mask_threshold=float("nan")), "parameters.mask_threshold must be a number"),
    "a threshold that is a flag": (asked(mask_threshold=False), "parameters.mask_threshold must be a number"),
    "a flag in letters": (asked(instances="false"), "parameters.instances must be true or false"),
    "a list of pictures": (asked([GOOD]), "inputs must be a picture"),
    "a web address": (asked("http://127.0.0.1:1/a.png"), "URLs are not fetched"),
    "a file's address": (asked("file:///etc/passwd"), "URLs are not fetched"),
    "base64 of no picture": (asked("AAAA"), "cannot be read as an image"),
    "PostScript": (asked(coded(kind="EPS")), "cannot be read as an image"),
    "half a picture": (asked(coded((400, 400), "BMP")[:4000]), "damaged or cut off"),
    "many pixels": (asked(coded((6000, 6000), mode="1")), "too large: 6000 x 6000 pixels; expected at most 25"),
    "many pixels, opened": (asked(Image.new("1", (6000, 6000))), "expected at most 25 megapixels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_in_words(name):
    data, words = REFUSED[name]
    with pytest.raises(InputError) as refused:
        read_request(data)
    assert words in str(refused.value) and len(str(refused.value)) < 600


def test_no_file_of_the_server_is_opened(tmp_path, monkeypatch):
    """Also one whose path is valid base64, or stands in the data URI's place."""
    Image.new("RGB", (8, 6)).save(tmp_path / "abcd.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "abcd.png").rename("abcd")
    for path in ("abcd", f"{tmp_path}/abcd", "data:,abcd", "data:image/png;base64,abcd", "./abcd"):
        with pytest.raises(InputError):
            read_request(asked(path))


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b"[" * 90_000, b'{"inputs": 1, "inputs": 2}', b"1" * 9_000, b"null", b'"a"']
)
def test_a_body_that_is_no_request(body):
    with pytest.raises(InputError):
        parse_request(body)


class Adapter:
    """Stands for a model: refuses one prompt, and remembers how often it was asked about what."""

    def __init__(self):
        self.asked = []

    def segment(self, pictures, prompts, **options):
        self.asked.append((prompts, options))
        if any("bad" in texts for texts in prompts):
            raise InputError("This one is bad.")
        return [Output(texts, picture.size[::-1]) for picture, texts in zip(pictures, prompts, strict=True)]


class Output:
    def __init__(self, prompts, image_size):
        self.prompts, self.image_size = prompts, image_size

    def to_records(self):
        return [{"prompt": prompt} for prompt in self.prompts]


def test_all_are_asked_at_once_by_their_options():
    adapter = Adapter()
    data = [asked(prompts="a"), asked(prompts="b", instances=True), asked(prompts=["c", "d"])]
    answers = requests.answer_all(adapter, [read_request(one) for one in data], batch_size=5)
    assert [[one["prompt"] for one in answer["results"]] for answer in answers] == [["a"], ["b"], ["c", "d"]]
    assert answers[0]["image_size"] == [6, 8]
    assert [(prompts, options["instances"]) for prompts, options in adapter.asked] == [
        ([["a"], ["c", "d"]], False),
        ([["b"]], True),
    ]
    assert all(options["batch_size"] == 5 for _, options in adapter.asked)


def test_who_asks_badly_hurts_nobody_else():
    data = [asked(prompts="a"), asked(prompts="bad"), asked(prompts="c")]
    first, second, third = requests.answer_all(Adapter(), [read_request(one) for one in data])
    assert first["results"] == [{"prompt": "a"}] and third["results"] == [{"prompt": "c"}]
    assert isinstance(second, InputError)
