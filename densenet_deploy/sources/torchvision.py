"""The weights that torchvision publishes: which name means which file, fetched once into torch's own cache.

Only a name given by the user leads here; torchvision and the network are touched by nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import re
import socket
import urllib.error
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlparse

from densenet_deploy.artifacts import os_errors_about, sha256_of
from densenet_deploy.errors import CheckpointError, ResourceError, UnknownNameError, UsageError
from densenet_deploy.packages import require_packages
from densenet_deploy.sources.file import load_file
from densenet_deploy.sources.source import (
    CheckpointFormat,
    LoadedNetwork,
    Match,
    Source,
    WeightsConstraint,
    formats,
    sources,
)
from densenet_deploy.variants import DEFAULT_VARIANT, find_variant

PUBLIC_VARIANTS: Final = ("121", "161", "169", "201")

_NAME: Final = re.compile(
    r"(?:imagenet(?::(?:densenet[-_]?)?(?P<variant>\d+))?"
    r"|(?:densenet(?P<owner>\d+)_weights\.)?(?P<version>imagenet1k_v\d+|default))",
    re.IGNORECASE,
)
_OLD_NAME: Final = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


@sources.register("torchvision")
class TorchvisionSource(Source):
    """Public ImageNet weights: `imagenet`, `imagenet:169`, `IMAGENET1K_V1` or `DenseNet169_Weights.IMAGENET1K_V1`."""

    names = ("imagenet", *(f"imagenet:{variant}" for variant in PUBLIC_VARIANTS))

    def matches(self, source: object) -> Match:
        return Match.CERTAIN if isinstance(source, str) and is_public_name(source) else Match.NO

    def check(self, source: object, variant: str | None) -> None:
        public_variant(str(source), variant)

    def load(self, source: object, constraint: WeightsConstraint) -> LoadedNetwork:
        require_packages("export", "torch", "torchvision")
        public = find_public_weights(str(source), constraint.variant.name if constraint.variant else None)
        variant = constraint.variant or find_variant(public.variant)
        constraint = dataclasses.replace(constraint, variant=variant, allow_nonfinite=False)
        loaded = load_file(fetched(public.url), constraint, assumes=False)
        assert loaded.origin is not None
        origin = dataclasses.replace(loaded.origin, source=public.name)
        return dataclasses.replace(loaded, name=variant.artifact_name, origin=origin, labels=public.labels)


@formats.register("torchvision")
class OldNames(CheckpointFormat):
    """The names of torchvision's first files, which its published ones still have: `norm.1` for `norm1`."""

    def recognises(self, names: Collection[str]) -> bool:
        return any(_OLD_NAME.search(name) for name in names)

    def renames(self, names: Collection[str]) -> Mapping[str, str | None]:
        return {name: _OLD_NAME.sub(r"\1\2", name) for name in names}


@dataclass(frozen=True)
class PublicWeights:
    """One published checkpoint: torchvision's name for it, the variant, its URL, and its class names."""

    name: str
    variant: str
    url: str
    labels: tuple[str, ...]


def is_public_name(weights: str) -> bool:
    """Whether `weights` has the form of a public name; see `TorchvisionSource`."""
    return _NAME.fullmatch(weights) is not None


def public_variant(weights: str, variant: str | None) -> str:
    """Return the variant that `weights` are of: the one in the name, else `variant`, else 121.

    Raises:
        UsageError: if the variant does not have public weights, or is not the one that the name is of.
    """
    match = _NAME.fullmatch(weights)
    named = (match["variant"] or match["owner"]) if match else None
    if named and variant and named != variant:
        raise UsageError(weights, f"names weights of densenet{named}, not {variant}", "leave out --variant")
    chosen = named or variant or DEFAULT_VARIANT
    if chosen not in PUBLIC_VARIANTS:
        known = ", ".join(PUBLIC_VARIANTS)
        raise UsageError(weights, f"variant {chosen} has no public weights", f"give a file, or one of: {known}")
    return chosen


def find_public_weights(weights: str, variant: str | None) -> PublicWeights:
    """Return what `weights` means for `variant`. Errors as `public_variant`.

    Raises:
        UnknownNameError: if torchvision does not publish weights under that name.
    """
    chosen, match = public_variant(weights, variant), _NAME.fullmatch(weights)
    return _published(chosen, match["version"] if match and match["version"] else "DEFAULT")


def fetched(url: str, timeout_seconds: float = 20.0) -> Path:
    """Return the cached file of `url`, downloading it first if needed; its name ends in the start of its SHA-256.

    A server that is silent for `timeout_seconds` is given up on.

    Raises:
        ResourceError: if it cannot be downloaded or stored.
        CheckpointError: if the cached file is not the published one.
    """
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    digest = path.stem.rpartition("-")[2]
    if not path.exists():
        _download(url, path, digest, timeout_seconds)
    if not sha256_of(path).startswith(digest):
        raise CheckpointError(path, f"is not what {url} publishes", "delete it and try again")
    return path


def _published(variant: str, version: str) -> PublicWeights:
    import torchvision.models

    versions = torchvision.models.get_model_weights(f"densenet{variant}")
    if version.upper() not in versions.__members__:
        raise UnknownNameError.among("weights version", version, versions.__members__)
    weights = versions[version.upper()]
    return PublicWeights(str(weights), variant, weights.url, tuple(weights.meta["categories"]))


def _download(url: str, path: Path, digest: str, timeout_seconds: float) -> None:
    import torch

    try:
        with os_errors_about(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        with _socket_timeout(timeout_seconds):
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=False)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as exc:
        raise ResourceError(url, f"cannot be downloaded ({exc})", "check the network, or give a file") from exc
    except RuntimeError as exc:
        raise ResourceError(url, "arrived damaged", "try again") from exc
    except OSError as exc:
        raise ResourceError(path, f"cannot be written ({exc.strerror})", "free space or set TORCH_HOME") from exc


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Give up on a silent server; torch.hub waits for ever, and has no option for it."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
