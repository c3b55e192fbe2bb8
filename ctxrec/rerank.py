"""`python -m ctxrec.rerank`: train the optional second stage of a finished run."""

from __future__ import annotations

from ctxrec.core import cli
from ctxrec.core.run_paths import RunPaths


def main() -> None:
    """Read the options, train, print what the second stage gains."""
    parser = cli.parser("ctxrec.rerank", "Train a cross-encoder that puts a run's best candidates in a new order.")
    parser.add_argument("--run", required=True, metavar="RUN", help="a run that ctxrec train finished")
    parser.add_argument("--out", metavar="DIR", help="folder to write (default: RUN/reranker, from where it is used)")
    parser.add_argument("--data", metavar="DATA", help="the prepared data, when it was moved after training")
    args = parser.parse_args()
    from ctxrec.evaluation.offline import open_data
    from ctxrec.reranking.rerank_driver import FREE, train_reranker
    from ctxrec.reranking.rerank_outcome import summary

    data = open_data(args.run, args.data)
    config = cli.config_of_run(args, RunPaths(args.run).config, free=FREE)
    print(summary(train_reranker(args.run, data, config, out=args.out)))


if __name__ == "__main__":
    cli.run(main)
