"""The peers of the service: the same model and a FAISS flat index behind FastAPI, and behind plain Ray Serve.

The code is plain: ctxrec's own functions turn requests into tensors, the tower runs unchanged, and FAISS searches all
vectors. There is no history store, and there are no keys, metrics, filters, or checks beyond pydantic's.

    python tests/bench/serve_peers.py BUNDLE PORT            # FastAPI and uvicorn, one process, no batches
    python tests/bench/serve_peers.py BUNDLE PORT --threads  # as many requests at once as there are cores

No `from __future__ import annotations`: see `serve.deployment`.
"""

import argparse
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of threads that ask for no number of their own

import anyio.to_thread
import faiss
import ray.serve
import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ctxrec.retrieval.load import load_recommender
from ctxrec.retrieval.raw_request import RawEvent, RawRequest


class Event(BaseModel):
    item_id: str


class Context(BaseModel):
    timestamp: float | None = None


class Body(BaseModel):
    user_id: str | None = None
    k: int = 10
    context: Context = Context()
    history: list[Event] | None = None


class PlainModel:
    """The towers of a bundle and a flat index of its vectors; the memory's part of a score where it has one."""

    def __init__(self, bundle: str):
        self._recommender = load_recommender(bundle)
        self._index = faiss.IndexFlatIP(self._recommender.vectors.shape[1])
        self._index.add(self._recommender.vectors)

    @torch.inference_mode()
    def recommend(self, bodies: list[Body]) -> list[dict]:
        recommender = self._recommender
        raw = [
            RawRequest(
                user_id=body.user_id,
                timestamp=body.context.timestamp,
                history=None if body.history is None else [RawEvent(event.item_id) for event in body.history],
            )
            for body in bodies
        ]
        requests, _ = recommender.make_requests(raw)
        queries = recommender.queries(requests)
        seen = [set(items.tolist()) for items in requests.seen()]
        num = max(body.k + len(out) for body, out in zip(bodies, seen, strict=True))
        scores, found = self._index.search(queries, num)
        answers = []
        for body, row, row_scores, out in zip(bodies, found.tolist(), scores.tolist(), seen, strict=True):
            kept = [(item, score) for item, score in zip(row, row_scores, strict=True) if item not in out][: body.k]
            items = [{"item_id": recommender.item_ids[item], "score": score} for item, score in kept]
            answers.append({"items": items, "model_version": recommender.model_version, "fallback": False})
        return answers


def fastapi_app(bundle: str, *, in_threads: bool) -> FastAPI:
    """One thread for each computation: more would get into each other's way, with requests so small."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    model = PlainModel(bundle)

    @asynccontextmanager
    async def limited(app: FastAPI):
        anyio.to_thread.current_default_thread_limiter().total_tokens = os.cpu_count() or 1
        yield

    app = FastAPI(lifespan=limited)

    def in_thread(body: Body):
        return model.recommend([body])[0]

    async def in_loop(body: Body):
        return model.recommend([body])[0]

    app.post("/v1/recommend")(in_thread if in_threads else in_loop)
    return app


def ray_serve_app(bundle: str, *, batch_wait_s: float = 0.01, max_ongoing: int = 100) -> ray.serve.Application:
    """The way of Ray Serve's documentation: a FastAPI ingress and `@serve.batch`, everything else as it comes.

    `batch_wait_s`: how long a batch waits to be filled, Ray Serve's default where it is not given.
    """
    app = FastAPI()

    @ray.serve.deployment
    @ray.serve.ingress(app)
    class Plain:
        def __init__(self):
            sys.path.insert(0, str(ROOT))
            self.model = PlainModel(bundle)

        @ray.serve.batch(max_batch_size=32, batch_wait_timeout_s=batch_wait_s)
        async def rank(self, bodies: list[Body]) -> list[dict]:
            return self.model.recommend(bodies)

        @app.post("/v1/recommend")
        async def recommend(self, body: Body):
            return await self.rank(body)

    return Plain.options(max_ongoing_requests=max_ongoing).bind()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder of a bundle, as serve_bundle.py or a training writes it")
    parser.add_argument("port", type=int, help="where FastAPI listens on 127.0.0.1")
    parser.add_argument("--threads", action="store_true", help="answer in threads, and not in the event loop")
    args = parser.parse_args()
    made = fastapi_app(args.bundle, in_threads=args.threads)
    uvicorn.run(made, host="127.0.0.1", port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
