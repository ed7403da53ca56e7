"""Grounded chat and routing: the base's own words, and masks for what they name."""

from __future__ import annotations

import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.request import urlopen
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image

from lens_adapter import LensAdapter
from lens_adapter.chat import find_phrases
from lens_adapter.config import ROUTING_QUESTION
from lens_adapter.errors import InputError, NotAttachedError
from lens_adapter.pictures.colors import color_of
from lens_adapter.vlm.inputs import LONGEST_TEXT
from tests.tiny.adapters import hooks_in, marks_on, tiny_adapter, tiny_trio
from tests.tiny.pairs import tiny_pair
from tests.tiny.processors import llava_processor
from tests.tiny.sam import noise_image

IMAGE = noise_image(50, 70)
GREEDY = {"max_new_tokens": 12, "do_sample": False}
SAMPLED = {"max_new_tokens": 12, "do_sample": True, "temperature": 1.3}


def turn(role, text, *images):
    return {"role": role, "content": [*images, {"type": "text", "text": text}]}


HERE = {"type": "image", "image": IMAGE}
CONVERSATION = [turn("user", "Hello", HERE), turn("assistant", "Hi."), turn("user", "Which cat?")]


def own_words(model, processor, messages, **options):
    """What the user of the base would have written without this library."""
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        return model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("architecture", ["llava", "qwen2_5_vl"])
def test_it_says_what_the_base_says_token_by_token(architecture, options):
    model, processor = tiny_pair(architecture)
    one = [turn("user", "Which cat?", HERE)]
    ways = ["Which cat?", [turn("user", "Which cat?", {"type": "image"})], [{"role": "user", "content": "Which cat?"}]]
    pairs = [(way, one) for way in ways] + [(CONVERSATION, CONVERSATION)]
    expected = []
    for _, messages in pairs:
        torch.manual_seed(3)
        expected.append(own_words(model, processor, messages, **options))
    adapter = tiny_adapter(model, processor)
    for (asked, _), tokens in zip(pairs, expected, strict=True):
        torch.manual_seed(3)
        said = adapter.chat(IMAGE, asked, phrases=["the cat"] if asked is CONVERSATION else [], **options)
        assert torch.equal(said.token_ids, tokens)
        assert said.text == processor.tokenizer.decode(tokens, skip_special_tokens=True)
    assert len(expected[0].unique()) > 1 and not torch.equal(expected[0], expected[-1])
    assert said.phrases[0].mask.shape == (50, 70) and not hooks_in(model)


def test_masks_are_those_of_segment():
    adapter, _, _ = tiny_trio()
    said = adapter.ground(IMAGE, "The cat sees a dog. Is the cat big?", ["the cat", "the mouse", re.compile("a d.g")])
    assert said.token_ids is None
    assert [(p.text, p.span, p.row) for p in said.phrases] == [
        ("the cat", (0, 7), 0),
        ("the cat", (23, 30), 0),
        ("the mouse", None, 1),
        ("a dog", (13, 18), 2),
    ]
    alone = adapter.segment(IMAGE, ["the cat", "the mouse", "a dog"])
    assert said.output.prompts == alone.prompts and torch.equal(said.output.masks, alone.masks)
    for phrase in said.phrases:
        assert torch.equal(phrase.mask, alone.masks[phrase.row]) and phrase.mask.shape == (50, 70)
        assert phrase.score == float(alone.scores[phrase.row])
    assert alone.masks[0].any() and not torch.equal(alone.masks[0], alone.masks[2])


def test_a_notebook_shows_names_in_the_colors_of_their_masks():
    adapter, _, _ = tiny_trio()
    text = "The cat & a <b>dog</b>."
    said = adapter.ground(IMAGE, text, ["the cat", "a <b>dog", "dog", "the mouse"])
    page = said._repr_html_()
    marks = re.findall(r'<mark style="background: rgb(\(.*?\)); [^"]*">(.*?)</mark>', page)
    assert marks == [(str(color_of(0)), "The cat"), (str(color_of(1)), "a &lt;b&gt;dog")]
    shown = ElementTree.fromstring(page)
    assert "".join(shown.find("p").itertext()) == text
    assert len(shown.findall(".//tbody/tr")) == 4 and shown.find(".//img") is not None


