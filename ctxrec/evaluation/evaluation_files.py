"""The files of an evaluation: `metrics.json`, `requests.parquet` and `report.html`.

Legend: N requests, K longest list.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ctxrec.core import schema, storage
from ctxrec.core.config import Config, to_toml
from ctxrec.core.run_paths import RunPaths
from ctxrec.data.events import ranges
from ctxrec.data.prepared import PreparedData
from ctxrec.evaluation.comparison_table import format_table
from ctxrec.evaluation.diversity_tradeoff import format_tradeoff
from ctxrec.evaluation.ranking_plan import SEED
from ctxrec.evaluation.report import page as report_page
from ctxrec.evaluation.report.examples import example_users
from ctxrec.evaluation.summary import RankedLists
from ctxrec.evaluation.systems import best_baseline, focus
from ctxrec.metrics.ranking import request_metrics
from ctxrec.training.trackers import read_train_log


def write_files(
    out: str,
    *,
    prepared: PreparedData,
    config: Config,
    metrics: dict[str, Any],
    lists: RankedLists,
    table: pa.Table,
    run: str | None,
) -> None:
    """Write the three files; lists and examples are those of the model, or of the best baseline where there is none.

    Args:
        out: folder or URI.
        prepared: the data that was evaluated on.
        config: the options as used.
        metrics: the content of `metrics.json`.
        lists: the ranked lists of every system.
        table: what `rank_requests` returned.
        run: the run folder, for its training log; None without a run.
    """
    system = focus(metrics)
    ndcg = _ndcg(lists)
    item_ids = prepared.items.column(schema.ITEM_ID).combine_chunks()
    storage.write_bytes(RunPaths(out).requests, _requests_file(lists, table, item_ids, system, ndcg))
    html = report_page.render_report(
        metrics,
        facts=report_page.Facts.of(prepared, config, metrics.get("encoder")),
        train_log=read_train_log(run) if run is not None else [],
        examples=example_users(
            prepared,
            lists,
            ndcg[system],
            table,
            system=system,
            other=best_baseline(metrics),
            seed=SEED,
        ),
        config_toml=to_toml(config),
    )
    storage.write_text(RunPaths(out).report, html)
    storage.write_json(RunPaths(out).metrics, metrics)


def _requests_file(
    lists: RankedLists, table: pa.Table, item_ids: pa.Array, system: str, ndcg: dict[str, np.ndarray]
) -> bytes:
    """`requests.parquet`: a row for each request, for comparisons over several runs."""
    requests = pa.table(
        {
            schema.USER_ID: table.column(schema.USER_ID),
            "history_length": table.column("history_length"),
            "targets": _as_ids(lists.target_offsets, lists.target_items, item_ids),
            "recommended": _padded_ids(lists.tops[system], item_ids),
            "ndcg@10": pa.array(ndcg[system]),
            **{f"ndcg@10/{name}": pa.array(values) for name, values in ndcg.items()},
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(requests, sink)
    return sink.getvalue().to_pybytes()


def _ndcg(lists: RankedLists) -> dict[str, np.ndarray]:
    """NDCG@10 of every request with each system: float64 [N] each."""
    return {
        system: request_metrics(top, lists.target_offsets, lists.target_items, [10])["ndcg@10"]
        for system, top in lists.tops.items()
    }


def _as_ids(offsets: np.ndarray, positions: np.ndarray, item_ids: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), item_ids.take(pa.array(positions)))


def _padded_ids(top: np.ndarray, item_ids: pa.Array) -> pa.Array:
    """Lists of ids from position lists that -1 fills up."""
    lengths = (top >= 0).sum(axis=1)
    index, offsets = ranges(np.arange(len(top)) * top.shape[1], np.arange(len(top)) * top.shape[1] + lengths)
    return _as_ids(offsets, top.ravel()[index], item_ids)


def told(metrics: dict[str, Any], out: str | None) -> str:
    """What the command prints: the table, that of lists with diversity where there are some, and where the report is.

    Args:
        metrics: the content of `metrics.json`.
        out: the folder that `write_files` wrote to; None: it did not.
    """
    parts = [format_table(metrics)]
    parts += [format_tradeoff(metrics["diversity"])] if "diversity" in metrics else []
    parts += [f"report: {storage.join(out, 'report.html')}"] if out is not None else []
    return "\n".join(parts)
