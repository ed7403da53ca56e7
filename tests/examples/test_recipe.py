"""The training recipe of the built-in models (examples/builtin): its parts do what the trainings rely on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, SamModel

from lens_adapter import LensAdapter, builtin
from lens_adapter.builtin.world import EXPRESSION_KINDS, QUESTION_KINDS, WORDINGS, Question, Speaker, sample_scene
from lens_adapter.config import LensConfig
from lens_adapter.sam.segment_anything import SamDecoder
from lens_adapter.vlm.inputs import build_inputs
from lens_adapter.vlm.words import unknown_words
from tests.tiny import things_reading as reading
from tests.tiny.sam import noise_image, randomize, tiny_sam

EXAMPLES = Path(__file__).parents[2] / "examples" / "builtin"


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import recipe
        import report
        import train_head
        import train_language_model
        import train_sam
        import train_sam2
        import train_tower

        yield SimpleNamespace(
            recipe=recipe,
            tower=train_tower,
            language=train_language_model,
            sam=train_sam,
            sam2=train_sam2,
            head=train_head,
            report=report,
        )


@pytest.fixture(scope="module")
def model(scripts):
    """Random, and loud enough that what attends to what can be told from its answers."""
    torch.manual_seed(0)
    model = scripts.recipe.build_model().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(50 if "embed" in name else 4)
    return model


def pixels_of(scripts, picture: Image.Image) -> torch.Tensor:
    """(3, 128, 128), as the trainings see a picture of that size."""
    return scripts.recipe.normalized(torch.from_numpy(np.array(picture))[None])[0]


@pytest.fixture(scope="module")
def asked(scripts) -> list[tuple[torch.Tensor, list[Question]]]:
    """Pixels of two scenes, and questions about each."""
    made = []
    for index in range(2):
        scene = sample_scene(index, "validation")
        speaker = Speaker(scene, np.random.default_rng(index))
        kinds = ("names", "where_several", "counting", "routing", "superlatives")[: 5 - index]
        questions = [next(q for _ in range(99) if (q := speaker.question(kind))) for kind in kinds]
        made.append((pixels_of(scripts, scene.draw(scripts.recipe.IMAGE_SIZE)), questions))
    return made


@pytest.fixture(scope="module")
@torch.no_grad()
def samples(scripts, model, asked) -> list[tuple[torch.Tensor, list[Question]]]:
    """What the language model learns from: image tokens in the place of pixels."""
    return [(scripts.recipe.image_features(model, pixels[None])[0], questions) for pixels, questions in asked]


# -- optimizer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 12), (8, 20), (20, 8)])
def test_muon_steps_are_nearly_orthogonal(scripts, shape):
    """Whatever the singular values of a gradient, those of the step are near one; its singular vectors stay."""
    torch.manual_seed(0)
    matrices = [torch.nn.Parameter(torch.randn(shape)) for _ in range(3)]
    before = [matrix.detach().clone() for matrix in matrices]
    ideal = []
    for matrix in matrices:
        left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
        matrix.grad = left @ torch.diag(torch.linspace(0.1, 1, min(shape))) @ right * 1e-3
        ideal.append(left @ right)
    lr, decay = 0.01, 0.02
    scripts.recipe.Muon(matrices, lr=lr, weight_decay=decay).step()
    for old, new, orthogonal in zip(before, matrices, ideal, strict=True):
        step = (old * (1 - lr * decay) - new.detach()) / (0.2 * max(shape) ** 0.5 * lr)
        singular = torch.linalg.svdvals(step)
        assert singular.min() > 0.6 and singular.max() < 1.3
        assert torch.cosine_similarity(step.flatten(), orthogonal.flatten(), dim=0) > 0.97


def test_muon_follows_its_momentum(scripts):
    weight = torch.nn.Parameter(torch.zeros(6, 6))
    muon = scripts.recipe.Muon([weight], lr=0.01, momentum=0.5, weight_decay=0.0)
    first, second = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0))
    for gradient in (first, second):
        weight.grad = gradient.clone()
        muon.step()
    torch.testing.assert_close(muon.state[weight]["momentum"], 0.25 * first + 0.5 * second)


def test_muon_gets_the_matrices_and_adam_the_rest(scripts, model):
    named = list(model.named_parameters())
    muon, adam = scripts.recipe.optimizers(named, 1e-3, 1e-3)
    names = {id(parameter): name for name, parameter in named}
    inner, outer = ([names[id(p)] for group in opt.param_groups for p in group["params"]] for opt in (muon, adam))
    assert sorted(inner + outer) == sorted(names.values())
    assert any("q_proj" in name for name in inner) and any("multi_modal_projector" in name for name in inner)
    assert {"lm_head.weight"} <= set(outer) and all("embed" not in name for name in inner)


def test_learning_rate(scripts):
    rate = scripts.recipe.flat_then_cosine
    assert rate(0.0, 0.5) == rate(0.49, 0.5) == 1.0
    assert rate(0.75, 0.5, floor=0.0) == pytest.approx(0.5)
    assert rate(1.0, 0.5, floor=0.02) == pytest.approx(0.02)


# -- packed questions -------------------------------------------------------------------------------------------------


def test_packing_by_hand(scripts, samples):
    packed, recipe = scripts.language.pack(samples), scripts.recipe
    prefix = 1 + recipe.IMAGE_TOKENS
    questions = [(row, question) for row, (_, about) in enumerate(samples) for question in about]
    assert [(kind, row) for kind, row, _ in packed["answers"]] == [(q.kind, row) for row, q in questions]
    for (row, question), (_, _, span) in zip(questions, packed["answers"], strict=True):
        answer = [recipe.WORD_ID[word] for word in question.answer.split()]
        words = [recipe.WORD_ID[word] for word in question.text.split()]
        assert packed["ids"][row, span].tolist() == answer
        assert packed["labels"][row, span.start : span.stop + 1].tolist() == [*answer, recipe.EOS]
        start = span.start - len(words)
        assert packed["ids"][row, start : span.start].tolist() == words
        assert (packed["labels"][row, start : span.start] == scripts.language.IGNORED).all()
        assert packed["positions"][row, start : span.stop].tolist() == list(range(prefix, prefix + span.stop - start))
    learned = sum(len(question.answer.split()) + 1 for _, question in questions)
    assert (packed["labels"] != scripts.language.IGNORED).sum() == learned
    assert (packed["labels"][:, :prefix] == scripts.language.IGNORED).all()


def test_block_mask_by_hand(scripts):
    owner = torch.tensor([[0, 0, 1, 1, 2, -1, -1]])
    seen = scripts.language.block_mask(owner)[0, 0] == 0
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]


def packed_logits(scripts, model, packed: dict, mask: torch.Tensor) -> torch.Tensor:
    prefix, decoder = 1 + scripts.recipe.IMAGE_TOKENS, model.model.language_model
    words = decoder.embed_tokens(packed["ids"])
    embedded = torch.cat([words[:, :1], packed["image"], words[:, prefix:]], dim=1)
    states = decoder(inputs_embeds=embedded, attention_mask=mask, position_ids=packed["positions"]).last_hidden_state
    return model.lm_head(states)


@torch.no_grad()
def test_the_packed_road_is_the_ordinary_road(scripts, model, asked, samples):
    """Questions packed into one row get the logits of the stock model called with one question at a time."""
    packed, recipe = scripts.language.pack(samples), scripts.recipe
    logits = packed_logits(scripts, model, packed, scripts.language.block_mask(packed["owner"]))
    everything = scripts.language.block_mask(packed["owner"].clamp(max=0))  # lets questions see each other
    leaking = packed_logits(scripts, model, packed, everything)
    questions = iter(packed["answers"])
    worst = 0.0
    for pixels, about in asked:
        for question in about:
            _, row, span = next(questions)
            text = recipe.encode(f"{question.text} {question.answer}")
            ids = torch.tensor([[recipe.BOS, *[recipe.IMAGE] * recipe.IMAGE_TOKENS, *text]])
            ordinary = model(input_ids=ids, pixel_values=pixels[None], attention_mask=torch.ones_like(ids)).logits[0]
            where = slice(span.stop - len(text), span.stop)
            torch.testing.assert_close(logits[row, where], ordinary[-len(text) :], atol=2e-3, rtol=1e-3)
            worst = max(worst, (leaking[row, where] - ordinary[-len(text) :]).abs().max().item())
    assert worst > 0.1


# -- processor --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processors(scripts, tmp_path_factory) -> list:
    """As built, and as everybody loads it."""
    built = scripts.recipe.build_processor()
    folder = tmp_path_factory.mktemp("processor")
    built.save_pretrained(folder)
    return [built, AutoProcessor.from_pretrained(folder)]


def test_processor_gives_what_the_training_saw(scripts, processors):
    recipe, picture = scripts.recipe, sample_scene(1).draw(scripts.recipe.IMAGE_SIZE)
    question = "where is the red car ?"
    expected = [recipe.BOS, *[recipe.IMAGE] * recipe.IMAGE_TOKENS, *recipe.encode(question)]
    for processor in processors:
        inputs = build_inputs(processor, [picture], ["the red car"], scripts.head.TEMPLATE)
        assert inputs["input_ids"].tolist() == [expected]
        torch.testing.assert_close(inputs["pixel_values"][0], pixels_of(scripts, picture), atol=1e-5, rtol=0)


def test_processor_round_trip(scripts, processors):
    pictures = [noise_image(70, 300), noise_image(384, 384, seed=1)]
    prompts = ["the Red car", "every zebra"]  # another case, a word that is not known
    first, second = (build_inputs(processor, pictures, prompts, "describe {prompt} ?") for processor in processors)
    assert set(first) == set(second)
    for key in first:
        assert torch.equal(first[key], second[key]), key
    assert first["pixel_values"].shape == (2, 3, scripts.recipe.IMAGE_SIZE, scripts.recipe.IMAGE_SIZE)
    said = processors[1].batch_decode(first["input_ids"], skip_special_tokens=True)
    assert [text.strip() for text in said] == ["describe the red car ?", "describe every ?"]
    assert (first["input_ids"][1] == scripts.recipe.UNKNOWN).sum() == 1


WRITTEN = {
    "the sheep": ("The sheep!", "the SHEEP...", "“the sheep”", "(the sheep)", "the sheep's", " the  sheep ;\n"),
    "where is the dog ?": ("Where is the dog?", "where is the dog ??!", "where, is: the dog ?"),
    "the pizza and the sheep": ("the pizza & the sheep", "The pizza, and the sheep."),
    "is a mask wanted : the dog": ("is a mask wanted : the dog",),
}


@pytest.mark.parametrize("read", WRITTEN)
def test_words_are_read_however_they_are_written(scripts, processors, read):
    for processor in processors:
        for text in (read, *WRITTEN[read]):
            assert processor.tokenizer(text)["input_ids"] == [scripts.recipe.BOS, *scripts.recipe.encode(read)], text
            assert unknown_words(processor, [text]) == []
        assert unknown_words(processor, ["Teh dog, <b> 🐕!"]) == ["Teh", "<", "b", ">", "🐕"]


def test_whatever_is_said_is_read_as_the_trainings_read_it(scripts, processors):
    recipe = scripts.recipe
    for index in range(40):
        for wording in WORDINGS:
            speaker = Speaker(sample_scene(index), np.random.default_rng(index), wording)
            made = [*map(speaker.expression, EXPRESSION_KINDS), *map(speaker.question, QUESTION_KINDS)]
            for text in (one.text for one in made if one is not None):
                assert processors[1].tokenizer(text)["input_ids"] == [recipe.BOS, *recipe.encode(text)], text


def test_a_training_goes_on_from_weights_that_know_fewer_words(scripts, monkeypatch, tmp_path):
    recipe, known = scripts.recipe, 300
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "WORDS", recipe.WORDS[:known])
        patch.setattr(recipe, "WORD_ID", {word: index for index, word in enumerate(recipe.WORDS)})
        old = recipe.build_model()
        old.save_pretrained(tmp_path)
        recipe.build_processor().save_pretrained(tmp_path)
    fresh, grown = recipe.build_model(), recipe.build_model()
    assert torch.equal(fresh.get_input_embeddings().weight[:known], old.get_input_embeddings().weight)
    recipe.load_start(grown, tmp_path)
    for part in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        rows = grown.state_dict()[part]
        assert torch.equal(rows[:known], old.state_dict()[part])
        assert torch.equal(rows[known:], fresh.state_dict()[part][known:])
    same = "model.vision_tower"
    assert all(torch.equal(grown.state_dict()[k], v) for k, v in old.state_dict().items() if k.startswith(same))
    monkeypatch.setattr(recipe, "WORDS", [*recipe.WORDS[:5], "zebra", *recipe.WORDS[5:]])
    with pytest.raises(SystemExit, match="not the first"):
        recipe.load_start(grown, tmp_path)


def test_processor_shrinks_as_the_features_of_the_heads_are_shrunk(scripts, processors):
    large, size = sample_scene(2).draw(384), scripts.recipe.IMAGE_SIZE
    small = pixels_of(scripts, large.resize((size, size), Image.Resampling.BICUBIC))
    shrunk = build_inputs(processors[1], [large], ["it"], "{prompt}")["pixel_values"][0]
    assert (small - shrunk).abs().max() < 0.05


def test_an_unknown_word_stops_the_training(scripts):
    with pytest.raises(KeyError, match="zebra"):
        scripts.recipe.encode("where is the zebra ?")


@torch.no_grad()
def test_cached_features_are_the_ordinary_road(scripts, model, processors):
    """Training a head from cached image features taps what `segment` taps: same hidden states, same layouts."""
    texts = ["the red car", "the leftmost animal that gives milk"]
    pictures = [sample_scene(index).draw(scripts.recipe.IMAGE_SIZE) for index in range(2)]
    settings = {"fusion": "lite", "fusion_width": 32, "sam": tiny_sam(), "prompt_template": scripts.head.TEMPLATE}
    with LensAdapter.from_model(model, processors[0], load_sam=False, **settings) as adapter:
        inputs = adapter.base.build_inputs(pictures, texts)
        read = adapter.base.read(pictures, texts, inputs=inputs)
        expected, layouts = read.signals, read.layouts
        pixels = torch.stack([pixels_of(scripts, picture) for picture in pictures])
        tokens = scripts.recipe.image_features(model, pixels)
        cached = scripts.head.read_features(adapter, model, tokens, texts)
        signals, cached_layouts = cached.signals, cached.layouts
    real = inputs["attention_mask"].bool()
    assert torch.equal(signals.attention_mask.bool(), real)
    torch.testing.assert_close(signals.hidden[real], expected.hidden[real], atol=1e-3, rtol=1e-3)
    for ours, theirs in zip(cached_layouts, layouts, strict=True):
        assert torch.equal(ours.positions, theirs.positions) and ours.grid == theirs.grid
        torch.testing.assert_close(ours.boxes, theirs.boxes.to(ours.boxes.dtype))


# -- sessions ---------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def train(scripts, monkeypatch, *, kill_at: int | None = None) -> tuple[torch.Tensor, list[list[int]]]:
    """Six steps, of a minute each by this clock, of a training that adds up what it is given."""
    clock = iter(range(0, 10**6, 60))
    monkeypatch.setattr(scripts.recipe, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    session = scripts.recipe.Session("try", 6, {"model": model, "sgd": optimizer}, every=90.0)  # every second step
    stream = scripts.recipe.batches(lambda index: index, 3, session.step, list, workers=0)
    seen = []
    for progress in session.steps():
        assert progress == pytest.approx(session.step / 6)
        seen.append(next(stream))
        optimizer.zero_grad()
        (model.weight * float(sum(seen[-1]))).sum().backward()
        optimizer.step()
        if session.step == kill_at:
            raise Killed
    return model.weight.detach(), seen


def test_a_session_goes_on_where_its_checkpoint_was(scripts, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(scripts.recipe, "WORK", tmp_path / "straight")
    straight, seen = train(scripts, monkeypatch)
    assert seen == [list(range(3 * step, 3 * step + 3)) for step in range(6)]
    monkeypatch.setattr(scripts.recipe, "WORK", tmp_path / "killed")
    with pytest.raises(Killed):
        train(scripts, monkeypatch, kill_at=3)  # in the fourth step; the checkpoint is of the end of the second
    resumed, again = train(scripts, monkeypatch)
    assert "resumed at step 2, 2.0 of 6 minutes" in capsys.readouterr().out
    assert again == seen[2:]
    assert torch.equal(resumed, straight)
    assert not list((tmp_path / "killed" / "try").glob("*.tmp"))
    _, nothing = train(scripts, monkeypatch)  # its time is spent
    assert nothing == []


def test_a_log_prints_means_and_keeps_them(scripts, monkeypatch, tmp_path):
    monkeypatch.setattr(scripts.recipe, "WORK", tmp_path)
    session = scripts.recipe.Session("logged", 1, {})
    assert session.log(every=2, loss=1.0) is None
    session.step = 1
    assert session.log(every=2, loss=3.0) == {"loss": 2.0}
    assert (tmp_path / "logged" / "log.jsonl").read_text() == '{"step": 2, "minutes": 0.0, "loss": 2.0}\n'


def test_workers_give_the_same_stream(scripts):
    streams = [scripts.recipe.batches(lambda index: index**2, 2, 5, list, workers) for workers in (0, 1)]
    assert [next(streams[0]) for _ in range(3)] == [next(streams[1]) for _ in range(3)]


# -- samples ----------------------------------------------------------------------------------------------------------


def test_samples_fit_their_scenes(scripts):
    scene = sample_scene(7)
    pictures, clicks, masks = scripts.sam.make_sample(7)
    truth = scripts.sam.covered(scene.masks(scripts.sam.SIDE), scripts.sam.LOW)
    assert pictures.shape == (3, scripts.sam.SIDE, scripts.sam.SIDE)
    for (x, y), mask in zip((clicks / 2).long().tolist(), masks, strict=True):
        assert any(torch.equal(mask, one) for one in truth) and mask[y, x] > 0

    number, texts, masks, present = scripts.head.make_sample(scripts.head.SCENES + 7, side=64, low=16)
    assert number == 7 and len(texts) == len(masks) == scripts.head.EXPRESSIONS and masks.shape[1:] == (16, 16)
    assert torch.equal(present, masks.flatten(1).any(1))


def test_samples_of_the_tiny_sam_2(scripts):
    sam2, scene = scripts.sam2, sample_scene(7)
    pictures, clicks, masks = sam2.make_sample(7)
    truth = scripts.sam.covered(scene.masks(sam2.SIDE), sam2.LOW)
    assert pictures.shape == (3, sam2.SIDE, sam2.SIDE) and len(clicks) == len(masks) == sam2.CLICKS + 1
    for (x, y), mask in zip((clicks[:-1] / 2).long().tolist(), masks, strict=False):
        assert any(torch.equal(mask, one) for one in truth) and mask[y, x] > 0
    x, y = clicks[-1].long().tolist()
    assert not masks[-1].any() and not scene.masks(sam2.SIDE)[:, y, x].any()


@torch.no_grad()
def test_the_tiny_sam_2_starts_as_the_tiny_sam(scripts):
    sam2, teacher = scripts.sam2, SamModel.from_pretrained(builtin.SAM).eval()
    model = sam2.build().eval()
    sam2.start_decoder(model, teacher)
    pixels, points = torch.randn(1, 3, sam2.SIDE, sam2.SIDE), torch.tensor([[[[100.0, 60.0]]]])
    own = model.get_image_embeddings(pixels)
    assert all(torch.equal(*pair) for pair in zip(sam2.embeddings_of(model, pixels), own, strict=True))
    labels, smaller = torch.ones(points.shape[:-1], dtype=torch.int), scripts.sam.SIDE / sam2.SIDE
    same = points * smaller - 0.5 * (1 - smaller)  # both count half a pixel in
    prompts, taught = (
        part.prompt_encoder(place, labels, None, None)[0] for part, place in ((model, points), (teacher, same))
    )
    torch.testing.assert_close(prompts, taught)
    assert sam2.taught_embeddings(teacher, torch.zeros(2, 3, 256, 256, dtype=torch.uint8)).shape == (2, 64, 32, 32)


def test_the_words_of_a_patch_are_those_of_the_thing_there(scripts):
    found, tower, grid = scripts.tower.describe(7), scripts.tower, scripts.recipe.GRID
    scene, state, ids = sample_scene(7, "words"), found["state"], found["ids"]
    assert found["picture"].shape == (128, 128, 3) and found["picture"].dtype == np.uint8
    assert set(state.tolist()) == {-1, 0, 1}
    cells = [int(thing.y * grid) * grid + int(thing.x * grid) for thing in scene.objects]
    assert len(set(cells)) == len(cells) and np.flatnonzero(ids[:, -1]).tolist() == sorted(cells)
    for thing, cell in zip(scene.objects, cells, strict=True):
        words = [scripts.recipe.WORDS[index] for index in ids[cell, :-1]]
        assert dict(zip(tower.LOOKS, words, strict=True)) == {look: thing.look(look) for look in tower.LOOKS}
        assert state[cell] == 1
    patches = scene.masks(128).any(0).reshape(grid, 16, grid, 16).mean(axis=(1, 3)).ravel()
    assert patches[state == 0].max() < 0.05 and patches[state == 1].min() > 0.1
    places = tower.place_vectors(torch.eye(len(scripts.recipe.WORDS)))
    x5_y2 = places[2 * grid + 5]
    assert [scripts.recipe.WORDS[index] for index in x5_y2.nonzero().flatten()] == ["x5", "y2"]


# -- scenes that are kept ---------------------------------------------------------------------------------------------


def test_what_is_drawn_is_drawn_once(scripts, monkeypatch, tmp_path):
    monkeypatch.setattr(scripts.recipe, "WORK", tmp_path)
    made = []

    def make(index: int) -> dict[str, np.ndarray]:
        made.append(index)
        return {"square": np.array([index, index**2]), "odd": np.array(index % 2 == 1)}

    for _ in range(2):  # the second time from the disk
        drawn = scripts.recipe.Drawn("squares", 5, make)
        for index in (3, 4, 3):
            assert drawn[index]["square"].tolist() == [index, index**2] and drawn[index]["odd"] == (index == 3)
    assert made == [0, 3, 4, 0]  # 0: to see what there is to keep
    with pytest.raises(SystemExit, match=r"squares/square.npy holds int64 \(5, 2\), expected int64 \(6, 2\)"):
        scripts.recipe.Drawn("squares", 6, make)


@pytest.fixture
def few_scenes(scripts, monkeypatch, tmp_path) -> int:
    """The language model's scenes, few, and away from those of a real training."""
    monkeypatch.setattr(scripts.recipe, "WORK", tmp_path)
    monkeypatch.setattr(scripts.language, "SCENES", 50)
    scripts.language.drawn.cache_clear()
    yield 50
    scripts.language.drawn.cache_clear()


