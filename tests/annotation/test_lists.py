"""Folders, lists and data sets as tasks: what is read, from where paths count, and what damage does."""

from __future__ import annotations

import base64
import json
import random
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from lens_adapter.annotation import lists
from lens_adapter.annotation.inputs import tasks_of
from lens_adapter.annotation.tasks import Tasks, opened
from lens_adapter.data.records import Record
from lens_adapter.errors import InputError, LensError
from tests.annotation.standin import write_jsonl, write_pictures


def all_of(tasks: Tasks) -> list[tuple[str, list, str]]:
    return [(task.image, list(task.prompts), task.error) for task in tasks.read(0, len(tasks))]


def png(color: str = "red") -> bytes:
    file = BytesIO()
    Image.new("RGB", (3, 2), color).save(file, "PNG")
    return file.getvalue()


def test_a_folder_is_read_by_name_and_what_is_no_picture_is_said(tmp_path, caplog):
    write_pictures(tmp_path / "b" / "deep", 2)
    write_pictures(tmp_path / "a", 1)
    write_pictures(tmp_path / ".hidden", 1)
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "a" / ".DS_Store").write_text("no picture")
    tasks = tasks_of(tmp_path)
    assert [task.image for task in tasks.read(0, 9)] == ["a/00000.png", "b/deep/00000.png", "b/deep/00001.png"]
    assert [task.image for task in tasks.read(1, 2)] == ["b/deep/00000.png"] and not tasks.asks
    assert all(opened(task)[0].size == (9, 7) for task in tasks.read(0, 2))
    assert "1 files" in caplog.text and "notes.txt" in caplog.text
    digest = tasks.digest
    assert tasks_of(tmp_path).digest == digest
    (tmp_path / "a" / "00000.png").write_bytes(png())
    assert tasks_of(tmp_path).digest != digest


def test_a_folder_without_a_picture(tmp_path):
    with pytest.raises(InputError, match="There is no picture in"):
        tasks_of(tmp_path)


def test_a_name_that_is_no_unicode(tmp_path):
    try:
        (tmp_path / "caf\udce9.png").write_bytes(png())
    except OSError:
        pytest.skip("This file system has names in Unicode alone.")
    (task,) = tasks_of(tmp_path).read(0, 1)
    assert task.image == "caf\\xe9.png" and opened(task)[0].size == (3, 2)


LAST_LINE = {".jsonl": 5, ".csv": 6, ".tsv": 6, ".parquet": 4}  # of five rows, as editors count; Parquet has no lines


@pytest.mark.parametrize("count", [3, 300])
def test_lines_are_numbered_as_editors_number_them(tmp_path, count):
    """From 1, empty lines and a header too, wherever the reading begins."""
    path = tmp_path / "list.jsonl"
    path.write_text("\n\n".join([*[json.dumps({"image": "a.png", "prompt": "p"})] * count, "broken"]))
    (task,) = tasks_of(path).read(count, count + 1)
    assert task.image == f"list.jsonl#{2 * count + 1}" and "Expected a JSON object" in task.error
    path = tmp_path / "list.csv"
    path.write_text("image,prompt\n" + "a.png,p\n\n" * count + "a.png,p,q\n")
    (task,) = tasks_of(path).read(count, count + 1)
    assert task.image == f"list.csv#{2 * count + 2}" and "Expected 2 values" in task.error


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_lists_name_pictures_from_their_own_folder_on(tmp_path, monkeypatch, suffix):
    write_pictures(tmp_path / "data" / "pictures", 2)
    write_pictures(tmp_path / "elsewhere", 1, (20, 10))
    monkeypatch.chdir(tmp_path / "elsewhere")
    rows = [
        {"image": "pictures/00000.png", "prompts": ["a dog", "a, b"]},
        {"image": str(tmp_path / "data" / "pictures" / "00001.png"), "prompts": ["Käse\n1"]},
        {"image": "../elsewhere/00000.png", "prompts": ["x"]},
        {"image": (tmp_path / "elsewhere" / "00000.png").as_uri(), "prompts": ["x"]},
        {"image": "data:image/png;base64," + base64.b64encode(png()).decode(), "prompts": ["x"]},
    ]
    path = tmp_path / "data" / f"list{suffix}"
    if suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".jsonl":
        write_jsonl(path, rows)
    else:
        import csv

        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",")
            writer.writerow(["more", "image", "prompts"])
            writer.writerows([7, row["image"], json.dumps(row["prompts"], ensure_ascii=False)] for row in rows)
    tasks = tasks_of(path)
    found = list(tasks.read(0, len(tasks)))
    assert [list(task.prompts) for task in found] == [row["prompts"] for row in rows]
    assert [task.image for task in found] == [row["image"] for row in rows[:4]] + [f"list{suffix}#{LAST_LINE[suffix]}"]
    assert [opened(task)[0].size for task in found] == [(9, 7), (9, 8), (20, 10), (20, 10), (3, 2)]


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 1000])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_any_stretch_of_a_list_can_be_read(tmp_path, count, suffix):
    path = tmp_path / f"list{suffix}"
    names = [f"{k}.png" for k in range(count)]
    if suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps({"image": name, "prompt": "p\n"}) for name in names))
    elif suffix == ".csv":
        path.write_text("image,prompt\n\n" + "".join(f'{name},"two\nlines"\n\n' for name in names))
    else:
        parquet.write_table(pa.table({"image": pa.array(names, pa.string())}), path, row_group_size=100)
    if not count:
        with pytest.raises(InputError, match="nothing to annotate"):
            tasks_of(path)
        return
    tasks = tasks_of(path)
    assert len(tasks) == count
    stretches = [(0, count), (count - 1, count), (count, count + 5), (0, 1), (100, 130), (130, 140), (255, 257), (3, 9)]
    for start, stop in stretches:
        assert [task.image for task in tasks.read(start, stop)] == names[start:stop], (start, stop)


