"""The online service.

    serve run serve.app:build_app run=RUN              # this machine; Ctrl-C stops it, SIGTERM after what is in flight
    serve deploy serve/config.yaml                     # a cluster

RUN is a run of `ctxrec.train`, the bundle in it, or a folder of `ctxrec.publish`; a path or a URI. `curl localhost:8000/docs` has the API.

No `from __future__ import annotations` here: Serve reads the type of `build_app`'s argument as it stands.
"""

import uuid
from typing import Any, cast

import ray
import ray.serve
from ray.serve.config import BackpressureConfig

from ctxrec.bundle.format import check_bundle
from ctxrec.bundle.registry import find_bundle, is_models
from ctxrec.core import storage
from ctxrec.live.opening import open_store
from serve.arguments import AppArgs
from serve.deployment import Service
from serve.effective import effective_service
from serve.engine import served_config
from serve.keys import keys_from_environment
from serve.rule_file import RuleFile
from serve.stopping import drain_in_serve_run


def build_app(args: AppArgs) -> ray.serve.Application:
    """The Serve application.

    Raises:
        UserError: no bundle lies at `args.run`, or it or the store is damaged, or the rule file or an option is wrong.
    """
    if args.print_effective:
        print(effective_service(args))
        raise SystemExit(0)
    drain_in_serve_run()
    bundle = find_bundle(args.run)  # absolute: replicas have another working directory than the command
    check_bundle(bundle, scratch=storage.temporary_folder())  # each replica checks again; here the message is in sight
    args = args.resolved()
    served_config(bundle, args.overrides)
    RuleFile(args.rules)
    open_store(args.store, durable=args.store_durable).close()
    if not is_models(args.run):  # of which replicas follow what is served
        args = args.model_copy(update={"run": bundle})
    return (
        cast(Any, Service)
        .options(
            num_replicas=args.replicas,
            ray_actor_options={"num_cpus": args.cpus_per_replica, "num_gpus": args.gpus_per_replica},
            # The replica itself refuses what goes beyond max_waiting, with a JSON body; Serve's own limits lie
            # above it, so that health checks pass, and shed what even that cannot take.
            max_ongoing_requests=2 * args.max_waiting,
            max_queued_requests=args.max_waiting,
            health_check_period_s=2,  # how soon the loss of a replica is noticed
            # Serve writes a line for each request and sends it to the driver's terminal; the proxy's own log has them too.
            logging_config={"enable_access_log": False},
            backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1),
        )
        .bind(args, keys_from_environment(), f"metrics-{uuid.uuid4().hex[:8]}")
    )
