"""Accuracy of sentence-transformers and RecBole on prepared data in a given time, each with its own trainer.

    python tests/bench/encoder_peers.py sentence-transformers --data DATA --encoder FOLDER --minutes 10 [--bf16]
    python tests/bench/encoder_peers.py recbole --data DATA --minutes 10
    python tests/bench/encoder_peers.py ctxrec --run RUN

It runs in an environment of its own (`pip install sentence-transformers peft datasets recbole==1.2.1`), so it imports
nothing of ctxrec; the last form reads the log of a ctxrec training. All systems train on the events before each user's
validation event and rank that event among all items that the user has not had. Each line is one evaluation:
seconds of training so far (evaluation not counted), training examples a second, NDCG@10.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import tempfile
import time
from dataclasses import dataclass

import numpy as np

TRAIN, VALID = 0, 1
K = 10
TITLES = 5  # of the history, latest last, that make up the text of a query


@dataclass
class Log:
    """Histories as item indices: those before the validation event, and that event's item."""

    users: list[str]
    train: list[list[int]]
    valid: list[int]  # -1 where a user has none
    titles: list[str]


def read(data: str) -> Log:
    import pyarrow.parquet as pq

    items = pq.read_table(os.path.join(data, "items.parquet"))
    found = Log([], [], [], [title or "" for title in items["title"].to_pylist()])
    for path in sorted(glob.glob(os.path.join(data, "histories", "*.parquet"))):
        for row in pq.read_table(path, columns=["user_id", "items", "split"]).to_pylist():
            train = [n for n, split in enumerate(row["split"]) if split == TRAIN]
            valid = [n for n, split in enumerate(row["split"]) if split == VALID]
            found.users.append(row["user_id"])
            found.train.append([row["items"][n] for n in train])
            found.valid.append(row["items"][valid[0]] if valid else -1)
    return found


def ndcg(scores_NI: np.ndarray, seen: list[list[int]], target_N: np.ndarray) -> float:
    """Mean NDCG@10 of one target a request among the items that are not seen."""
    for row, items in zip(scores_NI, seen, strict=True):
        row[items] = -np.inf
    own = scores_NI[np.arange(len(target_N)), target_N]
    rank = (scores_NI > own[:, None]).sum(1)
    return float(np.where(rank < K, 1 / np.log2(rank + 2.0), 0.0).mean())


def say(name: str, seconds: float, examples: float, value: float) -> None:
    made = {
        "system": name,
        "seconds": round(seconds, 1),
        "examples_per_s": round(examples, 1),
        "ndcg@10": round(value, 4),
    }
    print(json.dumps(made), flush=True)


def sentence_transformers(log: Log, encoder: str, minutes: float, bf16: bool) -> None:
    """LoRA of rank 8, multiple negatives ranking, 64 pairs of (titles of five events, next title) a step."""
    from datasets import Dataset
    from peft import LoraConfig, TaskType
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MultipleNegativesRankingLoss
    from transformers import TrainerCallback

    model = SentenceTransformer(encoder, device="cpu")
    model.max_seq_length = 128
    model.add_adapter(
        LoraConfig(task_type=TaskType.FEATURE_EXTRACTION, r=8, lora_alpha=16, target_modules="all-linear")
    )
    pairs = [
        (". ".join(log.titles[i] for i in items[max(0, n - TITLES) : n]), log.titles[items[n]])
        for items in log.train
        for n in range(1, len(items))
    ]
    asked = [n for n, item in enumerate(log.valid) if item >= 0 and log.train[n]]
    queries = [". ".join(log.titles[i] for i in log.train[n][-TITLES:]) for n in asked]

    def measure() -> float:
        options = {"batch_size": 128, "normalize_embeddings": True, "show_progress_bar": False}
        found = model.encode(queries, **options) @ model.encode(log.titles, **options).T
        return ndcg(
            np.asarray(found, np.float32), [log.train[n] for n in asked], np.array([log.valid[n] for n in asked])
        )

    class Watch(TrainerCallback):
        """Evaluates every fifth of the time and ends the training when it is over."""

        def __init__(self) -> None:
            self.trained, self.begin, self.due = 0.0, 0.0, minutes * 12.0

        def on_step_begin(self, args, state, control, **kwargs):
            self.begin = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            self.trained += time.perf_counter() - self.begin
            if self.trained >= self.due:
                self.due += minutes * 12.0
                say("sentence-transformers", self.trained, state.global_step * 64 / self.trained, measure())
            control.should_training_stop = self.trained >= minutes * 60

    say("sentence-transformers", 0, 0, measure())
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            folder, per_device_train_batch_size=64, num_train_epochs=100, learning_rate=5e-4, bf16=bf16, use_cpu=True,
            save_strategy="no", report_to="none", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        rows = Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [p for _, p in pairs]})
        SentenceTransformerTrainer(
            model, arguments, train_dataset=rows, loss=MultipleNegativesRankingLoss(model), callbacks=[Watch()]
        ).train()


