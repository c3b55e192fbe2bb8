"""A small shop whose log has a signal, and a tiny encoder that knows its words: what the real ones are replaced by in tests."""

from __future__ import annotations

import random
import string
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

INTERESTS = ["chess", "films", "cooking", "running"]
WORDS = [
    "red",
    "blue",
    "green",
    "small",
    "large",
    "soft",
    "hard",
    "shoe",
    "hat",
    "coat",
    "lamp",
    "chair",
    "table",
    "sock",
    "glove",
    "scarf",
    "ring",
    "desk",
]


def make_encoder(folder: Path, kind: str = "bert") -> str:
    """Write a random two-layer encoder with a word tokenizer; returns its path."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *string.ascii_lowercase]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(0)
    if kind == "bert":
        model = BertModel(
            BertConfig(
                vocab_size=len(words),
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                max_position_embeddings=64,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )
    else:
        model = GPT2Model(
            GPT2Config(
                vocab_size=len(words), n_embd=32, n_layer=2, n_head=2, n_positions=64,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            )
        )  # fmt: skip
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


def make_dataset(
    folder: Path, *, num_users: int = 60, num_items: int = 40, strategy: str = "last", told: bool = False
) -> str:
    """Write a small shop: parquet log, items with text and features, users; returns the spec's path.

    Users stay inside one of four groups of items and walk through it in order, so there is a signal. With `told` they
    have interests, several of them, and a text about themselves, and the words of the context are `search`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    colours, things = WORDS[:7], WORDS[7:]
    items = {
        "item_id": [f"i{n}" for n in range(num_items)],
        "title": [f"{colours[n % 7]} {things[n % 11]} {string.ascii_lowercase[n % 26]}" for n in range(num_items)],
        "category": [[f"group{n % 4}", "all"] for n in range(num_items)],
        "price": [float(n) if n % 5 else None for n in range(num_items)],
    }
    pq.write_table(pa.table(items), folder / "items.parquet")
    users = {
        "user_id": [f"u{n}" for n in range(num_users)],
        "gender": [rng.choice(["F", "M", None]) for _ in range(num_users)],
        "age": [rng.choice([20.0, 35.0, None]) for _ in range(num_users)],
    }
    if told:
        own = random.Random(1)
        users["interests"] = [own.sample(INTERESTS, own.randint(0, 3)) for _ in range(num_users)]
        users["about"] = [own.choice([None, " ".join(own.sample(WORDS, 4))]) for _ in range(num_users)]
    pq.write_table(pa.table(users), folder / "users.parquet")
    rows = []
    for user in range(num_users):
        position = rng.randrange(num_items // 4)
        time = 1_600_000_000 + rng.randrange(1_000_000)
        for _ in range(rng.randint(4, 15)):
            position = (position + rng.choice([1, 1, 1, 2])) % (num_items // 4)
            time += rng.randint(60, 90_000)
            rows.append(
                (f"u{user}", f"i{position * 4 + user % 4}", time, rng.choice(["view", "buy"]),
                 rng.choice(["tv", "phone"]), rng.random(), rng.choice(["red shoe", "hat", None]))
            )  # fmt: skip
    rng.shuffle(rows)
    columns = list(zip(*rows, strict=True))
    names = ["user_id", "item_id", "timestamp", "action", "device", "basket_value", "search" if told else "query"]
    pq.write_table(pa.table(dict(zip(names, map(list, columns), strict=True))), folder / "events.parquet")
    spec = folder / "dataset.toml"
    spec.write_text(
        f"""name = "tiny"
[events]
path = "events.parquet"
action = "action"
[events.context]
categorical = ["device"]
numeric = ["basket_value"]
text = ["{"search" if told else "query"}"]
[events.actions]
view = 0.5
buy = 1.0
[items]
path = "items.parquet"
text = ["title"]
categorical = ["category"]
numeric = ["price"]
[users]
path = "users.parquet"
categorical = ["gender"{', "interests"' if told else ""}]
numeric = ["age"]
{'text = ["about"]' if told else ""}
[split]
strategy = "{strategy}"
"""
    )
    return str(spec)
