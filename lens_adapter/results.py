"""The one record of a measurement, `Evaluation`, and how it stays beside the weights that it is about.

`lens_adapter.evaluation.evaluate` and `lens-adapter evaluate --json` make one. In a checkpoint, `evaluation.json` holds
any number of them with the digest of the weights; the model card shows them.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import EvalResult

from lens_adapter.checkpoint import files_digest, weight_files
from lens_adapter.errors import CheckpointMismatchError, InputError, brief
from lens_adapter.hub.markdown import aligned_table
from lens_adapter.reading import only_our_errors
from lens_adapter.writing import write_text

logger = logging.getLogger(__name__)

RESULTS_FILE = "evaluation.json"


class Figure(NamedTuple):
    """A metric and its 95 % interval; None: none was measured."""

    value: float
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        return f"{self.value:.3f}" + (f" [{self.interval[0]:.3f}, {self.interval[1]:.3f}]" if self.interval else "")

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"value": self.value, "interval": None if self.interval is None else list(self.interval)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Figure:
        """What `to_dict` gave."""
        ends = content.get("interval")
        return cls(content["value"], None if ends is None else tuple(ends))


@dataclass(frozen=True)
class Evaluation:
    """What was measured, with what, on what. Checked when it is made: one that exists is whole.

    Attributes:
        protocol: names the rules, e.g. "lens-1".
        dataset: "name", "split" and "revision"; the latter two may be None.
        prompts: how many.
        images: how many.
        figures: subset -> metric -> value and interval; "all" first.
        base_model: what was measured, as it was named; None: it has no name.
        base_model_revision: its commit, where it came from the Hub.
        adapter: its head, as it was named; None: it has no name.
        mask_threshold: in use.
        score_threshold: in use.
        versions: of the packages that made the masks.
        head_sha256: `tensors_digest` of the head, which says what it is about. None: not known, as of records from
            before there were digests. They are shown with a word about it, and are no metadata of a card.
        benchmark: of the Hub, which one of the figures answers: its "id" and "task_id", the figure's "subset" and
            "metric". Whoever measured may add it.
        findings: of each prompt, a `lens_adapter.evaluation.Finding`; not saved.

    Raises:
        InputError: a name or a count is missing, there is no figure, or one is no finite number.
    """

    protocol: str
    dataset: Mapping[str, str | None]
    prompts: int
    images: int
    figures: Mapping[str, Mapping[str, Figure]]
    base_model: str | None = None
    base_model_revision: str | None = None
    adapter: str | None = None
    mask_threshold: float | None = None
    score_threshold: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    head_sha256: str | None = None
    benchmark: Mapping[str, str] | None = None
    findings: Sequence[Any] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        if wrong := self._wrong():
            raise InputError(
                "Expected texts as names of protocol, data set and models, counts of prompts and images, and at least "
                f"one figure, all of them finite numbers; got {wrong}."
            )
        if self.head_sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", str(self.head_sha256)):
            raise InputError(f"Expected a SHA-256 in hexadecimal as head_sha256; got {brief(self.head_sha256)}.")
        if self.benchmark is not None:
            self._benchmark_entry(self.benchmark)

    def _wrong(self) -> str:
        """What is no record, in words; empty where all is well."""
        if not all(isinstance(part, Mapping) for part in (self.dataset, self.figures, self.versions)):
            return f"the data set {brief(self.dataset)} and the figures {brief(self.figures)}"
        needed = {"protocol": self.protocol, "data set": self.dataset.get("name")}
        optional = {name: self.dataset.get(name) for name in ("split", "revision")}
        optional |= {name: getattr(self, name) for name in ("base_model", "base_model_revision", "adapter")}
        for name, text in {**needed, **{name: text for name, text in optional.items() if text is not None}}.items():
            if not _is_text(text):
                return f"{brief(text)} as the name of the {name}"
        texts = [self.dataset, self.versions, self.benchmark if isinstance(self.benchmark, Mapping) else {}]
        entries = [item for part in texts for item in part.items()]
        if odd := [item for item in entries if not _is_text(item[0]) or _not_text(item[1])]:
            return f"{brief(odd[0])}"
        for name, count in {"prompts": self.prompts, "images": self.images}.items():
            if type(count) is not int or not 0 <= count < 2**63:
                return f"{brief(count)} {name}"
        numbers: dict[str, Any] = dict(self._thresholds())
        for subset, row in self.figures.items():
            if not isinstance(row, Mapping):
                return f"the figures {brief(row)}"
            for metric, figure in row.items():
                if not (_is_text(subset) and _is_text(metric) and isinstance(figure, Figure)):
                    return f"the figure {brief(figure)} as the {brief(metric)} of {brief(subset)}"
                ends = () if figure.interval is None else figure.interval
                if not isinstance(ends, tuple) or len(ends) not in (0, 2):
                    return f"the interval {brief(ends)}"
                numbers |= {f"{subset}, {metric} {k}": number for k, number in enumerate((figure.value, *ends))}
        if len(numbers) == len(self._thresholds()):
            return "no figure"
        wrong = [f"{brief(number)} ({brief(name)})" for name, number in numbers.items() if not _is_finite(number)]
        return ", ".join(wrong[:3])

    @classmethod
    @only_our_errors
    def from_dict(cls, content: Any) -> Evaluation:
        """The record that `to_dict` gave. What it has beside the attributes above is dropped with a warning.

        Raises:
            InputError: it is none.
        """
        known = [entry.name for entry in fields(cls) if entry.name != "findings"]
        try:
            given = {name: content[name] for name in known if name in content}
            given["figures"] = {
                subset: {metric: Figure.from_dict(figure) for metric, figure in row.items()}
                for subset, row in content["figures"].items()
            }
            made = cls(**given)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                "Expected a record with protocol, dataset, prompts, images and figures, as `lens-adapter evaluate "
                f"--json` writes it; got {type(error).__name__}: {brief(str(error), 200)}."
            ) from error
        if unknown := sorted(set(content) - set(known)):
            logger.warning(
                "Dropped from the record of an evaluation, as they mean nothing here: %s.", brief(unknown, 200)
            )
        return made

    @classmethod
    def load(cls, file: str | Path) -> Evaluation:
        """Read what `save` or `lens-adapter evaluate --json` wrote.

        Raises:
            InputError: the file cannot be read, or is none, or holds several (see `load_all`).
        """
        found = cls.load_all(file)
        if len(found) != 1:
            raise InputError(f"{file} holds {len(found)} records, expected one. Evaluation.load_all reads them all.")
        return found[0]

    @classmethod
    @only_our_errors
    def load_all(cls, file: str | Path) -> list[Evaluation]:
        """Read a file of one record, or of several as a list `records`, as `evaluate --builtin --json` writes it.

        Raises:
            InputError: the file cannot be read, or is none.
        """
        from lens_adapter.data.files import require_regular

        try:
            require_regular(Path(file))
            content = json.loads(Path(file).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"The file {brief(str(file), 300)} cannot be read: {error.strerror}.") from error
        except InputError:
            raise
        except (ValueError, RecursionError) as error:  # no JSON, or no text, or too deep a nesting
            raise InputError(
                f"{file} is no JSON: {error}. Expected what `lens-adapter evaluate --json` writes."
            ) from error
        several = content.get("records") if isinstance(content, Mapping) else None
        try:
            return [cls.from_dict(record) for record in (several if isinstance(several, list) else [content])]
        except InputError as error:
            raise InputError(f"{file}: {error}") from error

    def save(self, file: str | Path) -> None:
        """Write it as JSON, without the findings; `load` reads it back."""
        write_text(file, _json(self.to_dict()))

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, without the findings."""
        plain: dict[str, Any] = {name: getattr(self, name) for name in _SAVED}
        plain["figures"] = {
            subset: {metric: figure.to_dict() for metric, figure in row.items()} for subset, row in self.figures.items()
        }
        plain |= {} if self.head_sha256 is None else {"head_sha256": self.head_sha256}
        return plain | ({} if self.benchmark is None else {"benchmark": self.benchmark})

    def to_markdown(self) -> str:
        """What was measured, and the table."""
        return f"{self.heading()}\n\n{self.table()}\n"

    def heading(self) -> str:
        """One line: what was measured on what."""
        return f"{self.adapter or 'A head'} on {self.base_model or 'its base'}: {self.conditions()}"

    def data_name(self) -> str:
        """Data set and split."""
        return " ".join(part for part in (self.dataset.get("name") or "data", self.dataset.get("split")) if part)

    def conditions(self) -> str:
        """One line: on what, and by which rules."""
        revision = self.dataset.get("revision")
        facts = [self.data_name()]
        facts += [f"revision {revision}"] if revision else []
        facts += [f"{self.prompts} prompts about {self.images} images"]
        facts += [f"{name} {value:g}" for name, value in self._thresholds().items()]
        facts += [f"protocol {self.protocol}"]
        return ", ".join(facts) + ". In brackets: 95 % intervals."

    def table(self) -> str:
        """Markdown: a row per metric, a column per subset, each value with its interval; aligned for a terminal."""
        metrics = dict.fromkeys(metric for row in self.figures.values() for metric in row)
        rows = [["", *self.figures]]
        rows += [
            [metric_name(metric), *(str(row.get(metric, "")) for row in self.figures.values())] for metric in metrics
        ]
        return aligned_table(rows)

    def model_index(self) -> list[EvalResult]:
        """Every figure as an entry of a model card's `model-index`."""
        data = str(self.dataset["name"])
        return [
            EvalResult(
                task_type="image-segmentation",
                dataset_type=data,
                dataset_name=data,
                dataset_config=subset,
                dataset_split=self.dataset.get("split"),
                dataset_revision=self.dataset.get("revision"),
                metric_type=metric,
                metric_name=metric_name(metric),
                metric_value=figure.value,
                metric_args={"protocol": self.protocol, **self._thresholds()},
            )
            for subset, row in self.figures.items()
            for metric, figure in row.items()
        ]

    def leaderboard_file(self) -> dict[str, str]:
        """What the Hub's leaderboards read: path in the repository -> YAML; nothing without a `benchmark`.

        The Hub takes only data sets that are registered as benchmarks, and tasks that these define. Format:
        https://huggingface.co/docs/hub/eval-results.
        """
        if self.benchmark is None:
            return {}
        entry = self._benchmark_entry(self.benchmark)
        name = f"lens_adapter-{_slug(entry['dataset']['id'])}-{_slug(entry['dataset']['task_id'])}.yaml"
        return {f".eval_results/{name}": yaml.safe_dump([entry], sort_keys=False, allow_unicode=True)}

    def _benchmark_entry(self, benchmark: Mapping[str, str]) -> dict[str, Any]:
        try:
            dataset = {key: benchmark[key] for key in ("id", "task_id")}
            value = self.figures[benchmark["subset"]][benchmark["metric"]].value
        except (KeyError, TypeError) as error:
            raise InputError(
                f"The benchmark of the results on {self.dataset['name']} must hold id and task_id of a benchmark of "
                f"the Hub, and subset and metric of a figure that was measured; got {brief(benchmark, 200)}."
            ) from error
        if revision := self.dataset.get("revision"):
            dataset["revision"] = revision
        return {"dataset": dataset, "value": value, "notes": f"{metric_name(benchmark['metric'])}, {self.protocol}"}

    def _thresholds(self) -> dict[str, float]:
        both = {"mask_threshold": self.mask_threshold, "score_threshold": self.score_threshold}
        return {name: value for name, value in both.items() if value is not None}


