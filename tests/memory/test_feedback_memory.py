"""The memory where values say what is liked: who speaks for what, which events make pairs, and what is saved."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ctxrec.core.dataset_spec import EventsSpec, FeedbackSpec
from ctxrec.data.events import Context, Events
from ctxrec.data.feedback import EventKinds, graded_actions
from ctxrec.data.log_statistics import TrainingEvents
from ctxrec.memory.blend import Blend
from ctxrec.memory.item_memory import FEEDBACK, fit_memory, from_arrays, to_arrays
from ctxrec.memory.text_similarity import history_queries, history_weights, spoken

SPEC = EventsSpec(path="log.csv", value="stars", feedback=FeedbackSpec(kind="rating", positive=4, negative=2))
GRADED = graded_actions(SPEC, [])
KINDS = EventKinds.of(SPEC, GRADED[""], GRADED)
PLAIN, LIKED, NEUTRAL, DISLIKED = 0, 1, 2, 3
SPEAKS = FEEDBACK.speaks(KINDS)


def events(rows: list[list[tuple[int, int]]]) -> Events:
    """Histories of (item, code)."""
    flat = np.array([event for row in rows for event in row], np.int64).reshape(-1, 2)
    return Events(
        offsets=np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64),
        items=flat[:, 0].astype(np.int32),
        times=np.arange(len(flat)),
        actions=flat[:, 1].astype(np.int16),
        context=Context(),
    )


def training(rows: list[list[tuple[int, int]]]) -> TrainingEvents:
    made = events(rows)
    return TrainingEvents(made.offsets, made.items, made.times, KINDS.grades_A[made.actions])


def test_dislikes_speak_against():
    assert SPEAKS.tolist() == [1, 1, 1, np.float32(FEEDBACK.negative)] and FEEDBACK.negative < 0


def test_the_latest_event_of_an_item_says_what_is_thought_of_it():
    history = events([[(5, DISLIKED), (7, LIKED), (5, LIKED)], [], [(5, LIKED), (5, DISLIKED)], [(5, PLAIN)]])
    no = SPEAKS[DISLIKED]
    assert spoken(history, SPEAKS).tolist() == [1, 1, 1, no, no, 1]
    weights = history_weights(history, 8, decay=0.5, speaks_A=SPEAKS).toarray()
    np.testing.assert_allclose(weights[:, 5], [1.25, 0, 1.5 * no, 1])
    assert len(spoken(events([[]]), SPEAKS)) == 0


@pytest.mark.parametrize("repeats", [False, True])
def test_disliked_events_make_no_pairs_and_are_known_all_the_same(repeats):
    log = training([[(0, LIKED), (1, DISLIKED), (2, PLAIN)]] * 3)
    memory = fit_memory([log], 4, repeats=repeats, kinds=KINDS)
    pairs = memory.cooccurrence_II.toarray()
    assert pairs[0, 2] > 0 and not pairs[1].any() and not pairs[:, 1].any()
    assert memory.next_II.toarray()[0, 2] > 0 and not memory.next_II.toarray()[1].any()
    assert memory.known_I.tolist() == [True, True, True, False] and memory.popularity_I[1] < memory.popularity_I[0]
    assert fit_memory([log], 4, repeats=repeats).cooccurrence_II.toarray()[0, 1] > 0, "as before without feedback"


@pytest.mark.parametrize("repeats", [False, True])
def test_a_dislike_lowers_what_is_like_it(repeats):
    """Items 0 to 3 belong together, and so do 4 to 7; what the memory adds is never negative."""
    rng = np.random.default_rng(0)
    rows = [[(int(i), LIKED) for i in rng.permutation(4)[:3] + 4 * (n % 2)] for n in range(40)]
    memory = fit_memory([training(rows)], 8, repeats=repeats, kinds=KINDS)
    asked = events([[(0, LIKED), (4, LIKED)], [(0, LIKED), (4, LIKED), (1, DISLIKED)], [(1, DISLIKED)]])
    for name, found in zip(memory.sources, memory.source_scores(asked), strict=True):
        scores = found.toarray()
        assert (scores >= 0).all() and not scores[2].any(), name
        if not name.startswith("repeat"):
            assert scores[1, 2] - scores[1, 6] < scores[0, 2] - scores[0, 6], name


def test_a_query_of_texts_points_away_from_a_dislike():
    rng = np.random.default_rng(0)
    text = rng.normal(size=(6, 4)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    asked = events([[(0, LIKED)], [(0, DISLIKED)], [(0, LIKED), (1, DISLIKED)], []])
    queries = history_queries(asked, text, SPEAKS)
    np.testing.assert_allclose(queries[0], text[0], atol=1e-6)
    np.testing.assert_allclose(queries[1], SPEAKS[DISLIKED] * text[0], atol=1e-6)
    assert queries[2] @ text[1] < history_queries(asked, text)[2] @ text[1]
    assert not queries[3].any()
    memory = fit_memory([training([[(0, LIKED), (1, LIKED)]])], 6, repeats=False, kinds=KINDS)
    blend = Blend.of(memory, text, np.zeros((6, 0), np.float32), ())
    (head,) = blend.head_queries(np.zeros((4, 0), np.float32), asked)
    np.testing.assert_allclose(head[1], SPEAKS[DISLIKED] * head[0], atol=1e-5)


def test_what_codes_say_survives_saving():
    memory = fit_memory([training([[(0, LIKED), (1, LIKED)]])], 3, repeats=False, kinds=KINDS)
    np.testing.assert_array_equal(from_arrays(to_arrays(memory)).speaks_A, SPEAKS)
    before = dataclasses.replace(memory, speaks_A=None)
    assert from_arrays(to_arrays(before)).speaks_A is None, "bundles of earlier versions have none"
