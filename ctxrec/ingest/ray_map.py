"""Map blocks through Ray Data tasks, in order, and bring Python values back as blocks."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import ray.data


def map_in_order(
    inputs: list[pa.Table], task: Callable[..., Iterator[pa.Table]], **arguments: Any
) -> Iterator[pa.Table]:
    """Map each input block by a task of its own; yields the tasks' blocks in the order of the inputs."""
    data = ray.data.from_arrow(inputs).map_batches(
        task, batch_size=None, batch_format="pyarrow", zero_copy_batch=True, fn_kwargs=arguments
    )
    data.context.execution_options.preserve_order = True
    yield from data.iter_batches(batch_size=None, batch_format="pyarrow")


def as_block(value: Any) -> pa.Table:
    """A value as a block of one row. It is pickled, as are all values that Ray carries between its processes."""
    return pa.table({"value": pa.array([pickle.dumps(value)], pa.large_binary())})


def values_in(block: pa.Table) -> Iterator[Any]:
    """The values of a block whose rows `as_block` made."""
    for row in block.column("value").to_pylist():
        yield pickle.loads(row)
