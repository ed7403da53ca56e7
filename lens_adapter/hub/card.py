"""The model card that travels with a checkpoint: written from its config and what was measured, never from hope."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from lens_adapter.config import LensConfig
from lens_adapter.hub.markdown import code, plain, quoted
from lens_adapter.hub.names import BUILTIN, is_hub_id, public_name, usable_name
from lens_adapter.results import Evaluation, load_results
from lens_adapter.sam.families import family_of, family_title
from lens_adapter.writing import write_text

CARD_FILE = "README.md"
BASE_PLACEHOLDER = "path/to/its/base"  # where the base has no name that others can use
HEAD_PLACEHOLDER = "path/to/this/head"
_BODY = """---
{metadata}
---

# LENS head for {base}

A segmentation head that attaches to a **frozen** vision-language model and turns its attention into masks, after
LENS ([arXiv 2510.16785](https://arxiv.org/abs/2510.16785)). The base model is not part of this repository and is never
changed: it chats exactly as before.

```python
{load_base}
adapter = LensAdapter.from_pretrained({location}).attach(model, processor)
adapter.segment("picture.jpg", "the dog on the left").save("overlay.png")
```

| | |
|---|---|
| base model | {base}{revision} |
{reads}
| prompt | {prompt_template} |
| keypoints | up to {num_keypoints} |
| mask decoder | {sam}; image encoder {encoder} |

{sections}
## Limits

- It fits this base model alone: `attach` refuses another architecture or size.
- The base is always asked with the prompt above; other wordings are untested.
- {scores}
- {refusals}
{more_limits}"""
_ANY_BASE = """\
from transformers import AutoModelForImageTextToText, AutoProcessor

from lens_adapter import LensAdapter

model = AutoModelForImageTextToText.from_pretrained({name})
processor = AutoProcessor.from_pretrained({name})"""
_BUILTIN_BASE = """\
from lens_adapter import LensAdapter, builtin

model, processor = builtin.load_base()"""
_NETWORK = """\
| fusion | {fusion}, {fusion_layers} layers |
| reads | the input of decoder layer {tap_layer} of {layers}; attention rows of layers {attention_layers} |"""
_READOUT = """\
| fusion | readout: a linear reading of {count} attention heads, without a network |
| reads | attention of {heads} (layer.head); decoder layers 0 to {tap_layer} of {layers} |"""
_READOUT_LIMITS = """\
- Whether a readout that was fitted on drawings points as well in photographs is not known. The figures of its fit are
  of pictures like those that it was fitted on.
"""
_REFUSALS = (
    "A prompt with a score below {threshold:.4g} names nothing in the picture: `found` is false, and `segment`\n"
    "  returns an empty mask without keypoints for it, unless asked with `score_threshold=0`."
)
_NO_REFUSALS = "No score threshold was chosen: every prompt is taken to name something, whether it does or not."
_NO_RESULTS = "No evaluation results are recorded for this checkpoint."
_WHOSE = "It is not recorded which weights these results are about."
_NO_TRAINING = "How it was trained is not recorded."
_SEAL = "<!-- Written by lens_adapter ({digest}). A card that anybody edits is theirs, and stays. -->\n"


def model_card(
    config: LensConfig,
    results: Sequence[Evaluation] = (),
    *,
    location: str = HEAD_PLACEHOLDER,
    license: str | None = None,
    tags: Sequence[str] = (),
    notes: str | None = None,
) -> str:
    """The card of a head: what it is, how to use it, how it was trained, what was measured, what it cannot do.

    Args:
        config: of the head.
        results: what was measured of this head. Of a record without a digest of the weights the card says that it is
            not known whose it is, and it is no metadata.
        location: repository that the usage snippet loads. Of a folder the snippet names none but says where one goes:
            folders of this machine, of the base too, are nobody else's business.
        license: identifier that the Hub knows, e.g. "apache-2.0"; None: the card states none.
        tags: beside the usual ones.
        notes: somebody's own Markdown, instead of "nothing is recorded" where there are no records.
    """
    base = config.base_model_name_or_path
    runs = config.training or []
    named = [name for run in runs if isinstance(names := run.get("datasets"), list) for name in names]
    datasets = list(dict.fromkeys(name for name in named if is_hub_id(name)))
    known = [result for result in results if result.head_sha256 is not None]
    data = ModelCardData(
        base_model=base if is_hub_id(base) else None,
        base_model_relation="adapter" if is_hub_id(base) else None,
        library_name="lens-adapter",
        license=license,
        pipeline_tag="image-segmentation",
        tags=["lens", "referring-segmentation", "adapter", "frozen-base", *tags],
        datasets=datasets or None,
        model_name=Path(location).name if known else None,
        eval_results=[entry for result in known for entry in result.model_index()] or None,
    )
    # Not `to_markdown`: its heading names base and head as they were called where they were measured.
    measured = [
        "\n\n".join([result.conditions(), *([] if result.head_sha256 else [_WHOSE]), result.table()])
        for result in results
    ]
    sections = [("Results", measured or ([] if notes else [_NO_RESULTS]))]
    if config.readout:
        sections += [("Fit", [_fit_table(config.readout)])]
    else:
        sections += [("Training", [_training_table(run) for run in runs] or ([] if notes else [_NO_TRAINING]))]
    is_readout = config.fusion == "readout"
    reads = {
        "fusion": config.fusion,
        "fusion_layers": config.fusion_layers,
        "tap_layer": config.tap_layer,
        "layers": config.num_hidden_layers,
        "attention_layers": ", ".join(map(str, config.attention_layers or [])) or "none",
        "count": len(heads := (config.readout or {}).get("heads", [])),
        "heads": ", ".join(f"{layer}.{head}" for layer, head in heads) or "no heads yet",
    }
    text = "\n".join(f"## {title}\n\n" + "\n\n".join(parts) + "\n" for title, parts in sections if parts)
    body = _BODY.format(
        metadata=data.to_yaml(),
        base=plain(public_name(base) or "a base whose name is not recorded"),
        load_base=_BUILTIN_BASE
        if usable_name(base) == BUILTIN
        else _ANY_BASE.format(name=quoted(usable_name(base) or BASE_PLACEHOLDER)),
        revision=f" at revision {code(config.base_model_revision)}" if config.base_model_revision else "",
        location=quoted(usable_name(location) or HEAD_PLACEHOLDER),
        reads=(_READOUT if is_readout else _NETWORK).format(**reads),
        prompt_template=code(config.prompt_template),
        num_keypoints=config.num_keypoints,
        sam=_sam(config.sam),
        encoder=_encoder(config.sam),
        sections=text + (f"\n{notes}\n" if text and notes else f"{notes}\n" if notes else ""),
        scores="A score is the probability that a prompt names something in the picture, by the readout's own word."
        if is_readout
        else "A score is the mask decoder's own estimate.",
        refusals=_REFUSALS.format(threshold=config.score_threshold) if config.score_threshold else _NO_REFUSALS,
        more_limits=_READOUT_LIMITS if is_readout else "",
    )
    return body if notes else f"{body}\n{_SEAL.format(digest=_digest(body))}"


def _encoder(sam: Mapping[str, Any]) -> str:
    """Where the weights of the image encoder are."""
    if sam["include_image_encoder"]:
        return "included"
    weights = sam["weights"]
    if weights is None:
        return "not named"
    here = Path(weights).exists() or Path(weights).is_absolute() or Path(weights).suffix == ".pth"
    return f"from {code(public_name(weights))}" + (", a file or folder of whoever made this head" if here else "")


def _sam(sam: Mapping[str, Any]) -> str:
    family, variant = family_of(sam), sam["variant"]
    return f"SAM {variant}" if family is None else f"{family_title(sam)}{'' if variant == 'custom' else f' {variant}'}"


def write_model_card(
    folder: Path,
    config: LensConfig,
    results: Sequence[Evaluation] | None = None,
    *,
    location: str | None = None,
    **more: Any,
) -> None:
    """Write `README.md` into `folder`, unless somebody wrote or edited the one that is there.

    Args:
        results: default: those in the folder.
        location: default: the folder.
        more: as for `model_card`. A license that our earlier card stated stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CARD_FILE
    if path.exists():
        earlier = path.read_text(encoding="utf-8")
        if not is_generated(earlier):
            return
        more["license"] = more.get("license") or ModelCard(earlier).data.get("license")
    results = load_results(folder) if results is None else results
    text = model_card(config, results, location=location or folder.as_posix(), **more)
    write_text(path, text)


def is_generated(card: str) -> bool:
    """Whether `card` is ours to the letter: nobody wrote or edited it."""
    body, _, seal = card.rpartition("\n<!--")
    return f"<!--{seal}" == _SEAL.format(digest=_digest(body))


def _digest(body: str) -> str:
    return sha256(body.encode()).hexdigest()[:16]


def _training_table(run: Mapping[str, Any]) -> str:
    """Markdown: what `LensTrainer` recorded of one training."""
    lines = ["| | |", "|---|---|"]
    for key, value in run.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{str(name).replace('_', ' ')} {part}" for name, part in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        if value in (None, ""):
            value = "not recorded"
        lines.append(f"| {plain(str(key).replace('_', ' '))} | {plain(value)} |")
    return "\n".join(lines)


def _fit_table(facts: Mapping[str, Any]) -> str:
    """Markdown: what `LensAdapter.fit` noted; `facts` as `FitReport.to_dict` gives them."""
    shares = {
        "held-out prompts whose first click lies in the mask": "pointing",
        "the same, of a random point": "chance",
        "held-out present prompts accepted": "present_accepted",
        "held-out absent prompts refused": "absent_refused",
    }
    lines = ["| | |", "|---|---|", f"| fitted on | {plain(facts.get('data') or 'not recorded')} |"]
    lines += [f"| {name} | {plain(facts[name])} |" for name in ("examples", "absent", "images") if name in facts]
    for title, key in shares.items():
        value = facts.get(key)
        share = f"{value:.3f}" if isinstance(value, int | float) and 0 <= value <= 1 else "not known"
        lines.append(f"| {title} | {share} |")
    return "\n".join(lines)