def test_parquet_may_hold_the_pictures_themselves(tmp_path):
    image = pa.array(
        [{"bytes": png(), "path": "red.png"}, {"bytes": None, "path": "file.png"}, {"bytes": png(), "path": None}]
    )
    (tmp_path / "file.png").write_bytes(png("blue"))
    parquet.write_table(pa.table({"image": image, "prompt": ["a", "b", None]}), tmp_path / "structs.parquet")
    found = list(tasks_of(tmp_path / "structs.parquet").read(0, 3))
    assert [(task.image, list(task.prompts)) for task in found] == [
        ("red.png", ["a"]), ("file.png", ["b"]), ("structs.parquet#2", []),
    ]  # fmt: skip
    assert [opened(task)[0].getpixel((0, 0)) for task in found] == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]
    parquet.write_table(pa.table({"image": pa.array([png()], pa.binary())}), tmp_path / "bytes.parquet")
    tasks = tasks_of(tmp_path / "bytes.parquet")
    assert opened(next(tasks.read(0, 1)))[0].size == (3, 2) and not tasks.asks


def test_a_digest_changes_with_the_list(tmp_path):
    for suffix, write in (
        (".jsonl", lambda path, prompt: write_jsonl(path, [{"image": "a.png", "prompt": prompt}])),
        (".csv", lambda path, prompt: path.write_text(f"image,prompt\na.png,{prompt}\n")),
        (".parquet", lambda path, prompt: parquet.write_table(pa.table({"image": ["a"], "prompt": [prompt]}), path)),
    ):
        path, digests = tmp_path / f"list{suffix}", []
        for prompt in ("a dog", "a cat", "a dog"):
            write(path, prompt)
            digests.append(tasks_of(path).digest)
        assert digests[0] == digests[2] != digests[1], suffix


