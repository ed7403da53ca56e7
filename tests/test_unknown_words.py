"""Words that a model has no token for are said, and kept apart from what is not in the picture."""

from __future__ import annotations

import pytest

from lens_adapter import LensAdapter, LensOutput, builtin
from lens_adapter.builtin.world import sample_scene
from tests.tiny.adapters import tiny_trio
from tests.tiny.sam import noise_image

PROMPTS = ["the quokka", "the dog", "teh quokka", "the cat"]
SAID = "The model has no token for "


@pytest.fixture(scope="module")
def shipped() -> LensAdapter:
    return builtin.load_head("lite").attach(*builtin.load_base())


@pytest.fixture
def adapter(shipped: LensAdapter) -> LensAdapter:
    """Attached anew: what was said is said again."""
    return shipped.attach(shipped.base.model, shipped.base.processor)


@pytest.fixture(scope="module")
def picture():
    return sample_scene(148846, "test").draw(192)


def test_segment_warns_once_and_says_it_by_prompt(adapter, picture, caplog):
    first, second = adapter.segment([picture, picture.resize((90, 80))], [PROMPTS, "the zebra"])
    assert first.unknown_words == [["quokka"], [], ["teh", "quokka"], []] and second.unknown_words == [["zebra"]]
    assert caplog.text.count(SAID) == 2  # a picture is read after the other
    assert "['quokka', 'teh']" in caplog.text and "['zebra']" in caplog.text
    adapter.segment(picture, PROMPTS)
    assert caplog.text.count(SAID) == 2  # each word once
    adapter.attach(adapter.base.model, adapter.base.processor).segment(picture, "the quokka")
    assert caplog.text.count(SAID) == 3


def test_an_output_keeps_not_understood_apart_from_absent(adapter, picture):
    out = adapter.segment(picture, PROMPTS, score_threshold=0.9)
    assert not out.found[[0, 2, 3]].any()
    assert "'the quokka' 0.00 not understood: quokka, " in repr(out)
    assert repr(out[3]).endswith("'the cat' 0.00 absent)")
    assert [one.unknown_words for one in out] == [[words] for words in out.unknown_words]
    assert out["teh quokka"].unknown_words == [["teh", "quokka"]] and out[1:3].unknown_words == out.unknown_words[1:3]
    assert [record["unknown_words"] for record in out.to_records()] == out.unknown_words
    rows = out._repr_html_().split("<tr>")
    assert "not understood: teh, quokka" in rows[-2] and "absent" not in rows[-2] and "absent" in rows[-1]
    assert out.plot().tobytes() != LensOutput(**{**vars(out), "unknown_words": None}).plot().tobytes()  # its labels
    assert out.to_panel().understood == [False, True, False, True]


@pytest.mark.parametrize(
    "ask",
    [
        lambda adapter, picture: adapter.look(picture, "the quokka"),
        lambda adapter, picture: adapter.chat(picture, "where is the quokka ?", max_new_tokens=2),
        lambda adapter, picture: adapter.ground(picture, "the quokka sleeps"),
        lambda adapter, picture: adapter.route("mark the quokka"),
        lambda adapter, picture: adapter.route("mark the quokka", picture),
        lambda adapter, picture: adapter.base.read([picture, picture], ["the dog", "the quokka"]),
    ],
)
def test_whatever_reads_a_text_warns(adapter, picture, caplog, ask):
    ask(adapter, picture)
    assert caplog.text.count(SAID) == 1 and "'quokka'" in caplog.text


def test_chat_says_what_of_the_question_was_not_understood(adapter, picture):
    said = adapter.chat(picture, "where is the quokka ?", ["the gnarl"], max_new_tokens=2)
    assert said.unknown_words == ["quokka"] and said.output.unknown_words == [["gnarl"]]
    assert adapter.chat(picture, "where is the dog ?", max_new_tokens=2).unknown_words == []


def test_nothing_is_said_where_the_tokenizer_spells_words_out(caplog):
    adapter, _, _ = tiny_trio("llava")
    out = adapter.segment(noise_image(40, 50), ["a quokka", "qwrtz"])
    assert out.unknown_words == [[], []] and SAID not in caplog.text