# In the order in which the package has always written them.
_SAVED = (
    *("protocol", "base_model", "base_model_revision", "adapter", "dataset", "prompts", "images"),
    *("mask_threshold", "score_threshold", "figures", "versions"),
)
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


def save_results(folder: Path, results: Sequence[Evaluation]) -> None:
    """Write `evaluation.json` beside the weights that the results are about, with the weights' digest.

    Raises:
        InputError: something is no `Evaluation`, or is about other weights; nothing is written.
    """
    for result in results:
        if not isinstance(result, Evaluation):
            raise InputError(
                f"Results must be records of the type Evaluation, got {type(result).__name__}. Hand over what "
                "`evaluate` returns; Evaluation.load reads its file, Evaluation.from_dict its dict."
            )
    if any(result.head_sha256 for result in results):
        require_about(results, folder_digest(folder), str(folder))
    content = {"weights_sha256": weights_digest(folder), "records": [result.to_dict() for result in results]}
    write_text(folder / RESULTS_FILE, _json(content))


def require_about(results: Sequence[Any], digest: str, head: str) -> None:
    """Refuse results that were measured of another head; of those without a digest it is not known.

    Args:
        results: records.
        digest: `tensors_digest` of the head in hand.
        head: its name, for the message.

    Raises:
        InputError: names the first such record.
    """
    for result in results:
        if isinstance(result, Evaluation) and result.head_sha256 not in (None, digest):
            raise InputError(
                f"The results on {result.data_name()} are about another head: they were measured of {result.adapter} "
                f"with the weights {result.head_sha256[:12]}..., and {head} has {digest[:12]}.... Measure this head, "
                "or hand over its own results."
            )


