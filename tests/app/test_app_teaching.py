"""Teaching by clicking, without the page."""

from __future__ import annotations

import json
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

from lens_adapter import LensAdapter
from lens_adapter.app import kept, teaching
from lens_adapter.app.examples import EXAMPLES, PICTURE_SIZE
from lens_adapter.app.findings import find
from lens_adapter.app.loopback import is_asked_here, is_loopback
from lens_adapter.app.teaching import Click, Drawing, Taught, Teacher
from lens_adapter.builtin.world.scenes import sample_scene
from lens_adapter.data.folder import read_folder
from lens_adapter.errors import FitError, HubError, InputError
from lens_adapter.evaluation import overlap
from lens_adapter.fitting import FitReport
from tests.tiny.sam import noise_image


@pytest.fixture
def teacher(adapter, tmp_path):
    return Teacher(adapter, tmp_path / "taught", sam="builtin", publishes=True)


@pytest.fixture
def drawn(tmp_path):
    """A drawing without a SAM: its mask is the left half."""
    picture = noise_image(40, 60)
    mask = np.zeros((40, 60), bool)
    mask[:, :30] = True
    return Drawing.of(picture).drawn((Click(0.2, 0.5),), mask)


def middle(mask: np.ndarray) -> tuple[float, float]:
    """The pixel of a bool mask (H, W) that is nearest to its mean, as fractions."""
    rows, columns = np.nonzero(mask)
    k = np.hypot(rows - rows.mean(), columns - columns.mean()).argmin()
    return (columns[k] + 0.5) / mask.shape[1], (rows[k] + 0.5) / mask.shape[0]


def test_clicks_draw_things_and_take_them_back(teacher):
    scene = EXAMPLES[1].scene()
    masks = scene.masks(PICTURE_SIZE)
    first, second = EXAMPLES[1].prompts["both cars"]
    blank = Drawing.of(scene.draw(PICTURE_SIZE))
    one = teacher.click(blank, Click(*middle(masks[first])))
    assert overlap(one.mask, masks[first]).iou > 0.7
    both = teacher.click(one, Click(*middle(masks[second])))
    assert overlap(both.mask, masks[first] | masks[second]).iou > 0.7  # not one thing between the two
    assert (teacher.undo(both).mask == one.mask).all() and teacher.undo(both).clicks == one.clicks
    assert not teacher.undo(one).mask.any() and not both.cleared().mask.any()
    assert not teacher.click(blank, Click(*middle(masks[first]), adds=False)).mask.any()
    assert blank.show().tobytes() != one.show().tobytes() != both.show().tobytes()


def test_too_many_clicks(teacher, drawn, monkeypatch):
    monkeypatch.setattr(teaching, "MOST_CLICKS", 1)
    with pytest.raises(InputError, match=r"At most 1 clicks.*Undo"):
        teacher.click(drawn, Click(0.5, 0.5))


def test_what_is_kept_is_a_data_folder_at_once(teacher, drawn):
    assert teacher.folder.all() == []
    after = teacher.keep(drawn, "  the  left half ")
    assert not after.mask.any() and after.clicks == () and after.source is drawn.source
    teacher.keep(drawn, "die linke Hälfte")
    records = read_folder(teacher.folder.path)
    assert [record.prompts for record in records] == [["the left half"], ["die linke Hälfte"]]
    for record in records:
        (example,) = record.load()
        assert (example.mask == drawn.mask).all() and example.image.tobytes() == drawn.source.tobytes()
    assert len(list((teacher.folder.path / "images").iterdir())) == 1  # the same picture
    again = kept.KeptFolder(teacher.folder.path)  # as the page does when it is opened again
    assert [one.prompt for one in again.all()] == ["the left half", "die linke Hälfte"]
    assert again.thumbnail(again.all()[0]).size == (60, 40)


