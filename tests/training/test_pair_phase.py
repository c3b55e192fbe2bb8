"""Other logs from which the encoder learns: which are refused, and what is said of what they brought."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from here import prepare_here
from shop import make_dataset

from ctxrec.core.config import load_config
from ctxrec.core.dataset_spec import load_spec
from ctxrec.core.errors import UserError
from ctxrec.data.prepared import PreparedData
from ctxrec.ingest.pipeline import prepare
from ctxrec.training.encoder_outcome import EncoderOutcome, PairOutcome, with_pairs
from ctxrec.training.pair_phase import open_other_logs


def prepared(folder: Path, *, num_items: int = 8, wordless: bool = False) -> str:
    """A small prepared log."""
    spec, made = make_dataset(folder / "shop", num_users=12, num_items=num_items), str(folder / "data")
    if wordless:
        items = pq.read_table(folder / "shop" / "items.parquet")
        blank = pa.array([""] * items.num_rows)
        pq.write_table(
            items.set_column(items.column_names.index("title"), "title", blank), folder / "shop" / "items.parquet"
        )
    with pytest.MonkeyPatch.context() as patch:
        prepare_here(patch)
        prepare(load_spec(spec), made, load_config())
    return made


@pytest.mark.parametrize("case", ["none there", "the log itself", "no words"])
def test_a_log_that_teaches_nothing_is_refused(tmp_path, case):
    own = prepared(tmp_path / "own")
    if case == "no words":
        other, said = prepared(tmp_path / "other", num_items=9, wordless=True), "has no item with a text"
    else:
        other, said = {"none there": (str(tmp_path / "gone"), "gone"), "the log itself": (own, "is the log that")}[case]
    config = load_config(None, [f'train.also=["{other}"]', "encoder.name=somewhere"])
    with pytest.raises(UserError, match=said):
        open_other_logs(config, PreparedData.open(own))


def test_nothing_is_opened_where_nothing_is_tuned(tmp_path):
    config = load_config(None, ['train.also=["nowhere"]', "encoder.tune=freeze"])
    assert open_other_logs(config, PreparedData.open(prepared(tmp_path))) == []


FROZEN = EncoderOutcome("frozen", "train.encoder_epochs is 0")


@pytest.mark.parametrize(
    ("pairs", "state", "said"),
    [
        (
            PairOutcome(2, 1500, True, 0.01, 0.02, 3.2),
            "tuned",
            "1,500 pairs of items of 2 logs lifted validation NDCG@10 of",
        ),
        (
            PairOutcome(2, 1500, False, 0.01, 0.01, 3.2),
            "frozen",
            "gained nothing for validation NDCG@10 of the texts alone",
        ),
        (PairOutcome(3, 1500, True, None, None, 3.2), "tuned", "without validation events to judge it by"),
    ],
)
def test_the_outcome_says_what_the_pairs_brought(tmp_path, pairs, state, said):
    pairs.write(str(tmp_path / "pairs.json"))
    assert PairOutcome.read(str(tmp_path / "pairs.json")) == pairs
    found = with_pairs(FROZEN, pairs)
    assert found.state == state and said in found.why and "train.encoder_epochs is 0" in found.why
