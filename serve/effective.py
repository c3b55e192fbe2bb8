"""The arguments and options of a service as they would be used, with where each comes from (`print_effective=true`)."""

from __future__ import annotations

from ctxrec.bundle.registry import find_bundle
from ctxrec.core.option_origins import annotated_config, option_origins
from ctxrec.core.run_paths import BundlePaths
from ctxrec.core.toml import toml_value
from serve.arguments import AppArgs
from serve.engine import served_config

_COMMENT_AT = 44


def effective_service(args: AppArgs) -> str:
    """All arguments under [service], then the options of the bundle that a service uses, as TOML with comments.

    Raises:
        UserError: no bundle lies at `args.run`, or an option is unknown.
    """
    bundle = find_bundle(args.run)
    lines = ["[service]"]
    for key, value in args.resolved().model_dump().items():
        given = getattr(args, key)
        origin = "given" if key in args.model_fields_set else "default"
        if value != given and given:
            origin += f": {toml_value(given)}"
        elif value != given:
            origin += ": beside the run" if key != "store" else ": live/ of the run"
        lines.append(f"{key} = {toml_value(value)}".ljust(_COMMENT_AT - 2) + f"  # {origin}")
    saved = BundlePaths(bundle).config
    origins = option_origins(None, args.overrides, base=saved)
    origins = {name: "options" if origin == "--set" else origin for name, origin in origins.items()}
    config = served_config(bundle, args.overrides)
    return "\n".join([*lines, "", annotated_config(config, origins, {}, sections=("index", "diversity", "rerank"))])
