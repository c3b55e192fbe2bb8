"""What each source of information carries: the trained model is asked again with one source hidden, without any training.

A source that the towers read is hidden from the item vectors, in the catalogue and in the histories. A source of the blend
gets no weight. Attributes of users and texts of contexts, like the whole context
(`ctxrec.evaluation.rank_requests.shuffle_context`), are those of another request: the model was never trained without them, so hiding them would also measure what it never learnt.

Legend: N requests, I items, H encoder width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file as load_arrays

from ctxrec.bundle import format as bundle_format
from ctxrec.core import schema, storage
from ctxrec.core.run_paths import BundlePaths, RunPaths
from ctxrec.data.features import item_features
from ctxrec.data.log_statistics import scan_log
from ctxrec.data.prepared import PreparedData
from ctxrec.data.requests import Requests
from ctxrec.data.tensor_files import read_tensors
from ctxrec.encoder.text_table import TextTable, make_text_table
from ctxrec.evaluation.summary import PerRequest, RankedLists, intervals
from ctxrec.evaluation.systems import MODEL, SHUFFLED_SAME_TIME
from ctxrec.memory.blend import STATIC, Blend
from ctxrec.memory.item_memory import ItemMemory, fit_memory
from ctxrec.memory.request_words import CONTEXT_TEXT
from ctxrec.memory.text_similarity import on_axes, reduced
from ctxrec.metrics.ranking import request_metrics
from ctxrec.model.inputs import ItemTensors, ModelShape
from ctxrec.retrieval.bundle_texts import BundleTexts
from ctxrec.retrieval.recommender import Recommender

PREFIX = "without/"  # of the systems, before the name of the source
TEXTS, TUNED_TEXTS, MEDIA, TRIPLES = "texts", "tuned texts", "images and sounds", "triples"
SEQUENCE, MEMORY, POPULARITY = "sequence", "memory", "popularity"
CONTEXT, USER = "context", "user attributes"


def memory_without_texts(data: PreparedData, before: int, *, repeats: bool) -> ItemMemory:
    """The item memory of the events before a split (schema.VALID or schema.TEST) as if no item had a text."""
    log = scan_log(data, history=1, keep_events=True)
    return fit_memory(log.training_events(before), data.num_items, repeats=repeats, kinds=data.kinds)


def knocked_out(
    model: Recommender,
    bundle: str,
    run: str,
    data: PreparedData,
    *,
    trained_I: np.ndarray,
    textless: ItemMemory | None,
    tuned: bool,
) -> dict[str, Recommender]:
    """The model without each of the sources that it has, by the names of their systems.

    Args:
        model: as it is evaluated.
        bundle: that it was loaded from.
        run: the run of the bundle, for the vectors of the frozen encoder.
        data: the data that is evaluated on, for the features of items.
        trained_I: bool, the items whose IDs the model reads.
        textless: see `memory_without_texts`; None without a memory in the model.
        tuned: whether the model's text vectors are by a tuned encoder.
    """
    parts = _Parts.read(model, bundle, run, data, trained_I)
    blend, found = model.blend, {}
    if parts.shape.text_width:
        nothing = np.zeros((len(trained_I), parts.shape.text_width), np.float32)
        empty = make_text_table(nothing, np.zeros(len(trained_I), bool))
        found[TEXTS] = parts.model(parts.items, empty, _hide_texts(blend, textless))
        if tuned:
            untuned = None if model.texts is None else model.texts.untuned()
            found[TUNED_TEXTS] = parts.model(parts.items, parts.frozen, parts.with_frozen(blend), untuned)
    if parts.items.media_IV and parts.text_is_known:
        media = {kind: torch.zeros_like(vectors) for kind, vectors in parts.items.media_IV.items()}
        found[MEDIA] = parts.model(dataclasses.replace(parts.items, media_IV=media), parts.frozen, blend)
    if schema.GRAPH in parts.items.cat_IM and parts.text_is_known:
        cat_IM = parts.items.cat_IM | {schema.GRAPH: torch.full_like(parts.items.cat_IM[schema.GRAPH], schema.MISSING)}
        found[TRIPLES] = parts.model(dataclasses.replace(parts.items, cat_IM=cat_IM), parts.frozen, blend)
    if blend is not None:
        for name, sources in ((SEQUENCE, ["sequence"]), (MEMORY, blend.memory.sources), (POPULARITY, STATIC[:2])):
            found[name] = clone(model, model.item_vectors.copy(), blend.without(sources))
    return {PREFIX + name: system for name, system in found.items()}


def moved_parts(requests: Requests, *, seed: int) -> dict[str, Requests]:
    """The requests with the attributes of other requests' users, and with the texts of other requests' contexts; each
    where there are such."""
    order, made = np.random.default_rng(seed).permutation(len(requests)), {}
    if requests.users.attributes:
        users = dataclasses.replace(requests.users.take(order), ids=requests.users.ids)
        made[PREFIX + USER] = dataclasses.replace(requests, users=users)
    if requests.context.text:
        context = dataclasses.replace(requests.context, text=requests.context.take(order).text)
        made[PREFIX + CONTEXT_TEXT] = dataclasses.replace(requests, context=context)
    return made


def clone(
    model: Recommender, item_vectors: np.ndarray, blend: Blend | None, texts: BundleTexts | None = None
) -> Recommender:
    """The model with other vectors of items and another blend, which reads words by its own encoder or by `texts`."""
    return Recommender(
        config=model.config,
        spec=model.spec,
        features=model.features,
        towers=model.towers,
        items=model.items,
        item_vectors=item_vectors,
        histories=model.histories,
        model_version=model.model_version,
        blend=blend,
        texts=texts or model.texts,
    )


def _hide_texts(blend: Blend | None, textless: ItemMemory | None) -> Blend | None:
    if blend is None:
        return None
    assert textless is not None
    text_IC = None if blend.text_IC is None else np.zeros_like(blend.text_IC)
    return dataclasses.replace(blend, memory=textless, text_IC=text_IC)


@dataclasses.dataclass(frozen=True)
class _Parts:
    """What item vectors are made of: features of items, and texts by the frozen encoder."""

    whole: Recommender
    shape: ModelShape
    items: ItemTensors
    frozen: TextTable | None  # None without text encoder
    axes: tuple[np.ndarray, np.ndarray] | None  # of the bundle's text vectors
    text_is_known: bool  # `frozen` is what the model reads

    @staticmethod
    def read(model: Recommender, bundle: str, run: str, data: PreparedData, trained_I: np.ndarray) -> _Parts:
        folder, _ = bundle_format.check_bundle(bundle, scratch=storage.temporary_folder())
        shape = dataclasses.replace(bundle_format.read_about(folder).model_shape, features=data.features)
        catalogue, media = item_features(data.items, data.features), bundle_format.load_media(folder)
        items = ItemTensors.of(catalogue, shape, trained=trained_I, media=media)
        frozen, axes = None, None
        if shape.text_width:
            arrays = read_tensors(RunPaths(run).text_vectors, remedy="restore it, or train another run")
            frozen = make_text_table(arrays["vectors"].numpy(), arrays["present"].numpy() > 0)
            scale = load_arrays(BundlePaths(folder).vectors)
            axes = (scale["centre"], scale["axes"]) if "axes" in scale else None
        again = None
        if frozen is not None or not shape.text_width:
            with torch.inference_mode():
                again = model.towers(items, frozen)[0].float().numpy()
        known = again is not None and np.allclose(again, model.item_vectors, atol=1e-3)
        return _Parts(model, shape, items, frozen, axes, bool(known))

    def model(
        self, items: ItemTensors, text: TextTable | None, blend: Blend | None, texts: BundleTexts | None = None
    ) -> Recommender:
        """The model with item vectors of these features and texts."""
        with torch.inference_mode():
            vectors = self.whole.towers(items, text)[0].float().numpy()
        if blend is not None:
            made = Blend.of(blend.memory, blend.text_IC, vectors, blend.widths)
            blend = dataclasses.replace(made, weights_2K=blend.weights_2K)
        return clone(self.whole, vectors, blend, texts)

    def with_frozen(self, blend: Blend | None) -> Blend | None:
        """The blend whose text head reads the frozen encoder's vectors."""
        if blend is None or blend.text_IC is None or self.frozen is None:
            return blend
        vectors, present = self.frozen.vectors_IH.numpy(), self.frozen.present_I.numpy()
        width = blend.text_IC.shape[1]
        text_IC = reduced(vectors, present, width) if self.axes is None else on_axes(vectors, present, *self.axes)
        return dataclasses.replace(blend, text_IC=text_IC)


