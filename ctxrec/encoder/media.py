"""Images and sounds of items: their vectors by pretrained encoders, which are never tuned.

The vector of a file is computed once and kept on the machine's disk, keyed by the file's content. It goes into the item
tower beside the item's text. A file that cannot be read counts as missing, and the log names it.

Legend: n items, I items of the catalogue, W width of a media encoder.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ctxrec.core import storage
from ctxrec.core.config import EncoderConfig
from ctxrec.core.errors import UserError
from ctxrec.data.prepared import PreparedData
from ctxrec.data.tensor_files import AGAIN, read_tensors, write_tensors
from ctxrec.encoder.cache import Place, folder_of
from ctxrec.encoder.hub import resolve_encoder
from ctxrec.encoder.state_store import RowStore, digest
from ctxrec.encoder.text_table import make_text_table

logger = logging.getLogger(__name__)

KINDS = ("image", "audio")
_IMAGES_AT_ONCE = 32
_SECONDS = 30.0  # of a sound that are read, from its start
_MOST_PIXELS = 1 << 27


class Unreadable(Exception):
    """A file is no image or sound, or cannot be read; the message says why."""


class MediaEncoder:
    """A frozen pretrained model of images or sounds, with its own preprocessing.

    Args:
        kind: "image" or "audio".
        path: local folder of a Hugging Face model with safetensors; none of its code is run.
        device: where it runs.

    Raises:
        UserError: the model cannot be loaded.
    """

    def __init__(self, kind: str, path: str, device: torch.device | str = "cpu") -> None:
        from safetensors import SafetensorError
        from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel

        self.kind, self._device = kind, device
        loader = AutoImageProcessor if kind == "image" else AutoFeatureExtractor
        try:
            self._prepare = loader.from_pretrained(path, trust_remote_code=False)
            model = AutoModel.from_pretrained(
                path, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, local_files_only=True
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"the {kind} encoder at {path} cannot be loaded: {str(error).splitlines()[0]}") from error
        self._model = model.to(device).eval()
        self.width = self.encode([self._blank()]).shape[1]

    def decode(self, content: bytes) -> Any:
        """An image or a wave [samples] at the encoder's own rate.

        Raises:
            Unreadable: the content is no such file.
        """
        return _image(content) if self.kind == "image" else _wave(content, self._prepare.sampling_rate)

    @torch.inference_mode()
    def encode(self, decoded: Sequence[Any]) -> np.ndarray:
        """Vectors of what `decode` gave: float32 [n, W]."""
        parts = []
        step = _IMAGES_AT_ONCE if self.kind == "image" else 1  # padding would change the vector of a shorter sound
        for start in range(0, len(decoded), step):
            some = list(decoded[start : start + step])
            if self.kind == "image":
                inputs = self._prepare(images=some, return_tensors="pt")
            else:
                inputs = self._prepare(some, sampling_rate=self._prepare.sampling_rate, return_tensors="pt")
            parts.append(self._pooled(inputs.to(self._device)).float().cpu().numpy())
        return np.concatenate(parts)

    def _pooled(self, inputs: Any) -> torch.Tensor:
        """A model's own vectors of this kind (CLIP, SigLIP, CLAP), else the mean of its last states. [n, W]"""
        own = getattr(self._model, f"get_{self.kind}_features", None)
        if own is not None:
            made = own(**inputs)
            return made if isinstance(made, torch.Tensor) else made.pooler_output
        states = self._model(**inputs).last_hidden_state
        return states.mean((2, 3)) if states.dim() == 4 else states.mean(1)  # of a convolution, of a transformer

    def _blank(self) -> Any:
        from PIL import Image

        return Image.new("RGB", (64, 64)) if self.kind == "image" else np.zeros(self._prepare.sampling_rate, np.float32)


def _image(content: bytes) -> Any:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content))
            if image.width * image.height > _MOST_PIXELS:
                raise Unreadable(f"it has {image.width} x {image.height} pixels, more than {_MOST_PIXELS}")
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Unreadable(str(error).splitlines()[0]) from error