def test_an_upload_is_copied_and_its_mask_fits_it_upright(teacher, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: 64 x 40 is shown as 40 x 64
    noise_image(40, 64).save(tmp_path / "Photo.JPG", exif=exif)
    drawing = Drawing.of(tmp_path / "Photo.JPG")
    assert drawing.small.size == (40, 64)
    mask = np.zeros((64, 40), bool)
    mask[:10] = True
    teacher.keep(drawing.drawn((Click(0.5, 0),), mask), "the top")
    (record,) = read_folder(teacher.folder.path)
    assert record.image.read_bytes() == (tmp_path / "Photo.JPG").read_bytes()
    assert (record.load()[0].mask == mask).all()


def test_what_is_removed_takes_its_files_along_and_leaves_those_of_others(teacher, drawn):
    for name in ("one", "two"):
        teacher.keep(drawn, name)
    folder = teacher.folder.path
    noise_image(8, 8, seed=1).save(folder / "images" / "mine.png")
    Image.new("1", (8, 8), 1).save(folder / "masks" / "mine.png")
    line = {"image": "mine.png", "mask": "mine.png", "prompt": "all"}
    with (folder / "prompts.jsonl").open("a") as file:
        file.write("no json\n" + json.dumps(line))  # by hand: one broken line, and no end of the last one
    one, two, mine = teacher.folder.all()
    teacher.folder.remove(one)
    assert len(list((folder / "masks").iterdir())) == 2 and len(list((folder / "images").iterdir())) == 2
    teacher.folder.remove(two)
    teacher.folder.remove(mine)
    assert teacher.folder.all() == []
    assert {path.name for path in (*(folder / "masks").iterdir(), *(folder / "images").iterdir())} == {"mine.png"}
    assert (folder / "prompts.jsonl").read_text() == "no json\n"
    with pytest.raises(InputError, match="gone already"):
        teacher.folder.remove(one)


@pytest.mark.parametrize("name, complaint", [(" ", "Name the thing"), ("a" * 201, "at most 200 characters")])
def test_names_that_cannot_be(teacher, drawn, name, complaint):
    with pytest.raises(InputError, match=complaint):
        teacher.keep(drawn, name)
    assert not teacher.folder.path.exists()


def test_nothing_to_keep(teacher, drawn):
    with pytest.raises(InputError, match="Open a picture"):
        teacher.keep(None, "a cup")
    with pytest.raises(InputError, match="Click a thing"):
        teacher.keep(drawn.cleared(), "a cup")


def test_a_full_folder_and_one_that_cannot_be(adapter, drawn, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not kept"):
        Teacher(adapter, tmp_path / "file" / "in it", sam="builtin").keep(drawn, "a cup")
    monkeypatch.setattr(kept, "MOST_EXAMPLES", 1)
    teacher = Teacher(adapter, tmp_path / "full", sam="builtin")
    teacher.keep(drawn, "a cup")
    with pytest.raises(InputError, match=r"all it may.*Remove"):
        teacher.keep(drawn, "a saucer")


def teach(teacher: Teacher, count: int) -> None:
    """Name the first things of scenes by their kinds and colors, with their exact masks."""
    for index in range(40_000, 40_000 + count):
        scene = sample_scene(index, "test")
        picture, masks = scene.draw(192), scene.masks(192)
        for mask, thing in list(zip(masks, scene.objects, strict=True))[:2]:
            teacher.folder.keep(picture, np.asarray(mask), f"the {thing.name}")


def test_fit_try_and_take_along(teacher, adapter, files, tmp_path):
    teach(teacher, 12)
    before = adapter.head
    taught = teacher.fit()
    assert taught.report.images == 12 and taught.report.pointing > taught.report.chance
    assert adapter.head is before and taught.adapter is not adapter  # a head of one's own; that of the page stays
    drawing = Drawing.of(files[0])
    result = taught.find(drawing, "the pizza\nthe butterfly")
    masks = result.masks([0, 1])
    assert masks.shape == (2, PICTURE_SIZE, PICTURE_SIZE)
    with pytest.raises(InputError, match="Open a picture"):
        taught.find(None, "a cup")
    with ZipFile(taught.archive) as archive:
        assert {"lens-readout/config.json", "lens-readout/model.safetensors"} <= set(archive.namelist())
        archive.extractall(tmp_path)
    assert sum(info.file_size for info in archive.infolist()) < 100_000
    loaded = LensAdapter.from_pretrained(tmp_path / "lens-readout")
    with loaded.attach(teacher.base.model, teacher.base.processor):
        again = loaded.segment(drawing.source, [record["prompt"] for record in result.records])
    assert (again.masks == masks).all()
    held = taught.archive
    del taught
    assert not held.exists()


def test_too_few_and_masks_of_anything_are_refused(teacher, drawn):
    teacher.keep(drawn, "a cup")
    with pytest.raises(InputError, match="at least 4 pictures"):
        teacher.fit()
    rng = np.random.default_rng(0)
    for seed in range(12):
        mask = np.zeros((40, 60), bool)
        y, x = rng.integers(0, 36), rng.integers(0, 56)
        mask[y : y + 4, x : x + 4] = True
        teacher.folder.keep(noise_image(40, 60, seed), mask, "a cup")
    with pytest.raises(FitError, match="may be chance"):
        teacher.fit()


def test_a_page_without_a_head_says_where_to_get_one(adapter, files):
    base = adapter.base
    empty = LensAdapter.from_model(base.model, base.processor, load_sam=False, fusion="readout", sam="builtin")
    with pytest.raises(InputError, match="no head yet"):
        find(empty, files[0], "a cup")


def test_pushing(adapter, monkeypatch):
    taught = Taught(adapter, FitReport([], 1, 0, 1, 0, 0, 0, None, 0), False)
    with pytest.raises(InputError, match="Type where the head goes"):
        taught.push("  ", private=True)

    def refuse(repository: str, *, private: bool) -> None:
        raise HubError(f"{repository} {private}")

    monkeypatch.setattr(adapter, "push_to_hub", refuse)
    with pytest.raises(HubError, match="me/head True"):
        taught.push(" me/head ", private=True)


@pytest.mark.parametrize(
    "host, local",
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("10.0.0.3", False),
        ("me.org", False),
    ],
)
def test_which_hosts_are_this_machine_alone(host, local):
    assert is_loopback(host) == local


@pytest.mark.parametrize(
    "headers, here",
    [
        ({"host": "127.0.0.1:7860"}, True),
        ({"host": "localhost"}, True),
        ({"host": "[::1]:7860"}, True),
        ({"host": "rebound.example:7860"}, False),
        ({"host": "localhost", "x-forwarded-for": "10.1.2.3"}, False),
        ({"host": "localhost", "forwarded": "for=10.1.2.3"}, False),
        ({}, False),
    ],
)
def test_which_requests_are_made_here(headers, here):
    assert is_asked_here(headers) == here