@torch.no_grad()
def test_the_language_model_learns_from_what_the_tower_says_of_scenes(scripts, model, few_scenes, tmp_path):
    language = scripts.language
    features = language.read_scenes(model, tmp_path)
    pictures = np.stack([language.drawn()[number]["picture"] for number in (0, 49)])
    expected = scripts.recipe.image_features(model, scripts.recipe.normalized(torch.from_numpy(pictures)))
    torch.testing.assert_close(torch.from_numpy(features[[0, 49]]).float(), expected, atol=2e-3, rtol=2e-3)
    (kept,) = tmp_path.glob("features-*.npy")
    stamp = kept.stat().st_mtime_ns
    assert np.array_equal(language.read_scenes(model, tmp_path), features) and kept.stat().st_mtime_ns == stamp
    for index, reached in ((1, 0), (2, 3), (3, 3)):
        tokens, questions = language.make_sample(index, reached, features)
        (number,) = (
            k for k in range(few_scenes) if torch.equal(tokens, torch.from_numpy(features[k].astype(np.float32)))
        )
        scene = sample_scene(language.FIRST + number, "words")
        assert len(scene.objects) <= language.LEVELS[reached].count[1]
        assert len({question.text for question in questions}) == len(questions) > 3
        for question in questions:
            assert question.kind == "routing" or question.answer == reading.answer_everyday(scene, question.text)
    weight = next(model.model.multi_modal_projector.parameters())
    weight.mul_(2)  # what other weights say is read anew
    language.read_scenes(model, tmp_path)
    weight.div_(2)
    assert len([*tmp_path.glob("features-*.npy")]) == 2


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["mirror", "lite"])
def test_what_no_head_reads_may_be_taught_alone(scripts, model, processors, fusion):
    """`--unread` leaves every signal of a head as it was."""
    picture = sample_scene(0).draw(scripts.recipe.IMAGE_SIZE)
    inputs = build_inputs(processors[0], [picture], ["the red car"], scripts.head.TEMPLATE)
    settings = {**scripts.head.HEADS[fusion], "sam": tiny_sam(), "prompt_template": scripts.head.TEMPLATE}
    unread = [p for name, p in model.named_parameters() if name.startswith(scripts.language.UNREAD)]
    assert len(unread) == 2 + 1 + 3 + 1 + 1
    with LensAdapter.from_model(model, processors[0], load_sam=False, fusion=fusion, **settings) as adapter:
        before = adapter.prefill(inputs)
        for parameter in unread:
            parameter.mul_(-1)
        after = adapter.prefill(inputs)
        for parameter in unread:
            parameter.mul_(-1)
    assert torch.equal(before.hidden, after.hidden) and before.attention.keys() == after.attention.keys()
    assert all(torch.equal(before.attention[layer], rows) for layer, rows in after.attention.items())


