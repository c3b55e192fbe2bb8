"""`python -m ctxrec.ab --exposures E --events V`: the result of an A/B test, as a table and as JSON."""

from __future__ import annotations

from ctxrec.core import cli, storage
from ctxrec.core.dataset_spec import EventsSpec, load_spec
from ctxrec.core.errors import UserError
from ctxrec.experiments.ab_report import format_report, report
from ctxrec.experiments.event_credit import attribute, choose_experiment, read_log
from ctxrec.experiments.exposures import read_exposures


def main() -> None:
    """Read both logs, compare the arms, print and write the table."""
    parser = cli.parser(
        "ctxrec.ab",
        "Compare the arms of an A/B test by what their users did after they saw a list.",
        reads_options=False,
    )
    parser.add_argument(
        "--exposures", required=True, help="lists that the service logged (live/exposures); path, glob or URI"
    )
    parser.add_argument("--events", required=True, help="what users did: live/events, or any log; path, glob or URI")
    parser.add_argument("--spec", metavar="SPEC.toml", help="dataset spec, for the columns of --events")
    parser.add_argument(
        "--experiment",
        metavar="NAME",
        help="name of the A/B test; needed if the exposures have several",
    )
    parser.add_argument(
        "--window-hours",
        type=float,
        default=24 * 7,
        help="events later than this after a list do not count (default: 168)",
    )
    parser.add_argument("--shown-only", action="store_true", help="count only events on items of the list")
    parser.add_argument("--out", metavar="AB.json", help="where the table goes as JSON; path or URI")
    args = parser.parse_args()
    if not args.window_hours > 0:
        raise UserError(f"--window-hours is {args.window_hours}; expected above 0")
    spec = load_spec(args.spec).events if args.spec else EventsSpec(path=args.events, action="action")
    experiment, exposures = choose_experiment(read_exposures(args.exposures), args.experiment)
    window_s = args.window_hours * 3600
    observed = attribute(exposures, read_log(args.events, spec), window_s=window_s, shown_only=args.shown_only)
    found = report(observed, experiment=experiment, window_s=window_s)
    print(format_report(found))
    if args.out:
        storage.write_json(args.out, found)


if __name__ == "__main__":
    cli.run(main)
