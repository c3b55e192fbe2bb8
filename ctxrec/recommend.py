"""`python -m ctxrec.recommend --run RUN --requests R.parquet --k 10 --out O.parquet`: recommendations in batches."""

from __future__ import annotations

from ctxrec.bundle.registry import find_bundle
from ctxrec.core import cli
from ctxrec.core.run_paths import BundlePaths
from ctxrec.retrieval.batch_scoring import recommend


def main() -> None:
    """Read the options, score every request, say where the lists are."""
    parser = cli.parser("ctxrec.recommend", "Score a Parquet file of requests with Ray Data.")
    parser.add_argument("--run", required=True, metavar="RUN", help="a run of ctxrec train, or the bundle in it")
    parser.add_argument(
        "--requests",
        required=True,
        metavar="R.parquet",
        help="columns request_id, timestamp (epoch seconds, UTC; null: now), user_id or history (list of item ids, oldest "
        "first; null: the stored history) or both, and optionally one for each context feature, timezone, user (struct of "
        "attributes), dislike, exclude, allow (lists of item ids), filter (struct of item columns), query (free text that the "
        "list should fit), diversity (0 to 1), rerank, explain and probability (true or false)",
    )
    parser.add_argument("--k", required=True, type=int, help="number of items for each request")
    parser.add_argument(
        "--out",
        required=True,
        metavar="O.parquet",
        help="columns request_id, item_ids, scores and, where they are asked for, why (explain), or probability and "
        "probability_of, which says what the probability is of",
    )
    cli.add_rules(parser)
    cli.add_print_effective(parser)
    args = parser.parse_args()
    saved = BundlePaths(find_bundle(args.run)).config
    config = cli.config_of_run(args, saved)
    if args.print_effective:
        from ctxrec.training.effective_options import effective_config

        print(effective_config(config, cli.origins(args, saved), run=args.run))
        return
    num_rows = recommend(args.run, args.requests, args.out, k=args.k, config=config)
    print(f"{num_rows} requests answered: {args.out}")


if __name__ == "__main__":
    cli.run(main)