@pytest.mark.parametrize(
    "row, said",
    [
        ('{"image": "a.png", "image": "b.png"}', "a key stands twice"),
        ("{", "Expected a JSON object"),
        ("[1]", "Expected a JSON object"),
        ("[" * 100000, "Expected a JSON object"),
        ('{"prompt": "x"}', "Its image must be a path"),
        ('{"image": 7, "prompt": "x"}', "Its image must be a path"),
        ('{"image": "", "prompt": "x"}', "Its image must be a path"),
        ('{"image": "\\ud800.png", "prompt": "x"}', "Its image must be a path"),
        ('{"image": "a.png", "prompt": "x", "prompts": ["y"]}', "both a prompt and prompts"),
        ('{"image": "HTTP://host/a.png", "prompt": "x"}', "Nothing is fetched"),
        ('{"image": "s3://bucket/a.png", "prompt": "x"}', "Nothing is fetched"),
        ('{"image": "file://host/a.png", "prompt": "x"}', "A file URI names a file here"),
        ('{"image": "file://[x/a.png", "prompt": "x"}', "cannot be understood"),
        ('{"image": {"path": "https://host/a.png"}, "prompt": "x"}', "Nothing is fetched"),
        ('{"image": {}, "prompt": "x"}', "Its image must be a path"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(tmp_path, row, said):
    (tmp_path / "list.jsonl").write_text(f'{{"image": "a.png", "prompt": "x"}}\n{row}\n', encoding="utf-8")
    first, second = all_of(tasks_of(tmp_path / "list.jsonl"))
    assert first[2] == "" and said in second[2]


def test_a_row_of_csv_that_cannot_be_used_leaves_the_others(tmp_path):
    long = "x" * 200_000
    (tmp_path / "list.csv").write_bytes(
        b'image,prompt\na.png,a\nb.png\n"c"x,b\n' + f"d.png,{long}\n".encode() + b"\xff\xfe.png,a\ne.png,\nf.png,z\n"
    )
    found = all_of(tasks_of(tmp_path / "list.csv"))
    assert [bool(error) for _, _, error in found] == [False, True, True, True, True, False, False]
    assert found[0] == ("a.png", ["a"], "") and found[5:] == [("e.png", [], ""), ("f.png", ["z"], "")]


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("list.csv", b"picture,prompt\na.png,x\n", "image among them"),
        ("list.csv", b"image,image\na.png,x\n", "each once"),
        ("list.csv", b"", "image among them"),
        ("list.csv", b'"image\n', "no header that can be read"),
        ("list.parquet", b"PAR1", "cannot be read as Parquet"),
        ("list.parquet", b"", "cannot be read as Parquet"),
    ],
)
def test_a_list_that_is_none(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        tasks_of(tmp_path / name)


def test_parquet_without_pictures(tmp_path):
    parquet.write_table(pa.table({"prompt": ["x"]}), tmp_path / "list.parquet")
    with pytest.raises(InputError, match="must have one column image"):
        tasks_of(tmp_path / "list.parquet")


def test_a_line_without_an_end_is_cut_and_the_next_one_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(lists, "_LONGEST_LINE", 100)
    lines = ['{"image": "' + "a" * 1000 + '", "prompt": "x"}', '{"image": "b.png", "prompt": "x"}']
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    first, second = all_of(tasks_of(tmp_path / "list.jsonl"))
    assert "Expected a JSON object" in first[2] and second == ("b.png", ["x"], "")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_whatever_a_list_holds_only_our_errors_come_out(tmp_path, suffix):
    """A list with bytes changed, cut, doubled and put in, many times over; every row is read, and every picture."""
    chance = random.Random(suffix)
    whole = tmp_path / f"whole{suffix}"
    rows = [{"image": "a.png", "prompt": f"thing {k}"} for k in range(20)]
    if suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), whole, row_group_size=7)
    elif suffix == ".jsonl":
        write_jsonl(whole, [*rows, {"image": "data:image/png;base64,AAAA", "prompts": ["x", "y"]}])
    else:
        whole.write_text("image,prompts\n" + "".join(f'"{row["image"]}","[""x"", ""y""]"\n' for row in rows))
    content, refused = whole.read_bytes(), 0
    for attempt in range(300):
        damaged = bytearray(content)
        for _ in range(chance.choice([1, 2, 5, 30])):
            place = chance.randrange(len(damaged))
            match chance.randrange(4):
                case 0:
                    damaged[place] = chance.randrange(256)
                case 1:
                    del damaged[place : place + chance.randrange(1, 20)]
                case 2:
                    damaged[place:place] = damaged[: chance.randrange(1, 30)]
                case _:
                    damaged[place:place] = bytes(chance.choices(b'{}[]",:\\\x00\xff\n\r data', k=3))
            if len(damaged) < 4:
                break
        path = tmp_path / f"list-{attempt}{suffix}"
        path.write_bytes(damaged)
        try:
            tasks = tasks_of(path)
            for task in tasks.read(0, len(tasks)):
                assert isinstance(opened(task), str | tuple)
                (task.image + task.error.encode("utf-8", "backslashreplace").decode()).encode()
        except LensError:
            refused += 1
        path.unlink()
    assert refused or suffix == ".jsonl"  # in which every line stands for itself


