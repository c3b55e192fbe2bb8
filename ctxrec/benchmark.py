"""`python -m ctxrec.benchmark --suite SUITE.toml --out DIR`: several data sets and seeds, one table."""

from __future__ import annotations

from ctxrec.core import cli


def main() -> None:
    """Read the suite, run what is not done yet, print the table."""
    parser = cli.parser(
        "ctxrec.benchmark", "Data set, prepare, train and evaluate for every data set and seed of a suite; one table."
    )
    parser.add_argument("--suite", required=True, metavar="SUITE.toml", help="data sets, seeds and options")
    parser.add_argument("--out", required=True, metavar="DIR", help="local folder; what is finished there is reused")
    parser.add_argument("--sources", metavar="DIR", help="folder with one sub-folder of own files for each data set")
    parser.add_argument(
        "--only", metavar="LABEL", action="append", help="only this data set; may be given several times"
    )
    args = parser.parse_args()
    from ctxrec.benchmarks.results import markdown
    from ctxrec.benchmarks.runner import run_from

    results = run_from(
        args.suite, args.out, sources=args.sources, only=args.only, config=args.config, overrides=args.overrides
    )
    print(markdown(results))
    print(f"report: {args.out}/report.html")
    if any(row["failures"] for row in results["datasets"]):
        raise SystemExit(1)


if __name__ == "__main__":
    cli.run(main)