@only_our_errors
def load_results(folder: Path) -> list[Evaluation]:
    """The results in `folder` that are about the weights beside them; others are left out, with a warning.

    Raises:
        InputError: `evaluation.json` is damaged.
    """
    file = folder / RESULTS_FILE
    if not file.is_file():
        return []
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["weights_sha256"] != weights_digest(folder):
            logger.warning("%s is about other weights than those beside it: its results are left out.", file)
            return []
        records = [Evaluation.from_dict(record) for record in content["records"]]
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}.") from error
    except Exception as error:  # what others wrote breaks in whatever way comes first
        raise InputError(
            f"{file} is damaged ({brief(str(error), 300)}). Delete it and hand the results over again."
        ) from error
    if not any(record.head_sha256 for record in records):
        return records
    digest = folder_digest(folder)
    for record in records:
        if record.head_sha256 not in (None, digest):
            logger.warning("%s: the results on %s are about another head, and left out.", file, record.data_name())
    return [record for record in records if record.head_sha256 in (None, digest)]


def folder_digest(folder: Path) -> str:
    """`tensors_digest` of a checkpoint, read tensor by tensor.

    Raises:
        InputError: its weights cannot be read.
    """
    try:
        return files_digest(weight_files(folder))
    except (OSError, CheckpointMismatchError) as error:
        raise InputError(f"The weights in {folder} cannot be read: {error}") from error


def weights_digest(folder: Path) -> str:
    """SHA-256 of all safetensors of a checkpoint."""
    digest = sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _is_text(value: Any) -> bool:
    """Whether it is a text that a file can hold, which one with half of a letter is not."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _not_text(value: Any) -> bool:
    return value is not None and not _is_text(value)


def _is_finite(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max  # False of NaN; and an integer may be larger than any float


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", str(text)).strip("-.").lower()
