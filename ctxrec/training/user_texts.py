"""The free texts of users as a training reads them: by the encoder as it is before it is tuned, all of them before the first step.

The encoder of users' texts stays as it is, so that a user's vector does not change while the towers learn to read it.

Legend: n distinct texts, H encoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ctxrec.core import schema
from ctxrec.core.config import Config
from ctxrec.core.run_paths import RunPaths
from ctxrec.data.batching import UserTexts, texts_of_users
from ctxrec.data.events import Users
from ctxrec.data.prepared import PreparedData
from ctxrec.encoder.cache import Place
from ctxrec.encoder.encode_plan import tokenise
from ctxrec.encoder.text_table import TextTable
from ctxrec.training.catalogue_vectors import Catalogue, frozen_table


@dataclass(frozen=True)
class TrainingTexts:
    """The users' texts of a data set with their vectors, and the centre and the scale with which a tower reads them."""

    texts: UserTexts
    mean_H: np.ndarray
    scale_H: np.ndarray


def read_user_texts(
    config: Config, data: PreparedData, catalogue: Catalogue, run: str, place: Place
) -> TrainingTexts | None:
    """Encode what is not on disk yet; every worker must call it. None where the towers read no text of a user.

    Args:
        config: all options.
        data: the prepared data.
        catalogue: of the same, with the path of the encoder.
        run: the run, whose checkpoints keep the vectors of this training.
        place: of this worker.
    """
    if not catalogue.shape.user_text_width or catalogue.texts is None or config.train.preset == "quick":
        return None
    distinct = distinct_texts(data)
    path = catalogue.texts.encoder_path
    tokens = tokenise(path, distinct or [""], max_tokens=config.encoder.max_tokens)
    present = np.array([bool(text) for text in distinct or [""]])
    table: TextTable = frozen_table(config.encoder, RunPaths(run).user_text_vectors, path, tokens, present, place)
    mean, scale = table.mean_H.cpu().numpy(), table.scale_H.cpu().numpy()
    vectors = (table.vectors_IH.cpu().numpy() - mean) / scale
    row = {text: n for n, text in enumerate(distinct)}

    def read(texts: Sequence[str]) -> np.ndarray:
        return vectors[[row[text] for text in texts]]

    return TrainingTexts(UserTexts(vectors.shape[1], read), mean, scale)


def distinct_texts(data: PreparedData) -> list[str]:
    """The different texts of all users, sorted."""
    names, found = data.features.user_texts, set()
    for bucket in range(len(data.bucket_paths)):
        table = data.read_bucket(bucket, [schema.user_column(name) for name in names])
        text = {name: table.column(schema.user_column(name)).to_numpy(zero_copy_only=False) for name in names}
        found |= set(texts_of_users(Users(ids=np.empty(len(table), object), text=text)))
    return sorted(found - {""})
