"""A query for each action: the shared one at the start, its own target's in training, a mix of them for a request."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ctxrec.core.dataset_spec import EventsSpec
from ctxrec.data.batching import Batch, Batcher, make_windows
from ctxrec.data.feedback import EventKinds
from ctxrec.data.requests import Requests
from ctxrec.model.inputs import ItemTensors, ModelShape
from ctxrec.model.network import LossInputs, Network
from ctxrec.model.two_tower import Towers
from ctxrec.model.user_tower import ActionHeads

HEADS = "model.action_heads=true"
VIEW, BUY = 1, 2  # codes of the world's actions, which weigh 0.5 and 1


def training_batch(world, config, batcher: Batcher | None = None) -> Batch:
    offsets = world.histories.events.offsets
    return (batcher or world.batcher(config)).training(
        world.histories, make_windows(offsets[:-1], offsets[1:], config.model.history)
    )


def request_batch(world, batcher: Batcher) -> Batch:
    """A request a user, at the time and in the context of the last event, with what was before as history."""
    events = world.histories.events
    last = events.offsets[1:] - 1
    return batcher.requests(
        Requests(
            users=world.histories.users,
            history=events.cut(events.offsets[:-1], last),
            times=events.times[last],
            context=events.context.take(last),
        )
    )


def new_towers(world, config) -> tuple[Towers, ItemTensors]:
    """Towers at their starting weights."""
    torch.manual_seed(0)
    shape = ModelShape.of(config.model, world.features, num_items=20, text_width=0)
    return Towers(config.model, shape, temperature=0.07).eval(), ItemTensors.of(world.catalogue, shape)


def test_they_are_off_by_default_and_need_several_actions(make_world):
    rich, plain = make_world(), make_world(rich=False)
    assert rich.towers(rich.config())[0].actions is None
    assert rich.towers(rich.config(HEADS))[0].actions.own_ADD.shape == (2, 8, 8)
    assert plain.towers(plain.config(HEADS))[0].actions is None  # a log without actions


def test_at_the_start_every_query_is_the_shared_one(make_world):
    world = make_world()
    (plain, items), (headed, _) = (new_towers(world, world.config(*options)) for options in ([], [HEADS]))
    for batch in (training_batch(world, world.config()), request_batch(world, world.batcher(world.config()))):
        with torch.inference_mode():
            assert torch.equal(headed(items, None, batch)[1], plain(items, None, batch)[1])


@pytest.mark.parametrize("loss", ["softmax", "sampled_softmax", "bce"])
@pytest.mark.parametrize("code", [VIEW, BUY, 0])
def test_a_target_teaches_the_head_of_its_own_action_alone(make_world, code, loss):
    """Targets of one action: the other head's gradient is exactly 0, and everybody's for a target of no action."""
    world = make_world()
    config = world.config(HEADS)
    # Where actions have weights, an event without an action is no target; so the weights here are all 1.
    batcher = Batcher(
        world.features,
        history=config.model.history,
        kinds=EventKinds.of(EventsSpec(path="log.parquet", action="action", actions={}), world.features.actions, {}),
    )
    batch = training_batch(world, config, batcher)
    batch.weights_BS = batch.weights_BS * (batch.asked_BS == code)
    assert batch.weights_BS.any()
    towers, items = new_towers(world, config)
    value = Network(towers, None)(LossInputs(items, None, batch, loss, negatives_N=torch.arange(10)))
    value.backward()
    taught = towers.actions.own_ADD.grad.flatten(1).any(1).tolist()
    assert taught == [code == VIEW, code == BUY]
    assert towers.user.query.weight.grad.any(), "the shared query learns from all"


def test_training_asks_for_each_target_by_its_own_action(make_world):
    world = make_world()
    config = world.config(HEADS)
    batch, events = training_batch(world, config), world.histories.events
    # The first row has nine events and a history of six: its first window asks for the events 0 to 6.
    assert batch.asked_BS[0].tolist() == events.actions[:7].tolist()
    assert batch.targets_BS[0].tolist() == events.items[:7].tolist() and not batch.asked_mix_BA.any()
    towers, items = world.towers(config)
    with torch.inference_mode():
        own = towers(items, None, batch)[1]
        for code in (0, VIEW, BUY):
            alone = dataclasses.replace(batch, asked_BS=torch.full_like(batch.asked_BS, code))
            same = batch.asked_BS == code
            torch.testing.assert_close(towers(items, None, alone)[1][same], own[same])
            assert not torch.allclose(towers(items, None, alone)[1][~same], own[~same])


def test_a_request_asks_for_all_actions_by_their_weights(make_world):
    world = make_world()
    config = world.config(HEADS)
    batch = request_batch(world, world.batcher(config))
    torch.testing.assert_close(batch.asked_mix_BA, torch.tensor([[1 / 3, 2 / 3]]).expand(6, 2))
    towers, items = world.towers(config)

    def query(*shares: float) -> torch.Tensor:
        mix = torch.tensor([shares]).expand(6, 2)
        return towers(items, None, dataclasses.replace(batch, asked_mix_BA=mix), last=True)[1]

    with torch.inference_mode():
        vectors, asked = towers(items, None, batch, last=True)
        torch.testing.assert_close(asked, (query(1.0, 0.0) + 2 * query(0.0, 1.0)) / 3)
        # The product of the sum is the sum of the products: an index over the items' vectors still finds the best.
        scores = [query(*shares) @ vectors.T for shares in ((1.0, 0.0), (0.0, 1.0))]
        torch.testing.assert_close(asked @ vectors.T, (scores[0] + 2 * scores[1]) / 3)
        assert not torch.allclose(query(1.0, 0.0), query(0.0, 1.0))


@pytest.mark.parametrize(
    ("weights", "mix"),
    [
        ({}, [0.5, 0.5]),
        ({"buy": 2.0}, [0.0, 1.0]),
        ({"view": -1.0, "buy": 0.5}, [0.0, 1.0]),
        ({"view": -1.0}, [0.0, 0.0]),
    ],
)
def test_only_wanted_actions_are_asked_for(make_world, weights, mix):
    world = make_world()
    batcher = Batcher(
        world.features,
        history=6,
        kinds=EventKinds.of(
            EventsSpec(path="log.parquet", action="action", actions=weights), world.features.actions, {}
        ),
    )
    assert request_batch(world, batcher).asked_mix_BA.tolist() == [mix] * 6


def test_a_head_is_its_projection_added():
    heads = ActionHeads(2, 2)
    with torch.no_grad():
        heads.own_ADD.copy_(torch.tensor([[[1.0, 0], [0, 0]], [[0, 2.0], [0, 0]]]))
    batch = Batch(**{field.name: None for field in dataclasses.fields(Batch)})
    batch.asked_BS, batch.asked_mix_BA = torch.tensor([[0, 1, 2]]), torch.zeros(1, 2)
    query = torch.tensor([[3.0, 5.0]]).expand(1, 3, 2)
    assert heads(query, batch.asked_BS, batch.asked_mix_BA)[0].tolist() == [[3, 5], [6, 5], [3, 11]]
    batch.asked_BS, batch.asked_mix_BA = torch.zeros(1, 3, dtype=torch.int64), torch.tensor([[0.25, 0.75]])
    assert heads(query, batch.asked_BS, batch.asked_mix_BA)[0].tolist() == [[3.75, 9.5]] * 3
