"""The report: complete, well formed, escaped, and without anything to load."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
from bucket_files import write_shop

from ctxrec.core.config import Config, load_config, to_toml
from ctxrec.core.errors import UserError
from ctxrec.evaluation.comparison_table import format_table
from ctxrec.evaluation.encoder_comparison import compare_encoders
from ctxrec.evaluation.knockouts import summarise_knockouts
from ctxrec.evaluation.report import charts
from ctxrec.evaluation.report.page import Example, Facts, Taken, render_report
from ctxrec.evaluation.report.training_curves import _curves
from ctxrec.evaluation.summary import RankedLists, summarise
from ctxrec.training.encoder_outcome import EncoderOutcome
from ctxrec.training.trackers import parse_train_log

NASTY = 'Café 🍰 <script>alert("x")</script> & co'
VOID = {"meta", "br"}


class Structure(HTMLParser):
    """Checks that tags close in order, and collects tags and texts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def parse(page: str) -> Structure:
    structure = Structure()
    structure.feed(page)
    structure.close()
    assert structure.open == []
    return structure


SYSTEMS = (
    "model", "frozen", "tuned", "popularity", "ease", "untuned_encoder", "oracle", "no_context", "shuffled_context",
    "shuffled_context_same_time",
)  # fmt: skip


TUNING_PAID, TUNING_FAILED = EncoderOutcome("tuned", "it paid"), EncoderOutcome("frozen", "it gained nothing")


def example_metrics(
    *, left_out: tuple[str, ...] = (), cold: bool = True, outcome: EncoderOutcome = TUNING_PAID
) -> dict:
    rng = np.random.default_rng(0)
    tops = {name: np.argsort(rng.random((30, 25)), axis=1)[:, :10] for name in SYSTEMS}
    tops = {name: top for name, top in tops.items() if name not in left_out}
    counts = np.arange(25) // 10 if cold else np.ones(25, int)
    lists = RankedLists(
        user_ids=np.arange(30).astype(str).astype(object),
        target_offsets=np.arange(31),
        target_items=rng.integers(0, 25, 30),
        history_lengths=rng.integers(0, 30, 30),
        tops=tops,
        attributes={
            NASTY: np.array([NASTY, "b", None] * 10, object),
            "weekday": np.array(["Sunday", "Monday"] * 15, object),
        },
        cold_tops={name: top for name, top in tops.items() if not name.startswith("shuffled")} if cold else {},
    )
    metrics = summarise(lists, item_counts=counts, eligible=np.ones(25, bool), ks=(5, 10), resamples=20, seed=0)
    if "model" in tops:
        hidden = lists.tops | {"without/texts": tops["model"][:, ::-1]}
        knockouts = summarise_knockouts(dataclasses.replace(lists, tops=hidden), ks=(10,), resamples=20, seed=0)
        metrics |= compare_encoders(metrics, outcome) | {"knockouts": knockouts}
    return {"split": "test", "requests": 30, **metrics, "notes": [NASTY], "seconds": {"total": 1.5}}


def page_of(metrics: dict, **changes) -> str:
    log = [
        {"phase": "towers", "step": 1, "epoch": 0, "loss": 3.0},
        {"phase": "towers", "step": 2, "epoch": 0, "loss": 2.5, "valid_ndcg@10": 0.05},
        {"phase": "encoder", "step": 3, "epoch": 1, "valid_ndcg@10": 0.06},
        {"phase": "encoder", "step": 4, "epoch": 1, "loss": 2.0, "valid_ndcg@10": 0.07},
    ]
    arguments = {
        "facts": Facts(
            name=NASTY, counts={"events": 1000, "users": 30, "items": 25, "rejects": {"x": 1}}, split="by time",
            encoder="tiny", fingerprint="f" * 64, evaluated_at="1 January 2026", notes=(NASTY,),
        ),
        "train_log": log,
        "examples": [
            Example(
                user_id=NASTY, about=["Friday 24 April 1998, 21:00 UTC", NASTY], saw=[NASTY],
                got=[("hit", True), ("miss", False)], took=[Taken("hit", 1), Taken(NASTY, None)], others=[(NASTY, False)],
            ),
            Example(user_id="new", about=[], saw=[], got=[], took=[Taken(f"t{n}", None) for n in range(12)]),
        ],
        "config_toml": to_toml(Config()) + f"# {NASTY}",
    }  # fmt: skip
    return render_report(metrics, **(arguments | changes))


