"""Small logs in the shapes of well-known public ones, made up here, for the tests of the guess."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WORDS = [
    "red",
    "blue",
    "green",
    "small",
    "large",
    "soft",
    "hard",
    "round",
    "wooden",
    "metal",
    "paper",
    "glass",
    "old",
    "new",
    "bright",
    "dark",
]
THINGS = ["lamp", "chair", "table", "shoe", "coat", "ring", "desk", "scarf", "candle", "basket", "mirror", "clock"]


def write_csv(path: Path, rows: list[dict[str, Any]], *, delimiter: str = ",", encoding: str = "utf-8") -> str:
    with path.open("w", newline="", encoding=encoding) as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def title(rng: np.random.Generator) -> str:
    return " ".join([*rng.choice(WORDS, 2), str(rng.choice(THINGS))]).capitalize()


def movies(folder: Path, rng: np.random.Generator) -> list[str]:
    """As MovieLens latest-small: ratings, movies with genres in one text, tags that look like a log, links that do not."""
    genres = ["Action", "Comedy", "Drama", "Horror", "Children"]
    films = [
        {
            "movieId": n + 1,
            "title": f"{title(rng)} ({1980 + n % 40})",
            "genres": "|".join(rng.choice(genres, 1 + n % 3, False)),
        }
        for n in range(60)
    ]
    ratings = [
        {
            "userId": u,
            "movieId": int(m) + 1,
            "rating": float(rng.integers(1, 11)) / 2,
            "timestamp": 964980000 + int(rng.integers(10**8)),
        }
        for u in range(1, 31)
        for m in rng.choice(60, 12, False)
    ]
    tags = [
        {"userId": 2, "movieId": n % 9 + 1, "tag": str(rng.choice(WORDS)), "timestamp": 1445714994 + n}
        for n in range(15)
    ]
    links = [{"movieId": n + 1, "imdbId": f"0{114709 + 7 * n}", "tmdbId": 862 + 3 * n} for n in range(60)]
    tables = {"links": links, "movies": films, "ratings": ratings, "tags": tags}
    return [write_csv(folder / f"{name}.csv", rows) for name, rows in tables.items()]


def retail(folder: Path, rng: np.random.Generator) -> list[str]:
    """As UCI Online Retail: one table whose rows hold the item's description and the customer's country."""
    goods = [(f"{10000 + 37 * n}{'AB'[n % 2] if n % 5 == 0 else ''}", title(rng).upper(), 1 + n / 4) for n in range(40)]
    rows = []
    for n in range(600):
        code, text, price = goods[int(rng.integers(40))]
        customer = float(rng.integers(12350, 12400))
        rows.append(
            {
                "InvoiceNo": f"{'C' if n % 50 == 0 else ''}{536365 + n // 6}",
                "StockCode": code,
                "Description": text,
                "Quantity": -1.0 if n % 50 == 0 else float(rng.integers(1, 25)),
                "InvoiceDate": np.datetime64("2010-12-01T08:26", "us").astype("O")
                + n * np.timedelta64(7, "m").astype("O"),
                "UnitPrice": round(price * float(rng.choice([1, 1.2, 0.9])), 2),
                "CustomerID": None if n % 4 == 0 else customer,
                "Country": ["France", "Germany", "United Kingdom"][int(customer) % 3],
            }
        )
    return [write_parquet(folder / "online_retail.parquet", rows)]


def hotels(folder: Path, rng: np.random.Generator) -> list[str]:
    """As trivago's sessions: the item's column holds the names of places and filters too."""
    actions = ["interaction item image"] * 8 + ["clickout item", "filter selection"]
    cities = [f"City{n}, Land{n % 4}" for n in range(30)]
    rows = []
    for n in range(900):
        session = n // 6
        action = actions[int(rng.integers(10))]
        shown = [str(v) for v in rng.integers(1000, 1200, 8)]
        rows.append(
            {
                "user_id": f"U{session // 3:05d}",
                "session_id": f"{session * 7919:09x}",
                "timestamp": 1541548800 + 40 * n,
                "step": n % 6 + 1,
                "action_type": action,
                "reference": "Swimming Pool Indoor" if action == "filter selection" else str(rng.integers(1000, 1200)),
                "platform": ["FR", "DE", "UK"][session % 3],
                "city": cities[session % 30],
                "device": ["mobile", "tablet", "desktop"][session % 3],
                "current_filters": "Hotel|Swimming Pool" if n % 11 == 0 else None,
                "impressions": "|".join(shown) if action == "clickout item" else None,
                "prices": "|".join(str(v) for v in rng.integers(40, 300, 8)) if action == "clickout item" else None,
            }
        )
    return [write_parquet(folder / "sessions_100k.parquet", rows)]


def reviews(folder: Path, rng: np.random.Generator) -> list[str]:
    """As the Amazon sets of recommender papers: positions in the place of times, rich texts, an empty column."""
    events = [
        {"user_id": f"A{u}", "item_id": str(int(i)), "timestamp": place}
        for u in range(50)
        for place, i in enumerate(rng.choice(40, 6, False))
    ]
    items = [
        {
            "item_id": str(n),
            "title": f"{title(rng)} with {title(rng).lower()}, pack of {n % 9 + 1}",
            "brand": f"{THINGS[n % 7].capitalize()} & Co.",
            "categories": "",
            "description": " ".join(rng.choice(WORDS, 25)) + ".",
        }
        for n in range(40)
    ]
    return [write_parquet(folder / "events.parquet", events), write_parquet(folder / "items.parquet", items)]


def people(folder: Path, rng: np.random.Generator) -> list[str]:
    """As MovieLens-100K in its parquet form: lists of genres, users with attributes, a graph."""
    events = [
        {
            "user_id": str(u),
            "item_id": str(int(i) + 1),
            "rating": float(rng.integers(1, 6)),
            "timestamp": 874724000 + int(rng.integers(10**7)),
        }
        for u in range(1, 41)
        for i in rng.choice(50, 10, False)
    ]
    items = [
        {"item_id": str(n + 1), "title": title(rng), "genres": ["Drama", "Comedy"][: 1 + n % 2], "year": 1950 + n}
        for n in range(50)
    ]
    users = [
        {
            "user_id": str(u),
            "gender": "MF"[u % 2],
            "occupation": ["student", "writer", "doctor"][u % 3],
            "age": 18.0 + u,
        }
        for u in range(1, 41)
    ]
    graph = [{"head": str(n % 50 + 1), "relation": "film.actor", "tail": f"m.{n % 13:04d}"} for n in range(150)]
    tables = {"users": users, "graph": graph, "items": items, "events": events}
    return [write_parquet(folder / f"{name}.parquet", rows) for name, rows in tables.items()]


def shop(folder: Path, rng: np.random.Generator) -> list[str]:
    """A German shop: semicolons, an encoding of Windows, texts of local times, actions, pictures."""
    events = [
        {
            "Kunde": f"K{rng.integers(30):03d}",
            "customer": f"K{rng.integers(30):03d}",
            "sku": f"A-{rng.integers(25):04d}",
            "at": f"2024-03-{1 + n % 28:02d}T{n % 24:02d}:15:00+01:00",
            "kind": str(rng.choice(["view", "view", "cart", "purchase"])),
            "device": str(rng.choice(["phone", "desktop"])),
            "search_query": f"grüne {rng.choice(THINGS)} für draußen {n % 17}",
        }
        for n in range(500)
    ]
    events = [{k: v for k, v in row.items() if k != "Kunde"} for row in events]
    products = [
        {
            "sku": f"A-{n:04d}",
            "title": f"Schöne {title(rng)} für Köche",
            "category": ["Möbel", "Küche", "Büro"][n % 3],
            "price": f"{5 + n * 1.25:.2f}",
            "picture": f"https://example.org/bilder/{n}.jpg",
            "added": f"2023-01-{1 + n % 28:02d}",
        }
        for n in range(25)
    ]
    return [
        write_csv(folder / "log.csv", events, delimiter=";", encoding="cp1252"),
        write_csv(folder / "products.csv", products, delimiter=";", encoding="cp1252"),
    ]
