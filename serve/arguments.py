"""Arguments of the service, with their defaults: `serve run ... key=value`, and `args:` in the YAML file."""

import hashlib
import os
import shlex
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ctxrec.bundle.registry import is_models
from ctxrec.core import storage
from ctxrec.core.run_paths import RunPaths


class AppArgs(BaseModel):
    """Arguments of the service, for `serve run ... key=value` and for `args:` in the YAML file."""

    model_config = ConfigDict(extra="forbid")

    run: str = Field(description="run, bundle, or folder of published models (ctxrec publish): path or URI")
    models_every_s: float = Field(default=2, gt=0, description="seconds between looks for a newly published model")
    replicas: int = Field(default=1, ge=1)
    cpus_per_replica: float = Field(default=1, gt=0, description="also the number of computing threads")
    gpus_per_replica: float = Field(default=0, ge=0)
    max_batch_size: int = Field(default=32, ge=1, description="requests that go through the model together")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="number format in which histories are read; bf16 is faster on CPUs with AMX, and less exact",
    )
    history_cache_mb: int = Field(
        default=128,
        ge=0,
        description="size of the cache of history states; 0: no cache",
    )
    direct_port: int = Field(
        default=8001,
        ge=0,
        le=65535,
        description="port at which replicas take requests directly, without Serve's proxy; all replicas of a machine share it; 0: none",
    )
    direct_host: str = Field(default="127.0.0.1", description="address of direct_port")
    max_waiting: int = Field(default=512, ge=1, description="waiting requests of a replica; more get 503")
    store: str = Field(
        default="",
        description="where posted events live: a local folder, or redis://...; empty: live/ beside the bundle",
    )
    store_durable: bool = Field(
        default=True, description="refuse a Redis server that may lose what it has acknowledged"
    )
    event_files: str = Field(
        default="",
        description="folder (path or URI) for the Parquet files of posted events; empty: events/ in the store's folder",
    )
    event_files_every_s: float = Field(
        default=60, gt=0, description="seconds between writes of posted events, items and users to files"
    )
    item_files: str = Field(
        default="",
        description="folder (path or URI) for the Parquet files of posted items; empty: items/ in the store's folder",
    )
    user_files: str = Field(
        default="",
        description="folder (path or URI) for the Parquet files of posted users; empty: users/ in the store's folder",
    )

    exposures: str = Field(
        default="",
        description="folder (path or URI) for the Parquet files of an A/B test; empty: exposures/ in the store's folder",
    )

    options: str = Field(
        default="",
        description="options that override those of the bundle, as --set takes them, separated by blanks: index.*, diversity.* and rerank.use",
    )
    rules: str = Field(default="", description="file of blocks, boosts and pins; path or URI, read again on changes")
    rules_every_s: float = Field(default=2, gt=0, description="seconds between looks at the rule file")

    load_encoder: bool = Field(
        default=True, description="load the text encoder at start, so that the first new item need not wait for it"
    )
    items_every_s: float = Field(default=0.5, gt=0, description="seconds between looks for new items of other replicas")

    rate_limit: float = Field(default=0, ge=0, description="requests a second of one key or address; 0: no limit")
    rate_burst: float = Field(default=100, ge=1, description="requests that a caller may make at once after a pause")
    trusted_proxies: int = Field(
        default=0, ge=0, description="number of proxies in front whose X-Forwarded-For is trusted"
    )
    access_log: str = Field(default="", description="file for a JSON line a request; -: standard output; empty: none")
    hosts: str = Field(
        default="",
        description="names that the Host header may have where no API keys are set, besides those of this machine, separated by commas; *: any",
    )
    print_effective: bool = Field(
        default=False,
        description="with `serve run`: print all arguments and options as they would be used, with where each comes from, and end",
    )
    page: bool = Field(default=True, description="serve a web page for people at /")
    cors_origins: str = Field(default="", description="allowed CORS origins, separated by commas, or *")

    def live_folder(self) -> str:
        """The local folder beside the bundle; in the cache where that lies at a URI."""
        run = self.run.rstrip("/")
        if storage.is_uri(run):
            return os.path.join(storage.cache_dir(), "live", hashlib.sha256(run.encode()).hexdigest()[:16])
        run = os.path.abspath(run)
        is_bundle = not os.path.isdir(RunPaths(run).bundle) and not is_models(run)
        return RunPaths(os.path.dirname(run) if is_bundle else run).live

    def resolved(self) -> "AppArgs":
        """With absolute places for everything that has a default place: replicas have other working folders."""

        def absolute(path: str) -> str:
            return path if storage.is_uri(path) else os.path.abspath(path)

        store = absolute(self.store) if self.store else self.live_folder()
        beside = self.live_folder() if storage.is_uri(store) else store
        files = absolute(self.event_files) if self.event_files else os.path.join(beside, "events")
        items = absolute(self.item_files) if self.item_files else os.path.join(beside, "items")
        users = absolute(self.user_files) if self.user_files else os.path.join(beside, "users")
        shown = absolute(self.exposures) if self.exposures else os.path.join(beside, "exposures")
        rules = absolute(self.rules) if self.rules else ""
        places = {"run": absolute(self.run), "store": store, "event_files": files, "item_files": items}
        places |= {"user_files": users, "exposures": shown, "rules": rules}
        return self.model_copy(update=places)

    @property
    def overrides(self) -> list[str]:
        """`options` one by one."""
        return shlex.split(self.options)
