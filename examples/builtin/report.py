"""Write the measured figures into README.md, MODEL_CARD.md, the page about routing and the cards of the heads.

lens-adapter evaluate --builtin --json results/builtin.json
python examples/builtin/report.py
"""

from __future__ import annotations

import json
from pathlib import Path

from lens_adapter import LensConfig
from lens_adapter.hub.card import model_card

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "results" / "builtin.json"
HEADS = sorted((ROOT / "lens_adapter" / "builtin").glob("lens-*"))
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
ROWS = {
    "LENS mirror (the paper's head)": "heads.mirror",
    "LENS lite (ours)": "heads.lite",
    "LENS lite, SAM 2": "heads.lite-sam2",
    "oracle keypoint → SAM": "baselines.oracle_keypoint",
    "raw attention's peak → SAM": "baselines.raw_keypoint",
    "raw attention, thresholded": "baselines.raw_attention",
    "a random object's mask": "baselines.random_object",
}
COLUMNS = {
    "attribute": "giou.attribute",
    "spatial": "giou.spatial",
    "ordinal": "giou.ordinal",
    "several": "giou.several",
    "reasoning": "giou.reasoning",
    "all": "giou.all",
    "all, P@0.5": "precision_at_50.all",
    "all, cIoU": "ciou.all",
}
HELD_OUT = {
    "a fact": "giou.held_out_fact",
    "a phrasing": "giou.held_out_phrasing",
    "a template": "giou.held_out_template",
}
SPOKEN = {
    '"the dog and the red cars"': "giou.joined",
    "everyday words": "giou.everyday",
    "in wordings held out": "giou.held_out_wording",
}
JUDGEMENT = {
    "absent prompts refused": "no_target_accuracy",
    "present prompts accepted": "target_accepted",
    "rank correlation of score and IoU": "score_rank_correlation",
    "first keypoint on the target": "keypoint_on_target",
}
INSTANCES = {
    "precision": "instances.precision",
    "recall": "instances.recall",
    "gIoU of the united masks": "giou.several",
    "prompts for one thing that were split": "instances.one_split",
}
ANSWERS = (
    *("names", "categories", "colors", "sizes", "existence", "superlatives", "counting", "relations", "facts"),
    "where_within_one_cell",
)
PLACES = ("where", *(f"where_{kind}" for kind in ("spatial", "ordinal", "several", "reasoning", "absent", "joined")))
KNOWS = """\
It knows one synthetic world of 64 everyday things, drawn; on photographs it is useless. Data, training, baselines and
limits: MODEL_CARD.md of lens_adapter."""
REQUESTS = ("dialogue", "explicit", "reasoning", "mixed")


WAYS = {"a mask is asked for as was taught": "routing", "in other ways": "routing.held_out_template"}


def tables(figures: dict[str, float]) -> str:
    """Markdown tables: segmentation, the same of what is held out, judgement, instances, answers; and, where they were
    measured, what is made of how people talk, and what the frozen model itself can find."""
    heads = {row: key for row, key in ROWS.items() if key.startswith("heads.")}
    answers = {"exactly right": {kind.replace("_", " "): f"answers.{kind}" for kind in ANSWERS}}
    made = [
        _table("gIoU on the test split", _rows(ROWS, COLUMNS), figures),
        _table("gIoU where training held out", _rows(ROWS, HELD_OUT), figures),
        _table("the heads' own judgement", _rows(heads, JUDGEMENT), figures),
        _table('instances of "several"', _rows(heads, INSTANCES), figures),
        _table("answers of the frozen model", answers, figures, ".1%"),
    ]
    spoken = _rows(heads, SPOKEN)
    if _are_measured(spoken, figures):
        made.append(_table("gIoU as people talk", spoken, figures))
    places = {
        row: {kind.removeprefix("where_"): f"answers.{kind}{key}" for kind in PLACES}
        for row, key in {"exactly right": "", "right within one cell": "_within_one_cell"}.items()
    }
    if _are_measured(places, figures):
        made.append(_table("where the frozen model itself says it is", places, figures, ".1%"))
    return "\n\n".join(made)


def _are_measured(rows: dict[str, dict[str, str]], figures: dict[str, float]) -> bool:
    return all(key in figures for keys in rows.values() for key in keys.values())


def routing_table(figures: dict[str, float]) -> str:
    """A Markdown table: what the frozen model takes for a request for a mask."""
    columns = {kind: f"taken_for_requests.{kind}" for kind in REQUESTS} | {"balanced accuracy": "balanced_accuracy"}
    dialogue = {"dialogue": "routing.taken_for_requests.dialogue"}  # asks for no mask, in no way
    rows = {way: keys | dialogue for way, keys in _rows(WAYS, columns).items()}
    return _table("taken for requests for a mask", rows, figures, ".1%")


PAGES = {"README.md": tables, "MODEL_CARD.md": tables, "docs/pipelines-and-chat.md": routing_table}


def _rows(prefixes: dict[str, str], columns: dict[str, str]) -> dict[str, dict[str, str]]:
    """Title of a row -> title of a column -> name of the figure."""
    return {row: {column: f"{prefix}.{key}" for column, key in columns.items()} for row, prefix in prefixes.items()}


def _table(title: str, rows: dict[str, dict[str, str]], figures: dict[str, float], form: str = ".3f") -> str:
    columns = list(next(iter(rows.values())))
    lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {row} | {' | '.join(format(figures[keys[c]], form) for c in columns)} |" for row, keys in rows.items()
    ]
    return "\n".join(lines)


def with_tables(page: str, text: str, figures: dict[str, float]) -> str:
    """The text of one of `PAGES` with whatever stands between the two markers replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{PAGES[page](figures)}\n{END}{after}"


def head_card(folder: Path, figures: dict[str, float]) -> str:
    """The card of a shipped head: what its config says, and what was measured."""
    name = folder.name.removeprefix("lens-")
    parts = {"gIoU": COLUMNS, "gIoU where training held out": HELD_OUT, "its own judgement": JUDGEMENT}
    parts['instances of "several"'] = INSTANCES
    made = [_table(title, _rows({name: f"heads.{name}"}, columns), figures) for title, columns in parts.items()]
    notes = "\n\n".join(("Measured on 1000 test scenes of the built-in world:", *made, KNOWS))
    place = folder.relative_to(ROOT).as_posix()
    return model_card(LensConfig.from_pretrained(folder), location=place, license="apache-2.0", notes=notes)


def main() -> None:
    figures = json.loads(FIGURES.read_text())
    for name in PAGES:
        path = ROOT / name
        path.write_text(with_tables(name, path.read_text(), figures), encoding="utf-8")
        print(f"updated {name}")
    for folder in HEADS:
        (folder / "README.md").write_text(head_card(folder, figures), encoding="utf-8")
        print(f"wrote the card of {folder.name}")


if __name__ == "__main__":
    main()