def test_page_is_complete_well_formed_and_loads_nothing():
    page = page_of(example_metrics())
    structure = parse(page)
    for heading in (
        "Ranking quality", "What each source adds", "Does context pay?", "New items", "Where it works", "Training",
        "A few users", "About this evaluation",
    ):  # fmt: skip
        assert heading in structure.texts
    assert not {"script", "link", "iframe", "img"} & {tag for tag, _ in structure.tags}
    assert not {"src", "href", "onload"} & {name for _, attributes in structure.tags for name in attributes}
    assert "prefers-color-scheme: dark" in page and "@import" not in page and "url(" not in page


def test_every_text_is_escaped_and_emoji_survive():
    page = page_of(example_metrics())
    assert "<script" not in page
    assert page.count("Café 🍰 &lt;script&gt;") >= 9  # title, heading, user, facts, titles, notes, attribute, options


def test_every_chart_has_a_text_alternative_and_is_valid_xml():
    page = page_of(example_metrics())
    images = [attributes for tag, attributes in parse(page).tags if tag == "svg" and attributes.get("role") == "img"]
    assert len(images) == 8
    assert all(len(attributes["aria-label"]) > 20 for attributes in images)
    for part in page.split("<svg ")[1:]:
        ET.fromstring("<svg " + part.split("</svg>")[0] + "</svg>")


def test_hits_are_marked_and_long_lists_cut():
    page = page_of(example_metrics())
    assert "<mark>hit ✓</mark>" in page and "<li>miss</li>" in page
    assert "nothing yet" in page and "and 2 more" in page
    assert 'hit <span class="muted">place 1</span>' in page and "further down" in page
    assert "Friday 24 April 1998, 21:00 UTC" in page


@pytest.mark.parametrize(
    "options",
    [{}, {"left_out": ("frozen", "tuned")}, {"cold": False}, {"left_out": ("frozen", "tuned", "no_context")},
     {"left_out": ("shuffled_context", "shuffled_context_same_time")}],
)  # fmt: skip
def test_what_was_not_evaluated_is_left_out(options):
    left_out = options.get("left_out", ())
    page = page_of(example_metrics(**options), train_log=[], examples=[])
    parse(page)
    assert ("frozen encoder, not refitted" in page) == ("frozen" not in left_out)
    assert ("trained again without one source" in page) == (not {"frozen", "no_context"} <= set(left_out))
    assert ("Does context pay?" in page) == ("shuffled_context" not in left_out)
    assert "This run has no training log." in page
    assert ("this evaluation cannot show how the model ranks new items" in page) == (not options.get("cold", True))


def test_a_phase_that_was_thrown_away_is_said_and_makes_no_row_of_its_own():
    metrics = example_metrics(left_out=("frozen", "tuned"), outcome=TUNING_FAILED)
    assert metrics["frozen"] == metrics["tuned"] == metrics["model"] and metrics["encoder"]["gain"] is None
    said = "he encoder is frozen, because it gained nothing: with and without tuning this is the same model"
    table = format_table(metrics)
    assert f"\nt{said}\n" in table and f">T{said}.<" in page_of(metrics)
    row = next(line for line in table.splitlines() if line.startswith("ctxrec, frozen encoder"))
    assert row.endswith("the same model") and f"{metrics['model']['ndcg@10']['mean']:.4f}" in row