def _wave(content: bytes, rate: int) -> np.ndarray:
    """One channel at `rate` samples a second, its first _SECONDS: float32 [samples]."""
    import soundfile
    from scipy.signal import resample_poly

    try:
        with soundfile.SoundFile(io.BytesIO(content)) as sound:
            samples = sound.read(int(_SECONDS * sound.samplerate), dtype="float32", always_2d=True).mean(1)
            found = sound.samplerate
    except (OSError, RuntimeError, ValueError) as error:
        raise Unreadable(str(error).splitlines()[0]) from error
    if not len(samples):
        raise Unreadable("it has no samples")
    if found != rate:
        common = int(np.gcd(found, rate))
        samples = resample_poly(samples, rate // common, found // common)
    return np.pad(samples, (0, max(rate - len(samples), 0))).astype(np.float32)  # models need a second at least


def media_tables(config: EncoderConfig, data: PreparedData, path: str, place: Place) -> dict[str, np.ndarray]:
    """Vectors of each kind that has an encoder and a column: float16 [I, W], 0 where an item has none.

    They are scaled as text vectors are, to an expected length of 1 (`ctxrec.encoder.text_table.make_text_table`).

    Args:
        config: names the encoders.
        data: says where the files are.
        path: file of this training's tables, which is read where it exists.
        place: of this worker; all workers must call this and divide the work.

    Raises:
        UserError: an encoder cannot be loaded, or not one file can be read.
    """
    wanted = {kind: getattr(config, kind) for kind in KINDS if getattr(config, kind)}
    for kind in wanted:
        if kind not in data.media_kinds and place.rank == 0:
            logger.warning("encoder.%s is set, but the data set has no column of that kind", kind)
    wanted = {kind: name for kind, name in wanted.items() if kind in data.media_kinds}
    if wanted and not storage.exists(path):
        tables = {kind: _table(kind, name, data, place) for kind, name in wanted.items()}
        if place.rank == 0:
            write_tensors(path, {kind: torch.from_numpy(table) for kind, table in tables.items()})
        if dist.is_initialized():
            dist.barrier()
    if not wanted:
        return {}
    return {
        kind: table.numpy()
        for kind, table in read_tensors(path, remedy=f"delete it, and {AGAIN} makes it anew").items()
    }


def _table(kind: str, name: str, data: PreparedData, place: Place) -> np.ndarray:
    folder = resolve_encoder(name, storage.cache_dir(), option=f"encoder.{kind}")
    encoder = MediaEncoder(kind, folder, place.device)
    store = RowStore(folder_of(folder, f"{kind}-vectors"), encoder.width)
    items, contents = data.media(kind)
    raw_IW = np.zeros((data.num_items, encoder.width), np.float32)
    failed: list[str] = []
    new: dict[bytes, np.ndarray] = {}
    waiting: list[tuple[int, bytes, Any]] = []

    def encode_waiting() -> None:
        vectors = encoder.encode([decoded for _, _, decoded in waiting])
        for (item, key, _), vector in zip(waiting, vectors, strict=True):
            raw_IW[item], new[key] = vector, vector[None]
        waiting.clear()

    for item, content in list(zip(items.tolist(), contents, strict=True))[place.rank :: place.world]:
        try:
            content = content if isinstance(content, bytes) else storage.read_bytes(content)
            key = digest(content)
            if key in store or key in new:
                raw_IW[item] = store.read(key)[0] if key in store else new[key][0]
                continue
            waiting.append((item, key, encoder.decode(content)))
        except (OSError, UserError, Unreadable) as error:
            failed.append(f"item {data.items.column(0)[item].as_py()!r}: {error}")
        if len(waiting) == _IMAGES_AT_ONCE:
            encode_waiting()
    if waiting:
        encode_waiting()
    if new:
        try:
            store.write(new)
        except OSError as error:  # the disk is full: this training goes on, the next one encodes again
            logger.warning("the %s vectors are not kept for later trainings: %s", kind, error)
    table = make_text_table(*_of_all_workers(kind, raw_IW, failed, len(items), place))
    scaled_IW = (table.vectors_IH - table.mean_H) / table.scale_H * table.present_I[:, None]
    return scaled_IW.numpy().astype(np.float16)


def _of_all_workers(
    kind: str, raw_IW: np.ndarray, failed: list[str], num_files: int, place: Place
) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of all workers [I, W], and which items have one, bool [I]; the log names what could not be read."""
    counts = torch.tensor([len(failed)], device=place.device)
    total_IW = torch.from_numpy(raw_IW).to(place.device)
    if dist.is_initialized():
        dist.all_reduce(counts)
        dist.all_reduce(total_IW)
    total = total_IW.cpu().numpy()
    if failed:
        logger.warning("%s: %d cannot be read and count as missing: %s", kind, len(failed), "; ".join(failed[:3]))
    if num_files and int(counts) == num_files:
        what = failed[0] if failed else "see the log of the other workers"
        raise UserError(
            f"none of the {num_files} files of the {kind} column can be read ({what}). "
            "Expected paths relative to the item file's folder, URIs that every worker can reach, or the content itself"
        )
    if place.rank == 0:
        logger.info("%s: vectors of %d items, %d wide", kind, num_files - int(counts), total.shape[1])
    return total, np.abs(total).sum(1) > 0
