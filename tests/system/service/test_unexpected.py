"""Calls made up from the OpenAPI document, right ones and wrong ones: none may end in a 5xx.

Last of the folder by its name, as it leaves odd items and events behind. Some hundred with every run of the tests;
thousands by one command:

    python -m pytest tests/system/service/test_unexpected.py -m slow
"""

from __future__ import annotations

from collections import Counter

import pytest


@pytest.mark.parametrize("cases", [100, pytest.param(5000, marks=pytest.mark.slow)])
def test_no_call_that_the_document_allows_or_forbids_is_a_5xx(client, cases):
    """At least so many calls in all."""
    schemathesis = pytest.importorskip(
        "schemathesis", reason="schemathesis is not installed (pip install schemathesis)"
    )
    import requests  # comes with schemathesis
    from hypothesis import HealthCheck, given, settings
    from hypothesis.errors import Unsatisfiable

    schema = schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 10
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    statuses: Counter[int] = Counter()
    broken: list[str] = []
    examples = cases // (len(operations) * len(modes)) + 1

    def attack(operation, mode) -> None:
        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def attempt(case) -> None:
            number = sum(statuses.values())
            address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"  # so that no limit steps in
            response = case.call(session=session, headers={"X-Forwarded-For": address}, timeout=60)
            statuses[response.status_code] += 1
            if response.status_code >= 500:
                broken.append(f"{response.status_code}: {case.as_curl_command()[:2000]}")

        attempt()

    session = requests.Session()  # else each call opens a connection
    for operation in operations:
        for mode in modes:
            try:
                attack(operation, mode)
            except Unsatisfiable:  # a call without parameters cannot be a wrong one
                print(f"{operation.label}: no {mode.value} call")
    # Where few different calls could be made, operations of many calls that are made up fast make up for it.
    many = [
        o for o in operations if o.label in ("GET /v1/items/{item_id}/similar", "GET /v1/users", "POST /v1/recommend")
    ]
    assert len(many) == 3
    while sum(statuses.values()) < cases:
        for operation in many:
            attack(operation, modes[0])
    print(f"\n{sum(statuses.values())} calls: {dict(sorted(statuses.items()))}")
    assert not broken, "\n".join(broken[:5])
    assert statuses[200] > cases // 50 and statuses[422] > cases // 50
