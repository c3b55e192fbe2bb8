"""Which settings of diversity and rules an evaluation compares."""

from __future__ import annotations

import pytest

from ctxrec.core.config import DiversityConfig
from ctxrec.core.errors import UserError
from ctxrec.evaluation.diversity_tradeoff import parse_strengths, settings


def test_what_diversity_is_compared_with():
    assert parse_strengths("0.7, 0") == (0.7, 0.0) and parse_strengths("") == ()
    for wrong in ("0,2", "-1", "much", "nan"):
        with pytest.raises(UserError, match=f"--diversity is '{wrong}'; expected numbers from 0 to 1"):
            parse_strengths(wrong)
    plain, capped = DiversityConfig(), DiversityConfig(caps={"category": 2}, strength=0.2)
    assert settings(plain, ()) == {} and list(settings(plain, (0.5, 0.0))) == ["diversity=0", "diversity=0.5"]
    caps = DiversityConfig(caps={"category": 2})
    assert settings(caps, ()) == {"diversity=0": caps}
    assert settings(capped, ()) == {"diversity=caps": caps, "diversity=0.2": capped}
    assert list(settings(capped, (0.5, 0.0))) == ["diversity=0", "diversity=0.5"], "0 is the caps alone"
    both = DiversityConfig(caps={"category": 2}, freshness=0.1, half_life_days=7, rules="rules.toml")
    found = settings(both, (0.3,))
    assert list(found) == ["diversity=caps", "diversity=freshness", "diversity=rules", "diversity=0.3"]
    assert found["diversity=freshness"] == DiversityConfig(freshness=0.1, half_life_days=7)
    assert found["diversity=rules"] == DiversityConfig(rules="rules.toml", half_life_days=7)
