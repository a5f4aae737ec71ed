"""The weights that torchvision publishes: which name means which file, fetched once into torch's own cache.

Only a name given by the user leads here; torchvision and the network are touched by nothing else.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlparse

import torch

from densenet_deploy.artifacts import os_errors_about, sha256_of
from densenet_deploy.errors import CheckpointError, ResourceError, UnknownNameError, UsageError

PUBLIC_VARIANTS: Final = ("121", "161", "169", "201")

_LONGEST_SILENCE_SECONDS: Final = 20.0
_NAME: Final = re.compile(r"imagenet|(?:densenet(\d+)_weights\.)?(?:imagenet1k_v\d+|default)", re.IGNORECASE)


@dataclass(frozen=True)
class PublicWeights:
    """One published checkpoint: torchvision's name for it, the variant, where it lies, and its class names."""

    name: str
    variant: str
    url: str
    labels: tuple[str, ...]


def is_public_name(weights: str) -> bool:
    """Whether `weights` is a name such as `imagenet`, `IMAGENET1K_V1` or `DenseNet121_Weights.IMAGENET1K_V1`."""
    return _NAME.fullmatch(weights) is not None


def find_public_weights(weights: str, variant: str | None) -> PublicWeights:
    """Return what `weights` means for `variant` (121 where neither names one).

    Raises:
        UsageError: if the variant has no public weights, or is not the one that the name is of.
        UnknownNameError: if torchvision publishes no weights under that name.
    """
    match = _NAME.fullmatch(weights)
    named = match[1] if match else None
    if named and variant and named != variant:
        raise UsageError(weights, f"are the weights of densenet{named}, not {variant}", "leave out --variant")
    chosen = named or variant or "121"
    if chosen not in PUBLIC_VARIANTS:
        known = ", ".join(PUBLIC_VARIANTS)
        raise UsageError(weights, f"variant {chosen} has no public weights", f"give a file, or one of: {known}")
    return _published(chosen, weights.rpartition(".")[2])


def fetched(url: str) -> Path:
    """Return the cached file of `url`, downloading it first where needed; its name ends in the start of its SHA-256.

    Raises:
        ResourceError: if it cannot be downloaded or stored.
        CheckpointError: if the cached file is not the published one.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    digest = path.stem.rpartition("-")[2]
    if not path.exists():
        _download(url, path, digest)
    if not sha256_of(path).startswith(digest):
        raise CheckpointError(path, f"is not what {url} publishes", "delete it and try again")
    return path


def _published(variant: str, version: str) -> PublicWeights:
    import torchvision.models

    versions = torchvision.models.get_model_weights(f"densenet{variant}")
    key = "DEFAULT" if version.lower() == "imagenet" else version.upper()
    if key not in versions.__members__:
        raise UnknownNameError.among("weights version", version, versions.__members__)
    weights = versions[key]
    return PublicWeights(str(weights), variant, weights.url, tuple(weights.meta["categories"]))


def _download(url: str, path: Path, digest: str) -> None:
    try:
        with os_errors_about(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        with _impatient():
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=False)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as exc:
        raise ResourceError(url, f"cannot be downloaded ({exc})", "check the network, or give a file") from exc
    except RuntimeError as exc:
        raise ResourceError(url, "arrived damaged", "try again") from exc
    except OSError as exc:
        raise ResourceError(path, f"cannot be written ({exc.strerror})", "free space or set TORCH_HOME") from exc


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Give up on a network that says nothing for a while; torch.hub waits for ever, and offers no way to say so."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_LONGEST_SILENCE_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
