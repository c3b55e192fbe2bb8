"""The second stage by itself: what it reads, where it starts, what it learns, how it is kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from second_stages import NUM_CANDIDATES, NUM_ITEMS, OPTIONS, titles
from second_stages import fresh as fresh  # a fixture, as the two below
from second_stages import requests as requests
from second_stages import world as world
from tokenizers.processors import TemplateProcessing
from tolerance import assert_same_scores
from transformers import AutoTokenizer

from ctxrec.bundle.reranker_folder import SECOND_STAGE
from ctxrec.core import schema, storage
from ctxrec.core.config import load_config
from ctxrec.core.errors import UserError
from ctxrec.core.manifest import hash_files, write_manifest
from ctxrec.reranking.rerank_candidates import find_candidates
from ctxrec.retrieval.cross_encoder import RerankedRecommender, merge_adapter, new_order, retrieved_features
from ctxrec.retrieval.pair_reader import PairReader
from ctxrec.retrieval.request_texts import request_texts
from ctxrec.retrieval.reranker_files import HEAD, ITEMS, load_reranker, save_reranker


@pytest.fixture(scope="module")
def config(tiny_encoder):
    return load_config(None, [f"encoder.name={tiny_encoder}", *(f"rerank.{option}" for option in OPTIONS)])


def test_what_a_request_says(world, requests):
    n = next(n for n in range(len(requests)) if requests.history.lengths[n] >= 3)
    said = request_texts(requests, world.features, titles(world), history_items=2)[n].split("; ")
    latest = requests.history.items[requests.history.row(n)][::-1]
    assert said[-2:] == [f"title {latest[0]}", f"title {latest[1]}"]
    genders = {schema.FIRST_CODE: ["gender: F"], schema.FIRST_CODE + 1: ["gender: M"]}
    assert [s for s in said if s.startswith("gender")] == genders.get(int(requests.users.cat["gender"][n]), [])
    query = requests.context.text["query"][n]
    assert [s for s in said if s.startswith("query")] == ([f"query: {query}"] if query else [])
    hour = int(requests.context.cat["hour"][n]) - schema.FIRST_CODE
    daytime = ("night", "morning", "afternoon", "evening")[hour // 6]
    assert any(s.endswith(f"{daytime}, September") for s in said), "the log begins on 13 September 2020"


def test_words_of_the_request_come_first_and_a_log_without_clock_says_no_time(world, requests):
    part = requests.take(np.arange(3))
    asked = dataclasses.replace(part, query=np.array(["quiet sci-fi ", None, " "], object))
    features = dataclasses.replace(world.features, clock=False)
    said = request_texts(asked, features, titles(world), history_items=1)
    assert said[0].startswith("query: quiet sci-fi; ")
    assert said[1:] == request_texts(part, features, titles(world), history_items=1)[1:]
    assert not any(word in text for text in said for word in ("September", "morning", "night"))


def test_titles_that_nobody_knows_are_left_out(world, requests):
    said = request_texts(requests, world.features, [None] * NUM_ITEMS, history_items=5)
    assert not any("title" in text for text in said)
    assert request_texts(requests, world.features, [], history_items=5) == said, "items behind the catalogue"


def test_pairs_by_hand(tiny_encoder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    special = [(t, tokenizer.convert_tokens_to_ids(t)) for t in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=special
    )
    tokenizer.save_pretrained(tmp_path)

    def words_of(folder: str, max_tokens: int) -> list[str]:
        reader = PairReader(folder, max_tokens=max_tokens)
        asked, items = (
            reader.plain(["hat; red", "soft blue green lamp"], 16),
            reader.plain(["red shoe", "", "coat"], 16),
        )
        pairs = reader.pairs(asked, items, np.array([1, 0, 1]), np.array([0, 1, 2]))
        return [" ".join(tokenizer.convert_ids_to_tokens(row)) for row in np.split(pairs.ids, pairs.offsets[1:-1])]

    assert words_of(str(tmp_path), 8) == [
        "[CLS] soft blue green [SEP] red shoe [SEP]",
        "[CLS] hat [UNK] red [SEP] [SEP]",
        "[CLS] soft blue green lamp [SEP] coat [SEP]",
    ]
    assert words_of(tiny_encoder, 4)[0] == "soft [SEP] red shoe", "a separator where the tokenizer has no template"


def test_what_the_head_sees_of_the_retriever():
    features = retrieved_features(np.array([3.0, 2.0, 1.0, -5.0], np.float32), 3)
    np.testing.assert_allclose(features[:, 0], np.array([1, 0, -1, -7]) / np.sqrt(2 / 3), rtol=1e-6)
    np.testing.assert_allclose(features[:, 1], 1 / np.log2([2, 3, 4, 5]), rtol=1e-6)
    assert retrieved_features(np.ones(2, np.float32), 2)[:, 0].tolist() == [0, 0]
    assert new_order(np.array([2.0, 1.0, 0.0]), np.array([0.0, 0.0, 9.0]), 1.0, 3).tolist() == [2, 0, 1]


def test_it_starts_as_the_retriever(world, requests, fresh):
    recommender = world.recommender(world.config())
    found = find_candidates(recommender, requests, 20, repeats=recommender.repeats).found
    again = fresh.rerank(requests, found, 10, features=world.features, titles=titles(world))
    for (items, scores), (new_items, new_scores) in zip(found, again, strict=True):
        assert new_items.tolist() == items[:10].tolist()
        assert_same_scores(new_scores, scores[:10])
    part = requests.take(np.arange(5))
    both = RerankedRecommender(recommender, fresh)
    assert_same_scores(both.scores(part), recommender.scores(part))


def test_only_the_order_of_the_candidates_changes(world, requests, fresh):
    torch.nn.init.normal_(fresh.network.head.weight)
    recommender, part = world.recommender(world.config()), requests.take(np.arange(8))
    before = recommender.scores(part)
    after = RerankedRecommender(recommender, fresh).scores(part)
    assert (before != after).any()
    found = find_candidates(recommender, part, NUM_CANDIDATES, repeats=recommender.repeats).found
    for n, (items, scores) in enumerate(found):
        rest = np.setdiff1d(np.arange(NUM_ITEMS), items)
        assert_same_scores(sorted(after[n, items].tolist(), reverse=True), scores)
        assert_same_scores(after[n, rest], before[n, rest])
    longer = find_candidates(recommender, part, 20, repeats=recommender.repeats).found
    for (items, _), (new, scores) in zip(
        longer, fresh.rerank(part, longer, 20, features=world.features, titles=titles(world)), strict=True
    ):
        assert set(new[:NUM_CANDIDATES].tolist()) == set(items[:NUM_CANDIDATES].tolist())
        assert new[NUM_CANDIDATES:].tolist() == items[NUM_CANDIDATES:].tolist() and (np.diff(scores) <= 0).all()


def test_items_without_known_text_keep_their_places(world, requests, fresh):
    torch.nn.init.normal_(fresh.network.head.weight)
    later = NUM_ITEMS + 7
    found = [(np.array([3, later, 8, 1]), np.array([4.0, 3.0, 2.0, 1.0], np.float32))]
    ((items, _),) = fresh.rerank(requests.take(np.array([0])), found, 4, features=world.features, titles=titles(world))
    assert items[1] == later and sorted(items.tolist()) == [1, 3, 8, later]
    only_later = [(np.array([later]), np.array([1.0], np.float32))]
    assert fresh.rerank(requests.take(np.array([0])), only_later, 4, features=world.features, titles=[])[0][
        0
    ].tolist() == [later]


def test_a_merged_adapter_says_the_same(world, requests, fresh):
    with torch.no_grad():
        for parameter in fresh.network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    part, found = requests.take(np.arange(3)), [(np.arange(5), np.arange(5, 0, -1).astype(np.float32))] * 3
    before = fresh.logits(part, found, features=world.features, titles=titles(world))
    merge_adapter(fresh.network)
    after = fresh.logits(part, found, features=world.features, titles=titles(world))
    np.testing.assert_allclose(np.concatenate(after), np.concatenate(before), atol=1e-5)


def test_pairs_in_bfloat16_say_nearly_the_same(requests, fresh, world):
    torch.nn.init.normal_(fresh.network.head.weight)
    part, found = requests.take(np.arange(3)), [(np.arange(8), np.arange(8, 0, -1).astype(np.float32))] * 3
    said = []
    for precision in ("fp32", "bf16"):
        fresh.set_precision(precision)
        said.append(np.stack(fresh.logits(part, found, features=world.features, titles=titles(world))))
    assert said[1].dtype == np.float32 and (said[0] != said[1]).any()
    assert abs(said[1] - said[0]).max() < 0.1 * said[0].std()


def test_damage_and_another_model_are_refused(fresh, tmp_path):
    merge_adapter(fresh.network)
    folder = tmp_path / "reranker"
    save_reranker(str(folder), fresh)
    for name in storage.local_files(str(folder)):
        whole = (folder / name).read_bytes()
        broken = bytearray(whole)
        broken[len(whole) // 2] ^= 1
        (folder / name).write_bytes(broken)
        with pytest.raises(UserError, match=Path(name).name):
            load_reranker(str(folder), model_version=fresh.model_version)
        (folder / name).unlink()
        with pytest.raises(UserError, match=f"{Path(name).name}.* is missing"):
            load_reranker(str(folder), model_version=fresh.model_version)
        (folder / name).write_bytes(whole)
    with pytest.raises(UserError, match="was trained for model 000000000000; the bundle is model abc"):
        load_reranker(str(folder), model_version="abc")
    load_reranker(str(folder), model_version=fresh.model_version)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rerank.candidates=1", "rerank.candidates is 1; expected at least 2"),
        ("rerank.max_tokens=10", "rerank.max_tokens is 10; expected at least 16"),
        ("rerank.lr=0", "rerank.lr is 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(override, message):
    with pytest.raises(UserError, match=message):
        load_config(None, [override])


def test_a_reranker_whose_content_cannot_be_used_is_one_line(fresh, tmp_path):
    merge_adapter(fresh.network)
    folder = tmp_path / "reranker"
    save_reranker(str(folder), fresh)

    def refused(name: str, key: str, place: int, value: float) -> str:
        whole = load_file(folder / name)
        other = whole[key].copy()
        other.reshape(-1)[place] = value
        save_file(whole | {key: other}, folder / name)
        write_manifest(str(folder), SECOND_STAGE, files=hash_files(str(folder)), model_version=fresh.model_version)
        with pytest.raises(UserError, match=f"{folder} is damaged: ") as told:
            load_reranker(str(folder), model_version=fresh.model_version)
        save_file(whole, folder / name)
        return str(told.value)

    assert f"{HEAD} has a number in 'weight' that is not finite" in refused(HEAD, "weight", 0, float("nan"))
    assert f"{ITEMS} has offsets that do not divide" in refused(ITEMS, "offsets", 1, -1)