def recbole(log: Log, minutes: float) -> None:
    """SASRec with its own defaults and full cross-entropy, by RecBole's trainer, an epoch at a time."""
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.sequential_recommender import SASRec
    from recbole.trainer import Trainer
    from recbole.utils import init_seed

    with tempfile.TemporaryDirectory() as folder:
        os.makedirs(os.path.join(folder, "log"))
        with open(os.path.join(folder, "log", "log.inter"), "w", encoding="utf-8") as out:
            out.write("user_id:token\titem_id:token\ttimestamp:float\n")
            for user, items, valid in zip(log.users, log.train, log.valid, strict=True):
                taken = items + ([valid] if valid >= 0 else [])
                # Its split by `LS` takes two events away; the last one twice makes that one the validation event's.
                for n, item in enumerate(taken):
                    out.write(f"{user}\t{item}\t{n}\n")
                if valid >= 0:
                    out.write(f"{user}\t{valid}\t{len(taken)}\n")
        config = Config(
            model="SASRec",
            dataset="log",
            config_dict={
                "data_path": folder, "USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "TIME_FIELD": "timestamp",
                "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "loss_type": "CE", "train_neg_sample_args": None,
                "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full", "group_by": "user"},
                "metrics": ["NDCG"], "topk": [K], "valid_metric": f"NDCG@{K}", "use_gpu": False, "show_progress": False,
                "checkpoint_dir": folder, "state": "ERROR", "seed": 0, "MAX_ITEM_LIST_LENGTH": 50,
            },
        )  # fmt: skip
        init_seed(0, True)
        made = create_dataset(config)
        train, valid, _ = data_preparation(config, made)
        model = SASRec(config, train.dataset).to(torch.device("cpu"))
        trainer = Trainer(config, model)
        spent, epoch, examples = 0.0, 0, len(train.dataset)
        while spent < minutes * 60:
            begin = time.perf_counter()
            trainer._train_epoch(train, epoch)
            spent, epoch = spent + time.perf_counter() - begin, epoch + 1
            value = trainer.evaluate(valid, load_best_model=False)[f"ndcg@{K}"]
            say("recbole SASRec", spent, examples * epoch / spent, float(value))


def ctxrec(run: str) -> None:
    with open(os.path.join(run, "train_log.jsonl"), encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            if "valid_ndcg@10" in line:
                say(f"ctxrec {line['phase']}", line["seconds"], line.get("events_per_s", 0), line["valid_ndcg@10"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=["sentence-transformers", "recbole", "ctxrec"])
    parser.add_argument("--data")
    parser.add_argument("--run")
    parser.add_argument("--encoder")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    if args.system == "ctxrec":
        ctxrec(args.run)
    elif args.system == "recbole":
        recbole(read(args.data), args.minutes)
    else:
        sentence_transformers(read(args.data), args.encoder, args.minutes, args.bf16)


if __name__ == "__main__":
    main()
