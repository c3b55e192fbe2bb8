"""How callers ask: names of the host, HEAD, a slash too many, hanging up. At both ports."""

from __future__ import annotations

import re
import socket

import httpx
import pytest


@pytest.fixture
def addresses(client, direct_port) -> list[str]:
    """The service behind Serve's proxy, and without it."""
    return [str(client.base_url), f"http://127.0.0.1:{direct_port}"]


def test_a_page_of_another_site_that_points_its_name_here_is_refused(addresses):
    """DNS rebinding: the browser sends the name of the other site as Host."""
    for address in addresses:
        for host in ("evil.example", "evil.example:8000", "10.0.0.7:8000", "localhost.evil.example"):
            for method, path in (
                ("GET", "/v1/users"),
                ("GET", "/metrics"),
                ("GET", "/"),
                ("HEAD", "/"),
                ("POST", "/v1/events"),
            ):
                answer = httpx.request(
                    method, address + path, headers={"Host": host}, json={} if method == "POST" else None
                )
                assert answer.status_code == 421, (address, host, path)
            assert "hosts=NAME" in httpx.get(f"{address}/v1/users", headers={"Host": host}).json()["detail"]
        assert httpx.get(f"{address}/readyz", headers={"Host": "10.0.0.7"}).status_code == 200, "a probe"
        for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "shop.localhost"):
            assert httpx.get(f"{address}/v1/users", headers={"Host": host}).status_code == 200


def test_head_is_answered_like_get_without_a_body(addresses):
    paths = ("/", "/docs", "/docs/swagger-ui.css", "/openapi.json", "/healthz", "/readyz", "/metrics", "/v1/catalogue", "/v1/users",
             "/v1/items?id=i1", "/v1/items/i1/similar?k=3", "/v1/users/u1/history", "/v1/users/u1", "/v1/users/nobody", "/v1/items/nothing/similar", "/nothing")  # fmt: skip
    for address in addresses:
        for path in paths:
            got, head = httpx.get(address + path), httpx.head(address + path)
            assert head.status_code == got.status_code and head.content == b"", path
            assert head.headers["content-type"] == got.headers["content-type"], path
            if path != "/metrics":  # which counts these very calls
                assert head.headers["content-length"] == str(len(got.content)), path
        assert (
            httpx.head(f"{address}/v1/recommend").status_code == httpx.get(f"{address}/v1/recommend").status_code == 405
        )


def test_a_slash_too_many_is_no_redirect(addresses):
    for address in addresses:
        for method, path in (
            ("GET", "/docs/"),
            ("GET", "/v1/users/"),
            ("GET", "/readyz/"),
            ("POST", "/v1/recommend/"),
            ("GET", "/page/"),
        ):
            answer = httpx.request(method, address + path, json={"user_id": "u1"} if method == "POST" else None)
            known = (404, 405, 422)  # 422: /v1/users/ asks for a user without an id
            assert answer.status_code in known and "location" not in answer.headers, path


def counted(address: str) -> dict[str, float]:
    """Answers by status."""
    found: dict[str, float] = {}
    for status, value in re.findall(
        r'^ctxrec_requests_total\{.*status="(\d+)"\} (\S+)', httpx.get(f"{address}/metrics").text, re.M
    ):
        found[status] = found.get(status, 0) + float(value)
    return found


def test_a_client_that_hangs_up_is_no_fault_of_the_service(addresses, wait_for):
    body = b'{"user_id": "u1", "k": 5}'
    for address in addresses:
        before = counted(address)
        host, port = address.removeprefix("http://").split(":")
        for sent in (body[:7], body):  # in the middle of the body, and before the answer
            for _ in range(10):
                with socket.create_connection((host, int(port))) as client:
                    head = f"POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
                    client.sendall(head.encode() + b"\r\n\r\n" + sent)

        def ended(before: dict[str, float] = before, address: str = address) -> bool:
            now = counted(address)
            # A call whose body is whole ends as 200 or 499, by whether the answer or the hang-up was first.
            over = sum(now.get(status, 0) - before.get(status, 0) for status in ("200", "499"))
            assert now.get("500", 0) == before.get("500", 0), "a hang-up was counted as a fault of the service"
            return over >= 10

        wait_for(ended)
