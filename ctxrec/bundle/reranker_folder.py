"""Where the second stage of a bundle lies, and whether it belongs to it: beside the bundle, and copied when that is published."""

from __future__ import annotations

import logging
import shutil
import tempfile

from ctxrec.core import storage
from ctxrec.core.errors import UserError
from ctxrec.core.manifest import FolderKind, read_checked
from ctxrec.core.run_paths import reranker_beside

logger = logging.getLogger(__name__)

SECOND_STAGE = FolderKind(
    noun="reranker",
    format_version=1,
    when_missing="train one with ctxrec rerank first",
    when_damaged="restore it or run ctxrec rerank again",
    when_outdated="Run ctxrec rerank again",
)


def check_reranker(path: str, model_version: str) -> str:
    """A local folder with the reranker, after a check of its manifest, its model version and every hash.

    Raises:
        UserError: a file is missing or damaged, or the second stage belongs to another model.
    """
    folder, manifest = read_checked(path, SECOND_STAGE, scratch=storage.temporary_folder())
    if manifest["model_version"] != model_version:
        found = f"was trained for model {manifest['model_version']}; the bundle is model {model_version}"
        raise UserError(f"the reranker at {path} {found}. {SECOND_STAGE.when_outdated}")
    return folder


def usable_reranker(bundle: str, model_version: str) -> str | None:
    """The checked local folder of a bundle's second stage; None where there is none, or (with a warning) none that fits."""
    path = reranker_beside(bundle)
    if not storage.exists(path):
        return None
    try:
        return check_reranker(path, model_version)
    except UserError as error:
        logger.warning("going on without the second stage: %s", error)
        return None


def copy_reranker(bundle: str, target: str, model_version: str) -> None:
    """Copy the second stage of a bundle beside `target`, a copy of that bundle; it takes the place of one that lies there.

    One that is damaged, or was trained for another model, is left out with a warning.
    """
    folder, place = usable_reranker(bundle, model_version), reranker_beside(target)
    if folder is None or reranker_beside(bundle) == place:
        return

    def fill(out: str) -> None:
        shutil.copytree(folder, out, dirs_exist_ok=True)

    with tempfile.TemporaryDirectory() as scratch:
        storage.write_dir(place, fill, scratch=scratch)
