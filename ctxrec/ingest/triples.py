"""Knowledge-graph triples as a category of items: an item has the pairs (relation, tail) of the triples it heads.

A pair that only one item has carries no more information than the item's ID, so it is left out.

Legend: N triples, I items, P distinct pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ctxrec.core import storage
from ctxrec.core.dataset_spec import GraphSpec
from ctxrec.data import parsing
from ctxrec.data.column_facts import FirstReject
from ctxrec.data.parsing import Coded
from ctxrec.ingest import readers
from ctxrec.ingest.rejects import first_of_each, reject_table, write_rejects

INCOMPLETE = "graph: incomplete triple"


@dataclass(frozen=True)
class Triples:
    """Complete triples [N] in the order of the files."""

    heads: Coded
    pairs: Coded  # "relation: tail"
    rejects: dict[str, int]
    first_rejects: dict[str, FirstReject]  # by reason

    def __len__(self) -> int:
        return len(self.heads.codes)


def read_triples(files: Sequence[readers.FileInfo], graph: GraphSpec, *, rejects: str) -> Triples:
    """Read triples; those that lack a part are kept in the folder `rejects`."""
    columns = [graph.head, graph.relation, graph.tail]
    coded, rejected = [], []
    for piece in readers.make_pieces(files, rows=1 << 20):
        for batch in readers.read_piece(piece, columns):
            head, relation, tail = (parsing.to_text(batch.table.column(name)) for name in columns)
            pair = pc.binary_join_element_wise(relation, tail, ": ")  # null where a part is
            complete = pc.and_(pc.is_valid(head), pc.is_valid(pair))
            coded.append([part.filter(complete).dictionary_encode() for part in (head, pair)])
            bad = np.flatnonzero(~complete.to_numpy(zero_copy_only=False))
            if len(bad) or batch.malformed:
                raw, lines = batch.table.take(pa.array(bad)), [(piece.path, row, t) for row, t in batch.malformed]
                reasons, paths = np.full(len(bad), INCOMPLETE, object), np.full(len(bad), piece.path, object)
                rejected.append(reject_table(raw, reasons, paths, batch.rows[bad], lines))
    kind = pa.dictionary(pa.int32(), pa.string())
    heads, pairs = (parsing.encode(pa.chunked_array([parts[n] for parts in coded], kind)) for n in (0, 1))
    counts: dict[str, int] = {}
    firsts: dict[str, FirstReject] = {}
    if rejected:
        table = pa.concat_tables(rejected)
        write_rejects(table, storage.join(rejects, "graph.parquet"))
        found = table.column("reason").value_counts().to_pylist()
        counts = {_reason(f["values"]): f["counts"] for f in found}
        firsts = {_reason(reason): first for reason, first in first_of_each(table, {}).items()}
    return Triples(heads, pairs, counts, firsts)


def _reason(name: str) -> str:
    return f"graph: {name.removeprefix('graph: ')}"


def pairs_of(triples: Triples, item_ids: pa.Array) -> pa.Array:
    """The pairs that each item shares with another item, each once, in the order of the files: list<string> [I]."""
    position = pc.index_in(triples.heads.values, value_set=item_ids).fill_null(-1).to_numpy(zero_copy_only=False)
    item, pair = position[triples.heads.codes].astype(np.int64), triples.pairs.codes
    num_pairs, num_items = len(triples.pairs.values), len(item_ids)
    rows = np.flatnonzero(item >= 0)
    rows = rows[np.unique(item[rows] * num_pairs + pair[rows], return_index=True)[1]]  # sorted by item and pair
    rows = rows[np.bincount(pair[rows], minlength=num_pairs)[pair[rows]] > 1]
    rows = rows[np.lexsort((rows, item[rows]))]
    offsets = np.zeros(num_items + 1, np.int32)
    np.cumsum(np.bincount(item[rows], minlength=num_items), out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), triples.pairs.values.take(pa.array(pair[rows])))
