"""What may be given to `ctxrec evaluate` together."""

from __future__ import annotations

import argparse

import pytest

from ctxrec.core.errors import UserError
from ctxrec.evaluation import evaluate_flags


@pytest.mark.parametrize("delay", ["-1", "1e18", "nan", "inf"])
def test_a_delay_is_a_time_that_a_log_can_have(delay):
    parser = argparse.ArgumentParser()
    evaluate_flags.add_flags(parser)
    args = parser.parse_args(["--run", "x", "--stream", "--delay", delay])
    with pytest.raises(UserError, match=r"--delay is .*; expected seconds from 0 to"):
        evaluate_flags.check_flags(args)