def test_the_gain_of_tuning_is_between_two_that_are_both_refitted_or_neither():
    metrics = example_metrics()
    about = metrics["encoder"]
    assert about["gain"]["mean"] == pytest.approx(
        metrics["tuned"]["ndcg@10"]["mean"] - metrics["frozen"]["ndcg@10"]["mean"]
    )
    assert "tuned minus frozen encoder, all else equal (neither refitted): NDCG@10" in format_table(metrics)
    # With the ablation, the frozen one is refitted as the model is.
    lists_of_both = metrics | {
        "ablations": metrics["ablations"] | {"frozen_encoder": metrics["baselines"]["ease"]},
        "paired": metrics["paired"] | {"frozen_encoder": metrics["paired"]["ease"]},
    }
    refitted = compare_encoders(lists_of_both, TUNING_PAID)
    assert refitted["tuned"] == metrics["model"] and refitted["frozen"] == metrics["baselines"]["ease"]
    assert refitted["encoder"]["gain"] == metrics["paired"]["ease"]["ndcg@10"]
    # A run of an earlier version has neither.
    alone = example_metrics(left_out=("frozen", "tuned"))
    assert alone["frozen"] == {} and "no model of the frozen encoder to compare with" in format_table(alone)


def test_knock_outs_are_drawn_and_told():
    metrics = example_metrics()
    texts = metrics["knockouts"]["texts"]
    assert texts["lost"]["mean"] == pytest.approx(metrics["model"]["ndcg@10"]["mean"] - texts["ndcg@10"]["mean"])
    assert texts["drop"]["mean"] == pytest.approx(texts["lost"]["mean"] / metrics["model"]["ndcg@10"]["mean"])
    assert metrics["knockouts"]["context"]["ndcg@10"]["mean"] == pytest.approx(
        metrics["shuffled_context_same_time"]["ndcg@10"]["mean"]
    )
    page = page_of(metrics)
    assert "NDCG@10 that is lost where a source is hidden" in page
    assert "NDCG@10 falls without (nothing trained again): " in format_table(metrics)
    assert "texts" not in metrics["baselines"] and "without/texts" not in metrics["paired"]


def test_a_report_of_baselines_alone():
    metrics = example_metrics(
        left_out=("model", "frozen", "tuned", "no_context", "shuffled_context", "shuffled_context_same_time")
    )
    assert metrics["model"] == {} and metrics["paired"] == {}
    page = page_of(metrics, examples=[])
    parse(page)
    assert "There is no model" in page and "The best baseline is " in page
    assert "ctxrec minus it" not in page and "Training" not in page
    assert "ctxrec minus it" not in format_table(metrics)


def test_an_oracle_is_no_rival():
    metrics = example_metrics()
    metrics["baselines"]["oracle"]["ndcg@10"] = {"mean": 1.0, "low": 1.0, "high": 1.0}
    page = page_of(metrics)
    assert "best possible (simulation)" in page and "Against best possible" not in page
    assert "the best baseline: NDCG@10" in format_table(metrics)
    assert "best possible (simulation), the best baseline" not in format_table(metrics)


def test_sentences_say_what_the_numbers_say():
    metrics = example_metrics()
    best = max(("popularity", "ease", "untuned_encoder"), key=lambda s: metrics["baselines"][s]["ndcg@10"]["mean"])
    value = metrics["baselines"][best]["ndcg@10"]["mean"]
    metrics["paired"][best]["ndcg@10"] = {"mean": value / 4, "low": 0.001, "high": value, "p": 0.02}
    metrics["shuffled_context"]["drop"] = {"mean": 0.125, "low": 0.05, "high": 0.2}
    page = page_of(metrics)
    assert "+25.0 % NDCG@10" in page and "clearly better" in page
    assert "loses 12.5 % of its NDCG@10 (95 % interval 5.0 % to 20.0 %)" in page
    table = format_table(metrics)
    assert "p = 0.020): clearly better" in table
    assert "context shuffled among requests: NDCG@10 falls by 12.5 % (95 % interval 5.0 to 20.0 %)" in table