def test_a_text_that_names_nothing_has_no_masks():
    adapter, _, _ = tiny_trio()
    said = adapter.ground(IMAGE, "Yes.")
    assert said.phrases == [] and said.output.masks.shape == (0, 50, 70)
    assert said.output.plot().tobytes() == IMAGE.tobytes() and said.output.to_polygons() == []
    assert "<table>" in said.output._repr_html_()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("The image shows a brown dog and the cat's tail.", ["a brown dog", "the cat's tail"]),
        ("There is an apple on\nthe old table, next to a fork.", ["an apple", "the old table", "a fork"]),
        ("the man in the hat has the dog on a leash", ["the man", "the hat", "the dog", "a leash"]),
        ("Large striped red circle.", ["Large striped red circle"]),
        ("A T-shirt", ["A T-shirt"]),
        ("Yes.", []),
        ("x3 y5", []),
        ("It is red", []),
        ("the, a", []),
        ("", []),
        ("Two dogs and a cat", ["a cat"]),  # a limit: names without an article
        ("a dog sitting there", ["a dog sitting"]),  # a limit: verbs that are not listed
    ],
)
def test_the_rule_for_phrases(text, names):
    found = list(find_phrases(text))
    assert [name for name, _ in found] == names
    assert all(text[slice(*span)] == name for name, span in found)


@pytest.mark.parametrize(
    "text",
    """
    four|Four.|4|three hundred|twenty-one|exactly two|about 12|at least three|only one|There are four.|a dozen|none|many
    pink|Pink.|light blue|dark green|blue-green|reddish|It is pink.|The color is pink.|black and white|red, white|orange
    a bright red|It is a dark blue.|very dark|multicolored|gold|silver
    small|the largest|bigger|very small|medium-sized|The smallest.|tall|It is the tallest.
    left|the left|the right side|on the left|in the middle|at the top|the upper left|the bottom right|the background
    the second|The first.|the last two|the others|the same|the other|both|a few|a lot of|a couple|a pair|the 3rd|the 4
    yes|No.|x3 y5|the two|Most.|true|Correct.
    """.strip()
    .replace("\n", "|")
    .split("|"),
)
def test_numbers_colors_sizes_and_places_are_no_things(text):
    assert list(find_phrases(text.strip())) == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("four dogs", ["four dogs"]),
        ("The four dogs are pink.", ["The four dogs"]),
        ("Pink butterfly.", ["Pink butterfly"]),
        ("an orange", ["an orange"]),
        ("The orange is orange.", ["The orange"]),
        ("the rose", ["the rose"]),
        ("the red one", ["the red one"]),
        ("The two small ones are left of the largest one.", ["The two small ones", "the largest one"]),
        ("the second cat on the left", ["the second cat"]),
        ("A pair of scissors and the 3 cups", ["the 3 cups"]),
        ("The left dog is the largest.", ["The left dog"]),
        ("a three-legged stool", ["a three-legged stool"]),
        ("a red-haired girl", ["a red-haired girl"]),
        ("There are two: the black cat, the white.", ["the black cat"]),
        ("The second is a pink butterfly.", ["a pink butterfly"]),
        ("guitar", ["guitar"]),
        ("The sky is light blue with a few clouds", ["The sky", "a few clouds"]),
        ("The number of dogs is four, the color of the car is blue.", ["the car"]),
    ],
)
def test_things_with_numbers_colors_sizes_and_places_are_things(text, names):
    found = list(find_phrases(text))
    assert [name for name, _ in found] == names
    assert all(text[slice(*span)] == name for name, span in found)


def test_phrases_asked_for():
    text = "A cat, the category, A CAT"
    assert list(find_phrases(text, "a cat")) == [("a cat", (0, 5)), ("a cat", (21, 26))]
    assert list(find_phrases(text, re.compile(r"the \w+|x*"))) == [("the category", (7, 19))]
    assert list(find_phrases("Ein Hund (grau)", ["Hund (grau)", "Katze"])) == [
        ("Hund (grau)", (4, 15)),
        ("Katze", None),
    ]
    assert list(find_phrases(text, [])) == []