def summarise_knockouts(lists: RankedLists, *, ks: Sequence[int], resamples: int, seed: int) -> dict[str, Any]:
    """The key `knockouts` of `metrics.json`: for each hidden source the metrics without it, and what is lost.

    `lost` is the paired difference in NDCG@10 (the model minus the model without the source), `drop` its share of the
    model's NDCG@10.

    Args:
        lists: of all systems; those of a hidden source count, and the model's.
        ks: cut-offs.
        resamples: number of bootstrap resamples.
        seed: seed of the resamples.
    """
    tops = {name.removeprefix(PREFIX): top for name, top in lists.tops.items() if name.startswith(PREFIX)}
    if SHUFFLED_SAME_TIME in lists.tops:
        tops[CONTEXT] = lists.tops[SHUFFLED_SAME_TIME]
    tops = {MODEL: lists.tops[MODEL], **tops}
    values: PerRequest = {
        name: request_metrics(top, lists.target_offsets, lists.target_items, ks) for name, top in tops.items()
    }
    alone, paired, drops = intervals(values, resamples=resamples, seed=seed, drops_of=[n for n in tops if n != MODEL])
    found = {
        name: {**alone[name], "lost": paired[name]["ndcg@10"], "drop": drops[name]} for name in tops if name != MODEL
    }
    return dict(sorted(found.items(), key=lambda pair: -pair[1]["lost"]["mean"]))


def without_knockouts(lists: RankedLists) -> RankedLists:
    """The lists of all other systems."""
    return dataclasses.replace(lists, tops={s: top for s, top in lists.tops.items() if not s.startswith(PREFIX)})
