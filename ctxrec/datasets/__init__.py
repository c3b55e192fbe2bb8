"""Public data sets by name: tables and a spec, ready for `ctxrec.prepare` (`python -m ctxrec.datasets NAME --out DIR`)."""

from __future__ import annotations

from collections.abc import Callable

from ctxrec.datasets.amazon_industrial import write_amazon_industrial
from ctxrec.datasets.common import source_name
from ctxrec.datasets.movielens_100k import write_movielens_100k
from ctxrec.datasets.movielens_small import write_movielens_small
from ctxrec.datasets.moving_files import write_news, write_shop
from ctxrec.datasets.online_retail import write_online_retail, write_online_retail_repeats
from ctxrec.datasets.simulated import write_simulated
from ctxrec.datasets.trivago import write_trivago

__all__ = [
    "DATASETS",
    "SIMULATE",
    "SIMULATE_NEWS",
    "SIMULATE_SHOP",
    "source_name",
    "write_movielens_100k",
    "write_news",
    "write_shop",
    "write_simulated",
]

# The names that make a log instead of reading one.
SIMULATE, SIMULATE_NEWS, SIMULATE_SHOP = "simulate", "simulate-news", "simulate-shop"

DATASETS: dict[str, Callable[[str, str | None], bool]] = {
    "movielens-100k": write_movielens_100k,
    "ml-latest-small": write_movielens_small,
    "online-retail": write_online_retail,
    "online-retail-repeats": write_online_retail_repeats,
    "amazon-industrial": write_amazon_industrial,
    "trivago": write_trivago,
}
