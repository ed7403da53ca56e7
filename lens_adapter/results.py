"""Measured results of a head: records that `lens-adapter evaluate` writes, kept beside the weights they are about.

A record is a dict: `protocol`, `dataset` (name, split, revision), `prompts` and `images` (how many), `figures`
({subset: {metric: {"value": fraction, "interval": [low, high]}}}), thresholds and versions. Where the data set is a
registered benchmark of the Hub, whoever measured may add `benchmark` ({"id", "task_id", "subset", "metric"}).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult

from lens_adapter.errors import InputError

logger = logging.getLogger(__name__)

RESULTS_FILE = "evaluation.json"
Record = dict[str, Any]


def read_record(file: str | Path) -> Record:
    """One record from its JSON file, checked.

    Raises:
        InputError: it is none, or a figure is no number.
    """
    try:
        record: Record = json.loads(Path(file).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no JSON: {error}. Expected what `lens-adapter evaluate --json` writes.") from error
    check_record(record, file)
    return record


def check_record(record: Any, source: str | Path = "results") -> None:
    """Nothing if `record` has the shape described above.

    Raises:
        InputError: what is wrong.
    """
    try:
        named = isinstance(record["dataset"]["name"], str) and isinstance(record["protocol"], str)
        figures = [figure for metrics in record["figures"].values() for figure in metrics.values()]
        numbers = [n for f in figures for n in (f["value"], *(f.get("interval") or ()))]
        whole = named and bool(figures) and all(isfinite(number) for number in numbers)
        whole = whole and all(isinstance(record[key], int) for key in ("prompts", "images"))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{source}: expected a record with protocol, dataset.name, prompts, images and figures as "
            f"`lens-adapter evaluate --json` writes it; {type(error).__name__}: {error}."
        ) from error
    if not whole:
        raise InputError(
            f"{source}: expected names, counts and at least one figure, all of them finite numbers; got {record}."
        )


def save_results(folder: Path, records: Sequence[Record]) -> None:
    """Write `evaluation.json` beside the weights that the records are about, with the weights' digest.

    Raises:
        InputError: something is no record.
    """
    for record in records:
        check_record(record)
    content = {"weights_sha256": weights_digest(folder), "records": list(records)}
    (folder / RESULTS_FILE).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def load_results(folder: Path) -> list[Record]:
    """The records in `folder`; none, with a warning, if its weights are no longer those that were measured.

    Raises:
        InputError: `evaluation.json` is damaged.
    """
    file = folder / RESULTS_FILE
    if not file.is_file():
        return []
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        digest, records = content["weights_sha256"], list(content["records"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged ({error}). Delete it and hand the results over again.") from error
    if digest != weights_digest(folder):
        logger.warning("%s is about other weights than those beside it: its results are left out.", file)
        return []
    for record in records:
        check_record(record, file)
    return records


def weights_digest(folder: Path) -> str:
    """SHA-256 of all safetensors of a checkpoint."""
    digest = sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def eval_results(records: Sequence[Record]) -> list[EvalResult]:
    """Every figure as an entry of a model card's `model-index`."""
    return [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=record["dataset"]["name"],
            dataset_name=record["dataset"]["name"],
            dataset_config=subset,
            dataset_split=record["dataset"].get("split"),
            dataset_revision=record["dataset"].get("revision"),
            metric_type=metric,
            metric_name=metric_name(metric),
            metric_value=figure["value"],
            metric_args={"protocol": record["protocol"], **_thresholds(record)},
        )
        for record in records
        for subset, metrics in record["figures"].items()
        for metric, figure in metrics.items()
    ]


def benchmark_files(records: Sequence[Record]) -> dict[str, str]:
    """What the Hub's leaderboards read: path in the repository -> YAML.

    The Hub takes only data sets that are registered as benchmarks, and tasks that these define; so there is a file
    only for records that name both. Format: https://huggingface.co/docs/hub/eval-results.

    Raises:
        InputError: a benchmark is incomplete, or names a figure that was not measured.
    """
    return {
        f".eval_results/lens_adapter-{_slug(entry['dataset']['id'])}-{_slug(entry['dataset']['task_id'])}.yaml": (
            yaml.safe_dump([entry], sort_keys=False, allow_unicode=True)
        )
        for entry in _benchmark_entries(records)
    }


def _benchmark_entries(records: Sequence[Record]) -> Iterator[dict[str, Any]]:
    for record in records:
        if not (benchmark := record.get("benchmark")):
            continue
        try:
            dataset = {key: benchmark[key] for key in ("id", "task_id")}
            value = record["figures"][benchmark["subset"]][benchmark["metric"]]["value"]
        except (KeyError, TypeError) as error:
            raise InputError(
                f"benchmark of the results on {record['dataset']['name']} must hold id and task_id of a benchmark of "
                f"the Hub, and subset and metric of a figure that was measured; got {benchmark} ({error})."
            ) from error
        if revision := record["dataset"].get("revision"):
            dataset["revision"] = revision
        yield {"dataset": dataset, "value": value, "notes": f"{metric_name(benchmark['metric'])}, {record['protocol']}"}


_METRIC_NAMES = {"giou": "gIoU", "ciou": "cIoU", "no_target_accuracy": "N-acc.", "target_accuracy": "T-acc."}


def metric_name(metric: str) -> str:
    """As the field writes it.

    Examples:
        >>> metric_name("giou"), metric_name("precision_at_50")
        ('gIoU', 'P@0.5')
    """
    if precision := re.fullmatch(r"precision_at_(\d+)", metric):
        return f"P@{int(precision[1]) / 100:g}"
    return _METRIC_NAMES.get(metric, metric.replace("_", " "))


def results_table(record: Record) -> str:
    """Markdown: what was measured on, and a row per subset."""
    dataset = record["dataset"]
    facts = [f"**{dataset['name']}**" + (f", {dataset['split']}" if dataset.get("split") else "")]
    facts += [f"revision `{dataset['revision']}`"] if dataset.get("revision") else []
    facts += [f"protocol: {record['protocol']}", f"{record['prompts']} prompts about {record['images']} images"]
    facts += [f"{key.replace('_', ' ')} {value}" for key, value in _thresholds(record).items()]
    metrics = list(dict.fromkeys(metric for row in record["figures"].values() for metric in row))
    lines = [" · ".join(facts), "", f"| | {' | '.join(map(metric_name, metrics))} |", "|---" * (len(metrics) + 1) + "|"]
    for subset, row in record["figures"].items():
        lines.append(f"| {subset} | {' | '.join(_cell(row.get(metric)) for metric in metrics)} |")
    return "\n".join(lines)


def _cell(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "–"
    interval = figure.get("interval")
    return f"{figure['value']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _thresholds(record: Record) -> dict[str, float]:
    return {key: record[key] for key in ("mask_threshold", "score_threshold") if record.get(key) is not None}


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", str(text)).strip("-.").lower()
