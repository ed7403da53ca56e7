"""Write the measured figures into README.md, MODEL_CARD.md and the cards of the two heads.

lens-adapter evaluate --builtin --json results/builtin.json
python examples/builtin/report.py
"""

from __future__ import annotations

import json
from pathlib import Path

from lens_adapter import LensConfig
from lens_adapter.card import model_card

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "results" / "builtin.json"
HEADS = sorted((ROOT / "lens_adapter" / "builtin").glob("lens-*"))
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
ROWS = {
    "LENS mirror (the paper's head)": "heads.mirror",
    "LENS lite (ours)": "heads.lite",
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
    "P@0.5 attribute": "precision_at_50.attribute",
    "cIoU attribute": "ciou.attribute",
}
ANSWERS = ("attributes", "existence", "superlatives", "counting", "relations", "where_within_one_cell")
JUDGEMENT = {
    "absent prompts refused": "no_target_accuracy",
    "present prompts accepted": "target_accepted",
    "rank correlation of score and IoU": "score_rank_correlation",
    "first keypoint on the target": "keypoint_on_target",
}


def tables(figures: dict[str, float]) -> str:
    """Three Markdown tables: segmentation, judgement, answers."""
    lines = [f"| gIoU on the test split | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for title, prefix in ROWS.items():
        cells = (f"{figures[f'{prefix}.{key}']:.3f}" for key in COLUMNS.values())
        lines.append(f"| {title} | {' | '.join(cells)} |")
    lines += ["", f"| the heads' own judgement | {' | '.join(JUDGEMENT)} |", "|---" * (len(JUDGEMENT) + 1) + "|"]
    for title, prefix in list(ROWS.items())[:2]:
        cells = (f"{figures[f'{prefix}.{key}']:.3f}" for key in JUDGEMENT.values())
        lines.append(f"| {title} | {' | '.join(cells)} |")
    lines += ["", f"| answers of the frozen model | {' | '.join(a.replace('_', ' ') for a in ANSWERS)} |"]
    lines += ["|---" * (len(ANSWERS) + 1) + "|"]
    lines += [f"| exactly right | {' | '.join(format(figures['answers.' + kind], '.1%') for kind in ANSWERS)} |"]
    return "\n".join(lines)


def with_tables(text: str, figures: dict[str, float]) -> str:
    """`text` with whatever stands between the two markers replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables(figures)}\n{END}{after}"


def head_card(folder: Path, figures: dict[str, float]) -> str:
    """The card of a shipped head: what its config says, and what was measured."""
    prefix = folder.name.replace("lens-", "heads.")
    kinds = {**COLUMNS, **JUDGEMENT}
    lines = ["Measured on 500 test scenes of the built-in world (gIoU where nothing else is said):", ""]
    lines += [f"| {' | '.join(kinds)} |", "|---" * len(kinds) + "|"]
    lines += [f"| {' | '.join(format(figures[f'{prefix}.{key}'], '.3f') for key in kinds.values())} |", ""]
    lines += [
        "It knows one synthetic world of colored shapes; on photographs it is useless. Data, training, baselines and"
    ]
    lines += ["limits: MODEL_CARD.md of lens_adapter."]
    place = folder.relative_to(ROOT).as_posix()
    config = LensConfig.from_pretrained(folder)
    return model_card(config, location=place, license="apache-2.0", notes="\n".join(lines))


def main() -> None:
    figures = json.loads(FIGURES.read_text())
    for name in ("README.md", "MODEL_CARD.md"):
        path = ROOT / name
        path.write_text(with_tables(path.read_text(), figures))
        print(f"updated {name}")
    for folder in HEADS:
        (folder / "README.md").write_text(head_card(folder, figures), encoding="utf-8")
        print(f"wrote the card of {folder.name}")


if __name__ == "__main__":
    main()
