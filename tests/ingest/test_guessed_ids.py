"""Which columns of a log are taken for the user and the item, where no name tells."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from ctxrec.ingest.guess import guess, sample_table


@pytest.mark.parametrize("left_out", ["Kunde", "Artikelnummer"])
def test_a_column_of_a_few_values_that_nothing_names_is_no_user_and_no_item(left_out):
    """A model of three "users" would look well and be nonsense."""
    rng, num = np.random.default_rng(0), 3000
    columns = {
        "Kunde": [f"K{n:04d}" for n in rng.integers(0, 300, num)],
        "Artikelnummer": [f"A{n:04d}" for n in rng.integers(0, 150, num)],
        "Zeitpunkt": pa.array(1_700_000_000 + rng.integers(0, 10**7, num), pa.timestamp("s")),
        "Vorgang": rng.choice(["angesehen", "gekauft", "zurück"], num).tolist(),
        "Menge": rng.integers(1, 5, num),
    }
    key = "user" if left_out == "Kunde" else "item"
    whole = guess([sample_table("log", pa.table(columns))]).spec.events
    assert (whole.user, whole.item, whole.action) == ("Kunde", "Artikelnummer", "Vorgang")
    found = guess([sample_table("log", pa.table({k: v for k, v in columns.items() if k != left_out}))])
    assert getattr(found.spec.events, key) == "" and getattr(found.spec.events, {"user": "item", "item": "user"}[key])
    assert any(f"no column of log looks like the id of the {key}; name one" in doubt.text for doubt in found.unsure)


@pytest.mark.parametrize("name", ["Gerät", "Gerätetyp", "GERÄT", "Betriebssystem", "Filiale"])
def test_a_german_column_of_the_context_is_found(name):
    rng, num = np.random.default_rng(0), 2000
    columns = {
        "Kunde": [f"K{n:04d}" for n in rng.integers(0, 300, num)],
        "Artikel": [f"A{n:04d}" for n in rng.integers(0, 150, num)],
        "Zeitpunkt": pa.array(1_700_000_000 + rng.integers(0, 10**7, num), pa.timestamp("s")),
        name: rng.choice(["eins", "zwei", "drei"], num).tolist(),
    }
    assert guess([sample_table("log", pa.table(columns))]).spec.events.context.categorical == (name,)
