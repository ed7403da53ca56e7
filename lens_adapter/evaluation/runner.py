"""The run: every prompt goes through `segment`, in one process or several. Masks are compared, then let go."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import groupby, islice

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from lens_adapter import __version__
from lens_adapter.adapter import LensAdapter
from lens_adapter.config import Thresholds
from lens_adapter.data.examples import Example, Examples
from lens_adapter.errors import InputError
from lens_adapter.evaluation.metrics import PROTOCOL, Finding, by_subset, measure_with_intervals, overlap
from lens_adapter.hub.names import public_name
from lens_adapter.output import LensOutput
from lens_adapter.results import Evaluation

BATCH_SIZE = 8


def evaluate(
    adapter: LensAdapter,
    examples: Examples | Sequence[Example],
    *,
    dataset: Mapping[str, str | None] | None = None,
    batch_size: int = BATCH_SIZE,
    mask_threshold: float | None = None,
    score_threshold: float | None = None,
) -> Evaluation:
    """Measure an attached head on examples, by the protocol of `lens_adapter.evaluation`.

    Started by `accelerate launch` or `torchrun`, each process takes a share of the examples, and all return the same;
    every process then needs the whole base and the whole data.

    Args:
        adapter: attached.
        examples: of any reader in `lens_adapter.data`, or a sequence of one's own. Each is read once.
        dataset: what they are, for the record: "name", "split" and "revision".
        batch_size: prompts that are segmented together.
        mask_threshold: as for `segment`; default: the config's.
        score_threshold: as for `segment`; default: the config's.

    Raises:
        NotAttachedError: the adapter has no base.
        InputError: there is nothing to measure, an impossible threshold, or a mask that does not fit its picture.
    """
    thresholds = adapter.base.config.thresholds(mask_threshold, score_threshold)
    findings = _all_findings(adapter, examples, batch_size, thresholds.mask)
    if not findings:
        raise InputError(f"There is nothing to measure: none of the {len(examples)} examples can be used.")
    return record_of(adapter, findings, by_subset(findings), thresholds, dataset or {})


def record_of(
    adapter: LensAdapter,
    findings: Sequence[Finding],
    subsets: Mapping[str, Sequence[Finding]],
    thresholds: Thresholds,
    dataset: Mapping[str, str | None],
) -> Evaluation:
    """The record of what an attached head made of some prompts.

    Args:
        adapter: attached.
        findings: one for each prompt, made at the mask threshold.
        subsets: what the figures are about: name -> findings; "all" first.
        thresholds: in use.
        dataset: as for `evaluate`.
    """
    base = adapter.base.anatomy.config
    return Evaluation(
        protocol=PROTOCOL,
        base_model=public_name(base.name_or_path),
        base_model_revision=getattr(base, "_commit_hash", None),
        adapter=public_name(adapter.config.name_or_path),
        dataset={"name": "", "split": None, "revision": None, **dataset},
        prompts=len(findings),
        images=len({finding.picture for finding in findings}),
        mask_threshold=thresholds.mask,
        score_threshold=thresholds.score,
        figures={name: measure_with_intervals(group, thresholds.score) for name, group in subsets.items()},
        versions=_package_versions(),
        head_sha256=adapter.digest(),
        findings=list(findings),
    )


def _package_versions() -> dict[str, str]:
    """Package -> version, of those that masks depend on."""
    packages = ("torch", "transformers", "segment-anything", "numpy", "pillow")
    return {
        "lens_adapter": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def _all_findings(
    adapter: LensAdapter, examples: Examples | Sequence[Example], batch_size: int, mask_threshold: float
) -> list[Finding]:
    """Of every example, in order, in every process."""
    state = this_process(adapter.device)
    if state is None:
        return _findings(adapter, examples, range(len(examples)), batch_size, mask_threshold, quiet=False)
    # Neighbors stay together, since they are often about one image.
    with state.split_between_processes(list(range(len(examples)))) as share:
        found = _findings(adapter, examples, share, batch_size, mask_threshold, quiet=not state.is_main_process)
    everybodys: list[Finding] = gather_object(found)  # in the order of the processes
    return everybodys


def this_process(device: torch.device | str | None = None) -> PartialState | None:
    """This process among those of a launcher; None if it is alone.

    Args:
        device: where it works; default: an accelerator of its own, where there is one.
    """
    if not torch.distributed.is_initialized() and int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return None
    # Without a word about CPUs, accelerate takes a process that sees no accelerator to be alone.
    cpu = torch.device(device).type == "cpu" if device is not None else not torch.accelerator.is_available()
    return PartialState(cpu=cpu)


def _findings(
    adapter: LensAdapter,
    examples: Examples | Sequence[Example],
    indices: Sequence[int],
    batch_size: int,
    mask_threshold: float,
    *,
    quiet: bool,
) -> list[Finding]:
    if isinstance(examples, Examples):
        numbered = examples.numbered(indices)
    else:
        numbered = ((index, examples[index]) for index in indices)
    shown = tqdm(numbered, desc="prompts", total=len(indices), disable=quiet)
    return list(examine(adapter, shown, batch_size=batch_size, mask_threshold=mask_threshold))


def examine(
    adapter: LensAdapter,
    numbered: Iterable[tuple[int, Example]],
    *,
    batch_size: int = BATCH_SIZE,
    mask_threshold: float | None = None,
) -> Iterator[Finding]:
    """Segment the examples, `batch_size` at a time, and compare each mask with its truth.

    Neighbors about one image share its encoding.

    Args:
        adapter: attached.
        numbered: each example with its position in the data.
        batch_size: as for `evaluate`.
        mask_threshold: as for `evaluate`.
    """
    named = _named_pictures(numbered)
    while batch := list(islice(named, batch_size)):
        groups = [list(group) for _, group in groupby(batch, key=lambda entry: entry[0])]
        outputs = adapter.segment(
            [group[0][2].image for group in groups],
            [[example.prompt for _, _, example in group] for group in groups],
            batch_size=batch_size,
            mask_threshold=mask_threshold,
            score_threshold=0.0,  # the rule is applied to the findings
        )
        for output, group in zip(outputs, groups, strict=True):
            for k, (picture, index, example) in enumerate(group):
                yield finding_of(output, k, example, picture=picture, index=index)


def _named_pictures(numbered: Iterable[tuple[int, Example]]) -> Iterator[tuple[str, int, Example]]:
    """(name of the picture, index, example); where it has no name, neighbors with one picture object get one name."""
    last, name = None, ""
    for index, example in numbered:
        if example.image_id:
            name = example.image_id
        elif last is None or example.image is not last.image:
            name = f"example {index}"
        last = example
        yield name, index, example


def finding_of(output: LensOutput, k: int, example: Example, *, picture: str = "", index: int = 0) -> Finding:
    """Compare what came out for prompt `k` of an image with its example."""
    mask, score, points = output.masks[k].numpy(), float(output.scores[k]), output.keypoints[k].numpy()
    measured = overlap(mask, example.mask, example.ignore)
    height, width = mask.shape
    columns, rows = points.T.astype(int).clip(0, [[width - 1], [height - 1]])  # (K,) each
    if example.ignore is not None:
        counts = ~example.ignore[rows, columns]
        columns, rows = columns[counts], rows[counts]
    hits = tuple(np.asarray(example.mask[rows, columns]).tolist())
    return Finding(measured, score, hits, example.subset, picture, index)
