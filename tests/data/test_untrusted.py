"""Data of strangers: names that lead out of their folder, and files that are not what they are called."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lens_adapter.data.coco import read_coco
from lens_adapter.data.examples import Examples
from lens_adapter.data.folder import read_folder
from lens_adapter.data.hub import Columns, read_hub
from lens_adapter.data.masks import ShownSize, decode
from lens_adapter.data.refer import read_refer
from lens_adapter.data.semantic import LabelMaps
from lens_adapter.errors import BrokenRecordError, InputError
from tests.data.formats import annotation, corners, instances, jpeg, picture, write_image, write_json, write_levels
from tests.data.test_refer import IMAGES, reference, write_set

SECRET = "secret.png"  # a picture outside of the folder of images


@pytest.fixture
def gs(monkeypatch):
    """No program may run."""
    for name in ("run", "call", "check_call", "check_output", "Popen"):
        monkeypatch.setattr(f"subprocess.{name}", lambda *_, **__: pytest.fail("a program was run"))


def postscript() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (12, 8), "red").save(buffer, "EPS")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["absolute", "climbing", "climbing within"])
def test_names_that_lead_out_of_their_folder_are_refused(tmp_path, kind):
    secret = write_image(tmp_path / SECRET)
    name = {"absolute": str(secret), "climbing": f"../{SECRET}", "climbing within": f"a/../../{SECRET}"}[kind]
    one = annotation(11, 1, [corners(2, 1, 7, 5)])
    write_image(tmp_path / "images" / "a" / "1.jpg")
    coco = write_json(tmp_path / "coco.json", instances([picture(1, name)], [one]))
    with pytest.raises(BrokenRecordError, match="the name of a file inside"):
        read_coco(coco, tmp_path / "images")
    assert read_coco(coco, tmp_path / "images", on_error="skip") == []

    (tmp_path / "refer" / "images" / "mscoco" / "images" / SECRET).parent.mkdir(parents=True)
    root = write_set(tmp_path / "refer", [reference(0, 11, 1, ["it"])])
    write_image(root / IMAGES / ".." / SECRET)
    write_json(root / "refcoco" / "instances.json", instances([picture(1, name)], [one]))
    with pytest.raises(BrokenRecordError, match="the name of a file inside"):
        read_refer(root)
    assert read_refer(root, on_error="skip") == []


def test_postscript_by_another_name_reaches_no_program(tmp_path, gs):
    script = tmp_path / "script.png"
    script.write_bytes(postscript())
    for region in (script, str(script), script.read_bytes()):
        with pytest.raises(InputError, match="it is none of JPEG"):
            decode(region, ShownSize((8, 12)))

    one = annotation(11, 1, [corners(2, 1, 7, 5)])
    coco = write_json(tmp_path / "coco.json", instances([picture(1, "script.png")], [one]))
    refer = write_set(tmp_path / "refer", [reference(0, 11, 1, ["it"])])
    (refer / IMAGES / "COCO_train2014_000000000001.jpg").write_bytes(postscript())
    folder = tmp_path / "folder"
    write_image(folder / "images" / "a.png")
    write_levels(folder / "masks" / "a.png", np.ones((8, 12)))
    for part in ("images", "masks"):
        (folder / part / "script.png").write_bytes(postscript())
    (folder / "prompts.jsonl").write_text(
        '{"image": "script.png", "mask": "a.png", "prompt": "it"}\n'
        '{"image": "a.png", "mask": "script.png", "prompt": "it"}\n'
    )
    write_levels(tmp_path / "labels" / "script.png", np.zeros((8, 12)))
    write_image(tmp_path / "maps" / "script.png").write_bytes(postscript())
    row = {"image": {"bytes": jpeg()}, "text": "it", "mask": {"bytes": postscript()}}
    sources = [
        read_coco(coco, tmp_path),
        read_refer(refer),
        read_folder(folder),
        LabelMaps(tmp_path / "maps", tmp_path / "labels", ["it"]),
        read_hub([{**row, "image": row["mask"], "mask": None}, row], Columns("image", "text", "mask")),
    ]
    for records in sources:
        examples = Examples(records, "skip")
        assert list(examples) == []
        assert len(examples.broken) == len(records)
        assert all("it is none of JPEG" in str(error) for error in examples.broken)


@dataclass
class Typed:
    """A feature of `datasets` that holds others."""

    feature: Any


@dataclass
class Opened:
    """Its picture."""

    decode: bool = True


Opened.__name__ = "Image"


class Rows(list):
    """A data set of one row that opens pictures itself, unless it was asked not to."""

    column_names = ("image", "text", "mask")

    def __init__(self, path: Path, features: dict[str, Any]):
        super().__init__([{"image": {"path": str(path)}, "text": "it", "mask": [{"path": str(path)}]}])
        self.features = features

    def cast_column(self, name: str, feature: Any) -> Rows:
        return Rows(Path(self[0]["image"]["path"]), {**self.features, name: feature})


@pytest.mark.parametrize("listed", [lambda feature: [feature], Typed, lambda feature: {"a": feature}])
def test_a_data_set_decodes_no_picture_wherever_it_holds_them(tmp_path, listed, monkeypatch):
    path = write_levels(tmp_path / "a.png", np.ones((8, 12)))
    cast: list[Rows] = []
    one = Rows.cast_column
    monkeypatch.setattr(Rows, "cast_column", lambda rows, *given: cast.append(one(rows, *given)) or cast[-1])
    rows = Rows(path, {"image": Opened(), "text": "a text", "mask": listed(Opened())})
    (record,) = read_hub(rows, Columns("image", "text", "mask"))
    assert cast[-1].features == {"image": Opened(False), "text": "a text", "mask": listed(Opened(False))}
    assert record.load()[0].mask.all()
