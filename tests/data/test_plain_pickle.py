"""Small pickles that would become large, deep or slow are refused before anything is made of them."""

from __future__ import annotations

import os
import pickle

import pytest

from lens_adapter.data.files import read_json
from lens_adapter.data.plain_pickle import _LARGEST, read_plain_pickle
from lens_adapter.errors import InputError, StaleFeaturesError
from lens_adapter.results import Evaluation, load_results
from lens_adapter.training.cache.read import CachedFeatures

TWICE = b"h\x00h\x00\x86q\x00"  # a tuple of the last one, twice
GROWING = {
    "a tuple that holds another twice, and so on, as a key": b"})q\x00" + TWICE * 60 + b"Ns.",
    "the same, doubled on the stack": b"})" + b"2\x86" * 60 + b"Ns.",
    "the same, of frozen sets": b"}(\x91q\x00" + b"(h\x00h\x00\x86\x91q\x00" * 60 + b"Ns.",
    "a tuple so deep that hashing it ends Python": b"})" + b"\x85" * 500_000 + b"Ns.",
    "a note in a place for which there would be 16 gigabytes": b"]r\xff\xff\xff\x7f.",
    "the same, written out": b"]p2000000000\n.",
    "many numbers with one hash": b"}(" + b"".join(
        b"\x8a\x0a" + (k * (2**61 - 1) + 2**72).to_bytes(10, "little") + b"N" for k in range(2000)
    ) + b"u.",
}  # fmt: skip


@pytest.mark.parametrize("what", GROWING)
def test_what_would_grow_is_refused(what, tmp_path):
    (tmp_path / "refs.p").write_bytes(GROWING[what])
    with pytest.raises(InputError, match=r"refs\.p' was refused: it (holds|notes)"):
        read_plain_pickle(tmp_path / "refs.p")


def test_what_is_deep_and_cheap_is_refused_without_harm(tmp_path):
    for raw in (b"]" * 20_000 + b"a" * 19_999 + b".", b"]" + b"(l" * 20_000 + b"."):
        (tmp_path / "refs.p").write_bytes(raw)
        try:
            read_plain_pickle(tmp_path / "refs.p")
        except InputError as error:
            assert len(str(error)) < 1000


def test_files_beyond_any_use_are_refused(tmp_path):
    with open(tmp_path / "refs.p", "wb") as file:
        file.truncate(_LARGEST + 1)
    with pytest.raises(InputError, match=r"more than 256 megabytes"):
        read_plain_pickle(tmp_path / "refs.p")


def test_flat_tuples_are_plain_data(tmp_path):
    data = [(k, (k, str(k)), [(1.5, 2.5)] * 3) for k in range(3000)]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "p").write_bytes(pickle.dumps(data, protocol))
        assert read_plain_pickle(tmp_path / "p") == data


def test_a_pipe_is_no_file(tmp_path):
    for name in ("refs.p", "a.json", "evaluation.json"):
        os.mkfifo(tmp_path / name)
    for read in (read_plain_pickle, read_json, Evaluation.load):
        with pytest.raises(InputError, match="is a pipe or a device"):
            read(tmp_path / "refs.p")
    assert load_results(tmp_path) == []


@pytest.mark.parametrize("content", ["[" * 3000 + "]" * 3000, "[]", "null", '{"records": 5}'])
def test_results_and_indices_of_any_kind_are_refused_by_name(content, tmp_path):
    for name in ("evaluation.json", "index.json"):
        (tmp_path / name).write_text(content)
    for read in (load_results, lambda folder: Evaluation.load(folder / "evaluation.json")):
        with pytest.raises(InputError, match=r"evaluation\.json"):
            read(tmp_path)
    with pytest.raises((InputError, StaleFeaturesError), match=r"index\.json"):
        CachedFeatures(tmp_path)