@pytest.mark.parametrize(
    ("low", "says"),
    [
        (0.001, "(95 % interval 5.0 % to 20.0 %): it uses the context."),
        (-0.004, "Nearly all of that is the time of the request: where the time is kept and the rest of the context is "
         "another&#x27;s, the model loses 0.2 %, which may be chance (95 % interval -0.4 % to 0.9 %)."),
    ],
)  # fmt: skip
def test_a_context_that_is_the_time_alone_is_called_so(low, says):
    metrics = example_metrics()
    metrics["shuffled_context"]["drop"] = {"mean": 0.125, "low": 0.05, "high": 0.2}
    metrics["shuffled_context_same_time"]["drop"] = {"mean": 0.002, "low": low, "high": 0.009}
    assert says in page_of(metrics)


def test_a_model_that_reads_no_context_does_not_blame_the_data():
    metrics = example_metrics()
    metrics["shuffled_context"]["drop"] = {"mean": 0.0, "low": 0.0, "high": 0.0}
    page = page_of(metrics)
    assert "gives the same lists: this model does not read the context" in page and "tells it little" not in page


@pytest.mark.parametrize(
    ("options", "outcome", "says"),
    [
        (["train.preset=quick"], ("frozen", "train.preset is quick"), "tiny (frozen, because train.preset is quick)"),
        ([], ("frozen", "tuning gained nothing"), "tiny (frozen, because tuning gained nothing)"),
        ([], ("tuned", "it paid"), "tiny (lora)"),
        (['model.sources=["id", "memory"]'], ("frozen", "no text"), "tiny, text not used"),
        (["encoder.name="], ("frozen", "no text"), "none (IDs and features)"),
        ([], None, "tiny (frozen)"),
    ],
)
def test_the_header_says_whether_the_encoder_is_tuned(make_world, tmp_path, options, outcome, says):
    config = load_config(None, ["encoder.name=tiny", *options])
    about = None if outcome is None else {"state": outcome[0], "reason": outcome[1]}
    data, _ = write_shop(tmp_path, make_world)
    data.meta["fingerprint"] = "f" * 64
    assert Facts.of(data, config, about).encoder == says


def test_fewer_requests_than_events_are_explained():
    facts = Facts("shop", {"events": 9, "users": 3, "items": 3, "test": 31}, "by time", "tiny", "f" * 64, "today")
    assert "its 31 events make one request for each user who took" in page_of(example_metrics(), facts=facts)
    few = dataclasses.replace(facts, counts=facts.counts | {"test": 30})
    assert "make one request" not in page_of(example_metrics(), facts=few)


def test_each_phase_has_a_mark_of_its_own_and_the_axis_has_room_for_its_last_number():
    log = [
        {"phase": phase, "step": step, "epoch": 0, "loss": 1.0, "valid_ndcg@10": 0.1}
        for phase, step in (("towers", 1), ("encoder", 2000), ("refit", 2_000_000))
    ]
    losses, _, _ = _curves(log)
    assert len({charts.key(line.kind).split()[0] for line in losses}) == 3, "a shape each"
    page = page_of(example_metrics(), train_log=log)
    labels = [
        (float(x), text) for x, text in re.findall(r'<text class="muted" x="([\d.]+)"[^>]*>([\d,]{9})</text>', page)
    ]
    assert labels and all(x + 6.6 * len(text) / 2 <= charts.WIDTH / 2 for x, text in labels)


def test_options_of_the_ensemble_have_names_for_people():
    metrics = example_metrics()
    weights = {"ease": 0.5, "markov10": 0.3, "log_popularity": 0.2}
    metrics["options"] = {"chosen_on": "valid", "als_factors": 8, "ease_lambda": 10.0, "ensemble": weights}
    page = page_of(metrics)
    assert "Markov chain of the last 10 items 0.30, logarithm of popularity 0.20" in page
    assert "markov10" not in page and "log_popularity" not in page