@pytest.mark.parametrize("architecture", ["llava", "qwen2_5_vl"])
def test_routing_compares_yes_and_no(architecture):
    """Bytes are this tokenizer's tokens: the words' first ones stand for them, and a space alone for nothing."""
    adapter, model, processor = tiny_trio(architecture)
    vocabulary = processor.tokenizer.get_vocab()
    messages = [turn("user", ROUTING_QUESTION.replace("{prompt}", "Mark it"), HERE)]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1].double()
        marks = marks_on(model)
    yes, no = (logits[[vocabulary[letter] for letter in letters]].exp().sum() for letters in ("yY", "nN"))
    routed = adapter.route("Mark it", IMAGE)
    assert routed.probability == pytest.approx(float(yes / (yes + no)), abs=1e-5)
    assert routed.decision == ("mask" if yes > no else "answer")
    assert adapter.route("Mark it", IMAGE) == routed
    assert adapter.route("Mark it", IMAGE, question="{prompt}?").probability != routed.probability
    alone = adapter.route("Mark it")
    assert 0 < alone.probability < 1 and alone.probability != routed.probability
    assert not hooks_in(model) and marks_on(model) == marks


def test_the_routing_question_travels_with_the_checkpoint(tmp_path):
    adapter, model, processor = tiny_trio()
    theirs = "is {prompt} a wish ?"
    expected, usual = adapter.route("Mark it", IMAGE, theirs), adapter.route("Mark it", IMAGE)
    assert expected != usual == adapter.route("Mark it", IMAGE, ROUTING_QUESTION)
    adapter.config.routing_question = theirs
    adapter.save_pretrained(tmp_path)
    with LensAdapter.from_pretrained(tmp_path).attach(model, processor) as loaded:
        assert loaded.config.routing_question == theirs and loaded.route("Mark it", IMAGE) == expected
    config = json.loads((tmp_path / "config.json").read_text())
    del config["routing_question"]  # as checkpoints of earlier versions
    (tmp_path / "config.json").write_text(json.dumps(config))
    with LensAdapter.from_pretrained(tmp_path).attach(model, processor) as loaded:
        assert loaded.route("Mark it", IMAGE) == usual


@pytest.mark.parametrize("question", ["Is it a wish?", "", 3])
def test_a_routing_question_without_the_request_is_refused(question):
    adapter, _, _ = tiny_trio()
    with pytest.raises(InputError, match=r"question must be a text with \{prompt\}"):
        adapter.route("Mark it", question=question)


@pytest.mark.parametrize("wanted", ["yes", "no"])
def test_routing_follows_the_model(wanted):
    adapter, model, processor = tiny_trio()
    head = model.get_output_embeddings()
    with torch.no_grad():  # a model that says nothing else
        head.weight[processor.tokenizer.get_vocab()[wanted[0]]] *= 0
        head.weight[processor.tokenizer.get_vocab()[{"yes": "n", "no": "y"}[wanted][0]]] *= 0
        hidden = []
        handle = head.register_forward_pre_hook(lambda _, args: hidden.append(args[0][0, -1]))
        adapter.route("Mark it", IMAGE)
        handle.remove()
        head.weight[processor.tokenizer.get_vocab()[wanted[0]]] += hidden[0]
    routed = adapter.route("Mark it", IMAGE)
    assert routed.decision == {"yes": "mask", "no": "answer"}[wanted]
    assert abs(routed.probability - 0.5) > 0.4


class Alike:
    """A tokenizer to which all words start alike."""

    unk_token_id = None

    def encode(self, text, **_):
        return [5, len(text)]


def test_a_tokenizer_that_cannot_tell_yes_from_no_is_refused(monkeypatch):
    adapter, _, processor = tiny_trio()
    monkeypatch.setattr(processor, "tokenizer", Alike())
    with pytest.raises(InputError, match='starts "yes" and "no" with the same tokens'):
        adapter.route("Mark it")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (3, "messages must be a question or a list of turns"),
        ([], "messages must be"),
        (["hello"], "messages must be"),
        ([turn("assistant", "Hi")], "one of them the user's"),
        ([turn("user", "Compare", HERE, HERE)], "one image; the messages have 2"),
        ("", "empty text"),
        ("<image>", "special tokens"),
    ],
)
def test_messages_that_cannot_be_used_are_refused(messages, message):
    adapter, _, _ = tiny_trio()
    with pytest.raises(InputError, match=message):
        adapter.chat(IMAGE, messages, **GREEDY)