# -- SAM --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_tiny_sam_as_a_transformers_model(scripts, tmp_path):
    small = {**scripts.sam.TINY_SAM, "image_size": 64, "embed_dim": 32, "depth": 2, "global_attention_layers": [1]}
    sam = LensConfig(sam={**small, "window_size": 3}).sam
    decoder = randomize(SamDecoder(sam), seed=3)
    published = scripts.sam.to_sam_model(decoder)
    published.save_pretrained(tmp_path)
    loaded = SamDecoder(sam).eval()
    loaded.load_weights(tmp_path)
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name

    picture = noise_image(64, 64)
    pixels, _ = decoder.preprocess([picture])
    clicks = torch.tensor([[[20.0, 30.0]], [[50.0, 10.0]]])  # (N, 1, 2)
    labels = torch.ones(2, 1, dtype=torch.int)
    sparse, _ = decoder.prompt_encoder(points=(clicks, labels), boxes=None, masks=None)
    logits, quality, _ = decoder(decoder.encode_images([picture]), torch.zeros(2, dtype=torch.long), sparse)
    theirs = published(pixels, input_points=clicks[None], input_labels=labels[None], multimask_output=False)
    torch.testing.assert_close(theirs.pred_masks[0, :, 0], logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(theirs.iou_scores[0, :, 0], quality, atol=1e-4, rtol=1e-4)


def test_pictures_reach_sam_as_its_decoder_prepares_them(scripts):
    sam = LensConfig(sam=scripts.sam.TINY_SAM).sam
    picture = sample_scene(0).draw(scripts.sam.SIDE)
    expected, _ = SamDecoder(sam).preprocess([picture])
    raw = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    torch.testing.assert_close(scripts.sam.normalized(sam, raw), expected)


# -- report -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["README.md", "docs/pipelines-and-chat.md"])
def test_report_quotes_the_figures_between_its_markers(scripts, page):
    report, used = scripts.report, []

    class Figures(dict):
        def __missing__(self, name: str) -> float:
            used.append(name)
            return self.setdefault(name, round(0.001 * (len(self) + 100), 3))

    figures = Figures()
    text = f"before\n{report.BEGIN}\nstale\n{report.END}\nafter"
    written = report.with_tables(page, text, figures)
    assert written.startswith(f"before\n{report.BEGIN}\n") and written.endswith(f"{report.END}\nafter")
    assert "stale" not in written and report.with_tables(page, written, figures) == written
    for name in used:
        assert f"{figures[name]:.3f}" in written or f"{figures[name]:.1%}" in written, name
    expected = {"heads.mirror.giou.reasoning", "baselines.random_object.giou.held_out_fact", "answers.counting"}
    routing = {"routing.balanced_accuracy", "routing.held_out_template.taken_for_requests.mixed"}
    assert set(used) >= (expected if page == "README.md" else routing)


def test_the_report_of_how_people_talk_waits_for_its_figures(scripts):
    figures = json.loads(scripts.report.FIGURES.read_text())
    spoken = [f"heads.{head}.{key}" for head in ("mirror", "lite") for key in scripts.report.SPOKEN.values()]
    places = [f"answers.{kind}{near}" for kind in scripts.report.PLACES for near in ("", "_within_one_cell")]
    without = {key: value for key, value in figures.items() if key not in (*spoken, *places)}
    shorter = scripts.report.tables(without | {"answers.where_within_one_cell": 0.5})
    assert "as people talk" not in shorter and "itself says" not in shorter
    whole = scripts.report.tables(figures | dict.fromkeys(spoken, 0.123) | dict.fromkeys(places, 0.456))
    assert whole.count("0.123") >= len(spoken) and whole.count("45.6%") >= len(places)


def test_the_report_quotes_nothing_that_is_not_measured(scripts):
    """Every figure that a page asks for is one that the evaluation writes."""
    from lens_adapter.builtin.exam import EXPRESSIONS, HELD_OUT, LIMITS, QUESTIONS, SPOKEN
    from lens_adapter.builtin.world import REQUEST_KINDS

    report = scripts.report
    groups = {key.rpartition(".")[2] for key in (*report.COLUMNS.values(), *report.HELD_OUT.values())}
    assert groups == {*EXPRESSIONS, *HELD_OUT, "all"} - {"absent"}
    assert {*report.ANSWERS} == {*QUESTIONS, "where_within_one_cell"} - {"where"}
    assert {key.removeprefix("giou.") for key in report.SPOKEN.values()} == {*SPOKEN}
    assert {*report.PLACES} == {"where", *LIMITS}
    assert report.REQUESTS == REQUEST_KINDS
