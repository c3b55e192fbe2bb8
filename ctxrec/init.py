"""`ctxrec init events.csv items.parquet --out dataset.toml`: look at the files of a log and write a commented spec."""

from __future__ import annotations

from ctxrec.core import cli, storage
from ctxrec.core.errors import UserError


def main() -> None:
    """Look at the files, write the spec, print what was seen and what is not sure."""
    parser = cli.parser(
        "ctxrec.init", "Look at the files of a log, and write a commented dataset.toml.", reads_options=False
    )
    add = parser.add_argument
    add(
        "files",
        nargs="*",
        metavar="FILE",
        help="files, folders, globs or URIs; their columns show which one is the log",
    )
    for role, what in (
        ("events", "the log of what users did"),
        ("items", "the catalogue"),
        ("users", "attributes of users"),
        ("graph", "triples of a knowledge graph"),
    ):
        add(f"--{role}", metavar="FILE", help=f"{what}, if the columns do not show which file it is")
    add("--out", required=True, metavar="SPEC.toml", help="file to write")
    add("--force", action="store_true", help="replace the file if it exists")
    args = parser.parse_intermixed_args()  # files may stand before and after --out
    roles = {role: path for role in ("events", "items", "users", "graph") if (path := getattr(args, role)) is not None}
    paths = list(dict.fromkeys([*roles.values(), *args.files]))
    if not paths:
        raise UserError(
            "no file is given; expected the log of events at least, as in: ctxrec init events.csv --out SPEC.toml"
        )
    if storage.exists(args.out) and not args.force:
        raise UserError(f"{args.out} is there already; take another --out, or replace it with --force")
    from ctxrec.ingest.guess import guess, sample_files
    from ctxrec.ingest.guess.guess_report import describe_guess
    from ctxrec.ingest.guess.spec_text import spec_text

    found = guess([sample_files(path) for path in paths], roles=roles)
    storage.write_text(args.out, spec_text(found, folder=storage.parent(args.out)))
    print(describe_guess(found))
    print(f"written: {args.out}; check it, then: ctxrec prepare {args.out} --out DATA")


if __name__ == "__main__":
    cli.run(main)