def test_other_input_that_cannot_be_used_is_refused():
    adapter, model, _ = tiny_trio()
    for phrases in ("", [3], ["the cat", " "]):
        with pytest.raises(InputError, match="A phrase must be"):
            adapter.ground(IMAGE, "the cat", phrases)
    with pytest.raises(InputError, match="must be a str; got int"):
        adapter.ground(IMAGE, 3)
    with pytest.raises(InputError, match="num_return_sequences"):
        adapter.chat(IMAGE, "Hi", do_sample=True, num_return_sequences=2, max_new_tokens=2)
    for text in ("", "<image>"):
        with pytest.raises(InputError):
            adapter.route(text)
    adapter.attach(model, llava_processor(chat_template=None))
    with pytest.raises(InputError, match="no chat template"):
        adapter.chat(IMAGE, CONVERSATION, **GREEDY)
    assert adapter.chat(IMAGE, "Hi", [], **GREEDY).phrases == []  # one question does without
    assert 0 < adapter.route("Mark it").probability < 1
    adapter.attach(model)
    for call in (lambda: adapter.chat(IMAGE, "Hi"), lambda: adapter.route("Mark it")):
        with pytest.raises(InputError, match="needs the base's processor"):
            call()
    adapter.detach()
    for call in (lambda: adapter.chat(IMAGE, "Hi"), lambda: adapter.route("Hi"), lambda: adapter.ground(IMAGE, "the")):
        with pytest.raises(NotAttachedError):
            call()


def test_beams_and_records_of_generate():
    adapter, model, processor = tiny_trio()
    options = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False}
    expected = own_words(model, processor, [turn("user", "Hi", HERE)], **options)
    said = adapter.chat(IMAGE, "Hi", [], return_dict_in_generate=True, output_scores=True, **options)
    assert torch.equal(said.token_ids, expected)


def test_the_image_of_the_call_is_the_one_that_counts():
    adapter, _, _ = tiny_trio()
    other = Image.new("RGB", (70, 50), "white")
    asked = [turn("user", "Hi", {"type": "image", "image": other})]
    assert torch.equal(
        adapter.chat(IMAGE, asked, [], **GREEDY).token_ids, adapter.chat(IMAGE, "Hi", [], **GREEDY).token_ids
    )


# -- parts of a conversation


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://localhost/cat.png"}},
        {"type": "image_url", "image_url": "data:image/png;base64,AAAA"},
        {"type": "image", "url": "https://localhost/cat.png"},
        {"type": "image", "path": "/etc/passwd"},
    ],
)
def test_an_image_part_of_any_kind_is_the_place_of_the_image(part):
    adapter = tiny_trio()[0]
    expected = adapter.chat(IMAGE, [turn("user", "Which cat?", {"type": "image"})], [], **GREEDY)
    assert torch.equal(
        adapter.chat(IMAGE, [turn("user", "Which cat?", part)], [], **GREEDY).token_ids, expected.token_ids
    )


@pytest.fixture
def asked_urls():
    """A server on this machine, and what it was asked for."""
    asked = []

    class Listening(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Listening)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_nothing_that_a_conversation_names_is_fetched(asked_urls):
    url, asked = asked_urls
    with urlopen(f"{url}/heard"):
        assert asked == ["/heard"]
    adapter = tiny_trio()[0]
    for part in (
        {"type": "image", "url": f"{url}/a.png"},
        {"type": "image", "image": f"{url}/b.png"},
        {"type": "image", "path": f"{url}/c.png"},
        {"type": "image_url", "image_url": {"url": f"{url}/d.png"}},
        {"type": "image_url", "image_url": f"{url}/e.png"},
        {"type": "text", "text": "Hi", "image": f"{url}/f.png", "url": f"{url}/g.png", "image_url": f"{url}/h.png"},
    ):
        adapter.chat(IMAGE, [turn("user", "Which cat?", part)], [], **GREEDY)
        adapter.chat(IMAGE, [turn("user", "Which?"), {"role": "assistant", "content": [part]}], [], **GREEDY)
    for kind in ("video", "video_url", "audio"):
        with pytest.raises(InputError, match="of the type"):
            adapter.chat(IMAGE, [turn("user", "Which?", {"type": kind, kind: f"{url}/i"})], [], **GREEDY)
    for image in (f"{url}/j.png", url):
        for call in (lambda: adapter.chat(image, "Which?"), lambda: adapter.ground(image, "the cat")):  # noqa: B023
            with pytest.raises(InputError, match="URLs are not fetched"):
                call()
        with pytest.raises(InputError, match="URLs are not fetched"):
            adapter.route("Mark it", image)
    assert asked == ["/heard"]


