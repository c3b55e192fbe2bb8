"""What an evaluation and a report show: text in a terminal, HTML in a notebook."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

from ctxrec.core import storage
from ctxrec.core.run_paths import RunPaths
from ctxrec.evaluation.comparison_table import format_table, table_parts


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
        title, (names, *rows), sentences = table_parts(self.metrics)
        head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        body = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
        below = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
        return (
            f"<p>{html.escape(title)}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            f"<ul>{below}</ul>"
        )


def _cells(row: list[str]) -> str:
    """A row of an HTML table whose first cell is a name, and whose others are figures."""
    figures = "".join(
        f'<td style="text-align: right; white-space: nowrap">{html.escape(cell)}</td>' for cell in row[1:]
    )
    return f'<td style="text-align: left; white-space: nowrap">{html.escape(row[0])}</td>{figures}'


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
        frame = "width: 100%; height: 800px; border: 1px solid #d8dde3; border-radius: 6px"
        return f'<iframe srcdoc="{html.escape(self.html)}" style="{frame}"></iframe>'


def evaluation_of(run: str) -> Evaluation | None:
    """The evaluation that lies in a run; None where it was not evaluated."""
    path = RunPaths(run).metrics
    return Evaluation(storage.read_json(path), run) if storage.exists(path) else None