def test_labelled_data_sets_bring_their_pictures_and_prompts(tmp_path):
    folder = tmp_path / "labelled"
    names = write_pictures(folder / "images", 3)
    write_jsonl(folder / "prompts.jsonl", [{"image": name, "prompts": ["a", "b"], "mask": None} for name in names])
    tasks = tasks_of(folder)
    records = tasks_of({"path": str(folder), "format": "folder"})
    found = all_of(tasks)
    assert found == all_of(records) and tasks.digest == records.digest
    assert found == [(f"images/{name}", ["a", "b"], "") for name in names]
    assert all(isinstance(opened(task), tuple) for task in tasks.read(0, len(tasks)))


def test_records_and_rows_in_memory():
    picture = Image.new("RGB", (4, 3))
    records = [Record(picture, ["a dog"], [None]), Record(picture, [], [])]
    assert all_of(tasks_of(records)) == [("records#0", ["a dog"], ""), ("records#1", [], "It has no prompt.")]
    assert tasks_of(records).digest == tasks_of([Record(picture.copy(), ["a dog"], [None]), records[1]]).digest
    rows = [{"image": picture, "prompts": ("a", "b")}, {"image": png(), "prompts": "c"}]
    tasks = tasks_of(rows)
    assert all_of(tasks) == [("rows#0", ["a", "b"], ""), ("rows#1", ["c"], "")]
    assert [opened(task)[0].size for task in tasks.read(0, 2)] == [(4, 3), (3, 2)]
    with pytest.raises(InputError, match="no column image"):
        tasks_of([{"picture": picture}])
    with pytest.raises(InputError, match="rows that are mappings"):
        tasks_of([picture])


def test_rows_of_the_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    from lens_adapter.annotation import inputs

    cells = {"photo": [{"bytes": png(), "path": None}] * 2, "text": ["a", "b"], "more": [1, 2]}
    parquet.write_table(pa.table(cells), tmp_path / "photos.parquet")
    rows = datasets.Dataset.from_parquet(str(tmp_path / "photos.parquet"), cache_dir=str(tmp_path))
    rows = rows.cast_column("photo", datasets.Image())
    asked = []
    monkeypatch.setattr(inputs, "load_rows", lambda *given, **more: asked.append((given, more)) or rows)
    columns = {"image": "photo", "prompts": "text"}
    tasks = tasks_of({"path": "org/photos", "format": "hub", "split": "train", "columns": columns})
    assert asked == [(("org/photos",), {"split": "train"})]
    assert all_of(tasks) == [("org/photos#0", ["a"], ""), ("org/photos#1", ["b"], "")]
    assert [opened(task)[0].size for task in tasks.read(0, 2)] == [(3, 2), (3, 2)]
    with pytest.raises(InputError, match="no column image"):
        tasks_of({"path": "org/photos", "format": "hub", "split": "train"})
    rows = [{"image": "/etc/hosts.png", "prompt": "a"}]
    (found,) = all_of(tasks_of({"path": "org/photos", "format": "hub", "split": "train"}))
    assert "must bring its picture, not the name of a file" in found[2]
    assert "must bring" not in all_of(tasks_of(rows))[0][2]  # one's own rows may name files
    for options in ({}, {"split": "train", "columns": {"image": "a", "boxes": "b"}}, {"split": "train", "x": 1}):
        with pytest.raises(InputError):
            tasks_of({"path": "org/photos", "format": "hub", **options})


def test_a_list_takes_no_options(tmp_path):
    write_jsonl(tmp_path / "list.jsonl", [{"image": "a.png"}])
    with pytest.raises(InputError, match=r"takes no options without format=...; got \['split'\]"):
        tasks_of({"path": str(tmp_path / "list.jsonl"), "split": "train"})


def test_names_that_no_file_can_have(tmp_path):
    for name in ("a" * 5000, "a\0b", f"{tmp_path}/x\0.jsonl"):
        with pytest.raises(InputError):
            tasks_of(name)
    listed = write_jsonl(tmp_path / "list.jsonl", [{"image": "a\0.png", "prompt": "x"}, {"image": "a" * 9000}])
    assert all(isinstance(opened(task), str) for task in tasks_of(Path(listed)).read(0, 2))