def test_every_turn_is_held_to_what_a_question_is_held_to():
    adapter = tiny_trio()[0]
    long, special = "a" * (LONGEST_TEXT + 1), "a <image> b"

    def turns(text):
        yield text
        yield [turn("user", text)]
        yield [{"role": "user", "content": text}]
        yield [{"role": "system", "content": text}, turn("user", "Hi")]
        yield [
            turn("user", "Hi"),
            {"role": "assistant", "content": [{"type": "text", "text": text}]},
            turn("user", "?"),
        ]
        yield [turn("user", "Hi"), {"role": text, "content": "Hi"}]

    for text, complaint in ((long, "too long"), (special, "special tokens"), ("a \ud83d", "whole letters")):
        for messages in turns(text):
            with pytest.raises(InputError, match=complaint):
                adapter.chat(IMAGE, messages, [], **GREEDY)
        for call in (
            lambda: adapter.route(text),  # noqa: B023
            lambda: adapter.route(text, IMAGE),  # noqa: B023
            lambda: adapter.route("Hi", question="{prompt} " + text),  # noqa: B023
            lambda: adapter.route("Hi", IMAGE, question="{prompt} " + text),  # noqa: B023
            lambda: adapter.segment(IMAGE, text),  # noqa: B023
            lambda: adapter.ground(IMAGE, "the cat", text),  # noqa: B023
        ):
            with pytest.raises(InputError, match=complaint):
                call()
    with pytest.raises(InputError, match="too long"):
        adapter.ground(IMAGE, "the cat " * LONGEST_TEXT)
    fits = adapter.base.max_length
    words = " ".join(["cat"] * fits)
    assert len(words) < LONGEST_TEXT  # the model's own limit
    for messages in ([turn("user", words)], [turn("user", "Hi"), turn("assistant", words)]):
        with pytest.raises(InputError, match=f"the model takes {fits}"):
            adapter.chat(IMAGE, messages, [], **GREEDY)
    with pytest.raises(InputError, match=f"the model takes {fits}"):
        adapter.route(words)


@pytest.mark.parametrize(
    "messages, complaint",
    [
        ([{**turn("user", "Hi"), "tool_calls": [{"name": "<image>"}]}], "also .*tool_calls.*Leave that out"),
        ([{"role": 3, "content": "Hi"}], "the role 3"),
        ([turn("user", "Which?", {"type": "video", "video": "a.mp4"})], "a part of the type 'video'"),
        ([turn("user", "Which?", {"type": "video_url", "video_url": "a.mp4"})], "a part of the type 'video_url'"),
        ([turn("user", "Which?", {"type": "audio"})], "a part of the type 'audio'"),
        ([turn("user", "Which?", {"type": "input_image"})], "a part of the type 'input_image'"),
        ([turn("user", 5)], "a part of the type 'text'"),
        ([turn("user", "a", HERE), turn("user", "b", {"type": "image_url", "image_url": "x"})], "2 image parts"),
        ([turn("user", "the <image>")], "special tokens"),
        ([turn("user", "Hello"), turn("assistant", "a <image>")], "special tokens"),
        ([turn("user", "a \ud83d")], "lone surrogate"),
        ([{"content": "no role"}], "messages must be"),
        ([{"role": "user", "content": None}], "messages must be"),
        ([turn("user", "x" * 100_000), {"role": "user"}], "messages must be"),
    ],
)
def test_parts_that_are_refused(messages, complaint):
    with pytest.raises(InputError, match=complaint) as caught:
        tiny_trio()[0].chat(IMAGE, messages, [], **GREEDY)
    assert len(str(caught.value)) < 600


def test_templates_that_cannot_be_used_are_named_in_chat_and_route():
    adapter, _, processor = tiny_trio()
    processor.chat_template = {"rag": "{{ 1 }}"}
    for ask in (
        lambda: adapter.chat(IMAGE, [turn("user", "Which cat?")]),
        lambda: adapter.chat(IMAGE, "Which cat?"),
        lambda: adapter.route("show me the cat"),
        lambda: adapter.route("show me the cat", IMAGE),
    ):
        with pytest.raises(InputError, match="none called 'default'"):
            ask()
