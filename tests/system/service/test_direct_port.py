"""Requests straight to the replicas: the same answers as through Serve's proxy, and a port that nobody else shares.

`tests/system/test_stopping.py` holds that the port closes with the service.
"""

from __future__ import annotations

import re

import httpx
import psutil
from tolerance import assert_same_json


def test_direct_requests_get_the_answers_of_the_proxy(client, direct_port, tiny_run, tmp_path):
    import ray.serve

    from serve.app import AppArgs, build_app

    # A second service, which goes without the port that is taken.
    args = AppArgs(
        run=tiny_run, cpus_per_replica=0.1, store=str(tmp_path / "other"), load_encoder=False, direct_port=direct_port
    )
    ray.serve.run(build_app(args), name="other", route_prefix="/other")
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{direct_port}", timeout=60) as direct:
            body = {"history": [{"item_id": "i1"}], "k": 3, "context": {"timestamp": 1_700_000_000}}
            before = answered(direct)
            through_proxy = client.ask(**body)
            assert len(through_proxy["items"]) == 3
            assert_same_json(direct.post("/v1/recommend", json=body).json(), through_proxy)
            assert_same_json(client.post("/other/v1/recommend", json=body).json(), through_proxy)
            assert answered(direct) == before + 2, "the direct port is that of the first service"
            refused = direct.post("/v1/recommend", json={"k": 3})
            assert refused.status_code == 422 and "user_id or history" in refused.text
        heard = {
            c.laddr.ip for c in psutil.net_connections("tcp4") if c.status == "LISTEN" and c.laddr.port == direct_port
        }
        assert heard == {"127.0.0.1"} == {ray.serve.config.HTTPOptions().host}, "from this machine alone, unless told"
    finally:
        ray.serve.delete("other")


def answered(direct: httpx.Client) -> float:
    """Recommendations that the service has answered."""
    counts = direct.get("/metrics").text
    found = re.search(r'^ctxrec_requests_total\{route="/v1/recommend",status="200"\} (\S+)', counts, re.M)
    return float(found[1]) if found else 0.0
