"""An evaluation as a record: what was measured with what on what; one JSON, and a table to read."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lens_adapter import __version__
from lens_adapter.data.files import read_json
from lens_adapter.errors import InputError
from lens_adapter.evaluation.metrics import METRICS, Figure, Finding

PROTOCOL = "lens-1"  # of `lens_adapter.evaluation`; another when a figure comes to mean something else


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured.

    Attributes:
        protocol: names the rules.
        base_model: what was measured, as it was named; None: it has no name.
        base_model_revision: its commit, where it came from the Hub.
        adapter: its head, as it was named; None: it has no name.
        dataset: "name", "split" and "revision", the latter two may be None.
        prompts: how many.
        images: how many.
        mask_threshold: in use.
        score_threshold: in use.
        figures: subset -> metric -> value and interval; "all" first.
        versions: of the packages that made the masks.
        findings: of each prompt; not saved.
    """

    protocol: str
    base_model: str | None
    base_model_revision: str | None
    adapter: str | None
    dataset: dict[str, str | None]
    prompts: int
    images: int
    mask_threshold: float
    score_threshold: float
    figures: dict[str, dict[str, Figure]]
    versions: dict[str, str]
    findings: Sequence[Finding] = field(default=(), repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        plain = {name: getattr(self, name) for name in _SAVED}
        plain["figures"] = {
            subset: {name: {"value": one.value, "interval": list(one.interval)} for name, one in measured.items()}
            for subset, measured in self.figures.items()
        }
        return plain

    def save(self, file: str | Path) -> None:
        """Write it as JSON; `load` reads it back."""
        Path(file).write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, file: str | Path) -> Evaluation:
        """Read what `save` wrote, but for the findings.

        Raises:
            InputError: the file is no evaluation.
        """
        content = read_json(Path(file))
        try:
            figures = {
                subset: {name: Figure(one["value"], tuple(one["interval"])) for name, one in measured.items()}
                for subset, measured in content["figures"].items()
            }
            return cls(**{name: content[name] for name in _SAVED} | {"figures": figures})
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{str(file)!r} is no evaluation: expected what Evaluation.save writes, with {', '.join(_SAVED)}; "
                f"got {error!r}."
            ) from error

    def to_markdown(self) -> str:
        """A heading, and a table: a row per metric, a column per subset, each value with its interval."""
        rows = [["", *self.figures]]
        for name in METRICS:
            if any(name in measured for measured in self.figures.values()):
                rows.append([name, *(_cell(measured.get(name)) for measured in self.figures.values())])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rows.insert(1, ["-" * width for width in widths])
        lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
        return self.heading() + "\n\n" + "\n".join(lines) + "\n"

    def heading(self) -> str:
        """One line: what was measured on what."""
        data = " ".join(part for part in (self.dataset["name"], self.dataset["split"]) if part)
        return (
            f"{self.adapter or 'A head'} on {self.base_model or 'its base'}: {data or 'data'}, {self.prompts} prompts "
            f"about {self.images} images; mask_threshold {self.mask_threshold:g}, score_threshold "
            f"{self.score_threshold:g}, protocol {self.protocol}. In brackets: 95 % of a bootstrap over images."
        )


_SAVED = tuple(entry.name for entry in fields(Evaluation) if entry.name != "findings")


def _cell(figure: Figure | None) -> str:
    return "" if figure is None else f"{figure.value:.3f} [{figure.interval[0]:.3f}, {figure.interval[1]:.3f}]"


def package_versions() -> dict[str, str]:
    """Package -> version, of those that masks depend on."""
    packages = ("torch", "transformers", "segment-anything", "numpy", "pillow")
    return {
        "lens_adapter": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
