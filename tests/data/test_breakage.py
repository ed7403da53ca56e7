"""A broken record stops its reader or is skipped, as the user chose."""

from __future__ import annotations

import pytest

from lens_adapter.data.breakage import collect
from lens_adapter.data.examples import Examples
from lens_adapter.errors import BrokenRecordError, InputError


def test_entries_that_make_no_record_stop_or_are_skipped(caplog):
    entries = [{"image": "a.jpg", "text": "a"}, {"image": "b.jpg"}, {"image": "c.jpg", "text": ""}, None]

    def build(entry):
        return {"image": entry["image"], "prompts": [entry["text"]], "regions": [None]}

    with pytest.raises(BrokenRecordError, match=r"list\.json, record 1 \(counted from 0\): It has no 'text'") as caught:
        collect("list.json", enumerate(entries), build, "raise")
    assert caught.value.index == 1 and isinstance(caught.value.__cause__, KeyError)
    records = collect("list.json", enumerate(entries), build, "skip")
    assert [(record.image, record.file, record.index) for record in records] == [("a.jpg", "list.json", 0)]
    assert (
        len(caplog.records) == 3
        and "number 3 so far: list.json, record 3 (counted from 0): It is malformed: 'NoneType'" in caplog.text
    )


def test_the_policy_must_be_known():
    for use in (lambda: Examples([], "ignore"), lambda: collect("f", [], None, "ignore")):
        with pytest.raises(InputError, match='"raise" or "skip", got \'ignore\''):
            use()
