"""The decision about a candidate: all gates together, and its card as `decisions/VERSION.json` and `.html`."""

from __future__ import annotations

import dataclasses
import datetime
from dataclasses import dataclass
from typing import Any

from ctxrec.core import storage
from ctxrec.core.errors import UserError
from ctxrec.core.run_paths import ModelsPaths
from ctxrec.data.prepared import PreparedData
from ctxrec.evaluation.report import charts
from ctxrec.evaluation.report.html import chart, e, finding, page, paragraph, section, table
from ctxrec.lifecycle.gates import GATES, Gate, GateParams, cost_gates, data_gates
from ctxrec.lifecycle.paired_ranking import rank_both
from ctxrec.lifecycle.posted_items import put_posted
from ctxrec.lifecycle.ranking_gates import ranking_gates
from ctxrec.retrieval.load import load_recommender

_SLICE = "slice "
_SHOWN = 5.0  # relative differences beyond this would leave nothing of the others in a chart


@dataclass(frozen=True)
class Decision:
    """Whether a candidate may be published, and why.

    Attributes:
        candidate, served: versions; the candidate is "" where it does not load.
        publish: the decision.
        why: in one sentence.
        gates: all of them.
        left_out: test requests that the served version was trained on.
    """

    candidate: str
    served: str
    publish: bool
    why: str
    gates: list[Gate]
    left_out: int = 0


def decide(
    bundle: str,
    served_bundle: str,
    data: PreparedData,
    *,
    live: str = "",
    without_evidence: bool = False,
    params: GateParams = GATES,
) -> Decision:
    """Compare a candidate with the served version.

    Args:
        bundle: of the candidate, path or URI.
        served_bundle: of the served version.
        data: what the candidate was trained on.
        live: folder where the service stored posted items, which the served version ranks too; "": none.
        without_evidence: publish also where the test requests are too few to tell.
        params: limits of the gates.

    Raises:
        UserError: the served version does not load.
    """
    served = load_recommender(served_bundle)
    try:
        candidate = load_recommender(bundle)
        of_data = data_gates(candidate, served, params=params)
        put_posted(served, served_bundle, live)
        ranked = rank_both(data, candidate, served, most=params.requests)
        gates = [
            *of_data,
            *ranking_gates(ranked, data, params=params),
            *cost_gates(ranked, candidate, served, (bundle, served_bundle), params=params),
        ]
    except UserError as error:  # of a damaged bundle, or a score that is no number
        broken = Gate("the candidate loads and scores", "failed", str(error), "a bundle that serves")
        return Decision("", served.model_version, False, f"it does not serve: {error}", [broken])
    publish, why = verdict_of(gates, without_evidence=without_evidence)
    left_out = 0 if ranked is None else ranked.left_out
    return Decision(candidate.model_version, served.model_version, publish, why, gates, left_out)


def verdict_of(gates: list[Gate], *, without_evidence: bool) -> tuple[bool, str]:
    """The decision of all gates, and one sentence that says why.

    A gate that failed decides. Without evidence no gate passes but those of slices, whose requests the overall gate has
    too; `without_evidence` lets the others pass.
    """
    failed = [gate for gate in gates if gate.verdict == "failed"]
    if failed:
        return False, "; ".join(f"{gate.name}: {gate.found}, expected {gate.expected}" for gate in failed[:3])
    missing = [gate for gate in gates if gate.verdict == "no evidence" and not gate.name.startswith(_SLICE)]
    if missing and not without_evidence:
        first = missing[0]
        return False, f"no evidence for {first.name}: {first.found}, expected {first.expected}"
    overall = next(gate for gate in gates if gate.name == "NDCG@10")
    return True, f"all gates passed; NDCG@10 {overall.found}"


def write_card(models: str, decision: Decision, *, name: str, facts: dict[str, Any]) -> str:
    """Write the card beside the published versions; returns its path.

    Args:
        models: folder of published models.
        decision: what was decided.
        name: of the card: the candidate's version, or the round where it has none.
        facts: what else is known, such as when and what happened since; JSON values.
    """
    path = ModelsPaths(models).decision(name)
    content = dataclasses.asdict(decision) | facts
    storage.write_json(path, content)
    storage.write_text(path.removesuffix(".json") + ".html", _page(decision, facts))
    return path


def card_of(models: str, name: str) -> dict[str, Any]:
    """The card of a version.

    Raises:
        UserError: there is none.
    """
    return storage.read_json_object(ModelsPaths(models).decision(name))


def add_to_card(models: str, name: str, **facts: Any) -> None:
    """Add to a card what happened since the decision.

    Args:
        models: folder of published models.
        name: of the card.
        **facts: JSON values.

    Raises:
        UserError: there is no such card.
    """
    decision, told = _read_card(models, name)
    write_card(models, decision, name=name, facts=told | facts)


def copy_card(models: str, judged: str, name: str) -> None:
    """Give a version the card of the version that was judged in its place, and say so.

    Args:
        models: folder of published models.
        judged: the version that the gates let pass.
        name: the version that also knows the events by which it was judged.

    Raises:
        UserError: there is no card of `judged`.
    """
    decision, told = _read_card(models, judged)
    how = f"{judged} was judged; {name} is the same with a memory of all events, the newest too"
    write_card(models, dataclasses.replace(decision, candidate=name), name=name, facts=told | {"judged": how})


def _read_card(models: str, name: str) -> tuple[Decision, dict[str, Any]]:
    """The decision of a card, and all else that it says."""
    content = card_of(models, name)
    names = {field.name for field in dataclasses.fields(Decision)}
    gates = [Gate(**gate) for gate in content["gates"]]
    decision = Decision(**{key: value for key, value in content.items() if key in names} | {"gates": gates})
    return decision, {key: value for key, value in content.items() if key not in names}


def _page(decision: Decision, facts: dict[str, Any]) -> str:
    said = "published" if decision.publish else "not published"
    outcome = facts.get("outcome") or said
    when = datetime.datetime.fromtimestamp(facts.get("started", 0.0), datetime.UTC).strftime("%d %B %Y, %H:%M UTC")
    head = (
        f'<header><p class="kicker">ctxrec refresh</p><h1>{e(decision.candidate or "candidate")}: {e(outcome)}</h1>'
        f'<p class="lead">{e(when)}; compared with {e(decision.served)}</p></header>\n'
    )
    told = [paragraph(f"{key}: {value}", muted=True) for key, value in sorted(facts.items()) if value not in ("", None)]
    rows = [
        (gate.name, [f"<td>{e(text)}</td>" for text in (gate.verdict, gate.found, gate.expected, f"{gate.requests:,}")],
         gate.verdict == "failed")
        for gate in decision.gates
    ]  # fmt: skip
    gates = table(["gate", "verdict", "found", "expected", "requests"], rows)
    sections = [section("Why", finding(decision.why), *told), section("Gates", gates)]
    dots = [_dots(gate) for gate in decision.gates if gate.difference and gate.difference["high"] < _SHOWN]
    if dots:
        title = "NDCG@10 against the served version, per cent of its own"
        drawing = charts.dot_chart(dots, title=title, description="overall and by slice, with 95 % intervals")
        sections.append(section("Paired differences", paragraph(title), chart(drawing)))
    return page(f"Refresh: {outcome}", [head, *sections])


def _dots(gate: Gate) -> charts.Dots:
    mean, low, high = (100 * gate.difference[key] for key in ("mean", "low", "high"))
    return charts.Dots(gate.name.removeprefix(_SLICE), f"{gate.requests:,} requests", ((mean, low, high, "model"),))
