"""What an evaluation and a report show: text in a terminal, HTML in a notebook."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

from ctxrec.core import storage
from ctxrec.core.run_paths import RunPaths
from ctxrec.evaluation.comparison_table import format_table


@dataclass(frozen=True)
class Evaluation:
    """Figures of an evaluation.

    Attributes:
        metrics: the content of `metrics.json`.
        folder: where `metrics.json` and `report.html` lie; "" where no file was written.
    """

    metrics: dict[str, Any]
    folder: str = ""

    def __getitem__(self, name: str) -> float:
        """The mean of a metric of the model, such as `evaluation["ndcg@10"]`."""
        return float(self.metrics["model"][name]["mean"])

    def __str__(self) -> str:
        return format_table(self.metrics)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


@dataclass(frozen=True)
class Report:
    """The report of a run, which a notebook shows in a frame.

    Attributes:
        path: of `report.html`, path or URI.
    """

    path: str

    @property
    def html(self) -> str:
        """The whole page."""
        return storage.read_text(self.path)

    def __repr__(self) -> str:
        return f"report: {self.path}"

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{html.escape(self.html)}" width="100%" height="800" frameborder="0"></iframe>'


def evaluation_of(run: str) -> Evaluation | None:
    """The evaluation that lies in a run; None where it was not evaluated."""
    path = RunPaths(run).metrics
    return Evaluation(storage.read_json(path), run) if storage.exists(path) else None