def test_all_scores_zero_still_draws():
    metrics = example_metrics()
    for system in (
        metrics["model"],
        metrics["frozen"],
        metrics["tuned"],
        *metrics["ablations"].values(),
        *metrics["baselines"].values(),
    ):
        system["ndcg@10"] = {"mean": 0.0, "low": 0.0, "high": 0.0}
    page = page_of(metrics)
    parse(page)
    assert not [a for _, a in parse(page).tags for v in a.values() if v and ("nan" in v or "inf" in v)]


def test_phases_that_count_their_own_steps_follow_each_other():
    log = [{"phase": p, "step": s, "epoch": 0, "loss": 1.0 / (s + 1)} for p in ("towers", "encoder") for s in range(5)]
    page = page_of(example_metrics(), train_log=log)
    # The second curve starts where the first ends: at step 4 of 8.
    curves = [a["points"].split() for tag, a in parse(page).tags if tag == "polyline"]
    assert curves[0][-1].split(",")[0] == curves[1][0].split(",")[0]


def test_a_short_phase_follows_the_one_before():
    """Each phase has one record, at the same step of its own; the refit is told, the encoder is not."""
    log = [{"phase": phase, "step": 5, "epoch": 1.0, "loss": 2.0} for phase in ("towers", "refit")]
    page = page_of(example_metrics(), train_log=log)
    assert "trained again on training and validation events" in page and "encoder is tuned with them" not in page
    losses, _, boundary = _curves(log)
    assert [line.points for line in losses] == [((5.0, 2.0),), ((10.0, 2.0),)] and boundary == (5.0, "refit")


def test_slices_have_readable_headings_and_say_something():
    metrics = example_metrics()
    entry = metrics["slices"]["weekday=Sunday"]
    whole = entry | {"requests": metrics["requests"]}
    metrics["slices"] |= {"age_group=18-24": entry, "month=March": whole, "action=buy": entry, "action=look": entry}
    page = page_of(metrics)
    assert "Age group" in page and "Taken by action" in page and "March" not in page


def test_train_log_of_a_killed_training_is_read():
    assert parse_train_log('{"phase": "towers", "step": 1}\n{"phase": "tow') == [{"phase": "towers", "step": 1}]
    with pytest.raises(UserError, match=r"train_log\.jsonl line 1 is not valid JSON"):
        parse_train_log('{"phase"\n{"phase": "towers"}\n')


def test_long_curves_are_thinned():
    log = [{"phase": "towers", "step": n, "epoch": 0, "loss": 1.0} for n in range(10_000)]
    points = [
        a["points"].split() for tag, a in parse(page_of(example_metrics(), train_log=log)).tags if tag == "polyline"
    ]
    assert len(points[0]) <= 300


def test_table_for_the_terminal():
    metrics = example_metrics()
    lines = format_table(metrics).splitlines()
    assert lines[0] == "test: 30 requests, full ranking"
    header = ["NDCG@10", "95", "%", "interval", "HR@10", "Recall@10", "MRR@10", "Coverage@10", "ctxrec", "minus", "it"]
    assert lines[1].split() == header
    assert {line.split("  ")[0] for line in lines[3:11]} == {
        "ctxrec", "ctxrec, frozen encoder, not refitted", "ctxrec, tuned encoder, not refitted", "ctxrec, no context",
        "popularity", "EASE", "un-tuned encoder, text only", "best possible (simulation)",
    }  # fmt: skip
    assert f"{metrics['model']['ndcg@10']['mean']:.4f}" in next(line for line in lines if line.startswith("ctxrec  "))
    assert lines[-1] == f"note: {NASTY}"


@pytest.mark.parametrize(("low", "high"), [(0, 0), (0, 1e-9), (0.2, 0.31), (3.4, 7.2), (0, 123456), (-2, 5)])
def test_ticks_enclose_the_range(low, high):
    found = charts.ticks(low, high)
    assert found[0] <= low + 1e-12 and found[-1] >= high and 2 <= len(found) <= 9
    assert found == sorted(set(found))
