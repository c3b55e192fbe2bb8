"""Start, change and end an A/B test for `python -m ctxrec.publish`, and say what users get now."""

from __future__ import annotations

from ctxrec.bundle.registry import find_bundle, read_published
from ctxrec.core.errors import UserError
from ctxrec.experiments import ab_test


def start_test(
    models: str, *, name: str, arm: str, share: float | None, run: str | None = None, version: str | None = None
) -> str:
    """Give a share of the users another version (see `ab_test.start`); returns one line that names every arm.

    Args:
        models: folder of published models, path or URI.
        name: the test's name.
        arm: the arm's name.
        share: of the users, above 0 and below 1.
        run: run or bundle whose model the arm gets; None: the arm gets `version`, or keeps the version it has.
        version: a version that is published already.

    Raises:
        UserError: the share is missing, both `run` and `version` are given, or `ab_test.start` refuses.
    """
    if share is None:
        raise UserError("--test needs --share, the share of the users that get the model, such as --share 0.1")
    if run and version:
        raise UserError("--test takes a model by --run or by --version, not by both")
    bundle = find_bundle(run) if run else None
    now = ab_test.start(bundle, models, name=name, arm=arm, share=share, version=version)
    arms = [f"{a.name} {a.version} for {a.share:.1%}" for a in now.arms]
    return f"test {now.name}: {', '.join(arms)}; {ab_test.CONTROL} {read_published(models).version} for the rest"


def end_test(models: str) -> str:
    """Give all users the served version again; returns one line that says so.

    Raises:
        UserError: no test runs.
    """
    return f"the test {ab_test.end(models).name} has ended; {models} serves {read_published(models).version}"
