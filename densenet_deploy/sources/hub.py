"""Hugging Face folders and repositories: `config.json` beside `model.safetensors` or `pytorch_model.bin`.

A repository is named `hf://owner/name`, with `@revision` if it is not the newest one; timm's may be named as timm does,
`timm/densenet121.ra_in1k`. Files go to huggingface-hub's own cache, and nothing is fetched unless such a name is given.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from densenet_deploy.errors import CheckpointError, ResourceError, UsageError
from densenet_deploy.packages import require_packages
from densenet_deploy.sources.config_file import CONFIG, PREPROCESSOR
from densenet_deploy.sources.file import load_file
from densenet_deploy.sources.source import LoadedNetwork, Match, Source, WeightsConstraint, sources

WEIGHTS_FILES: Final = ("model.safetensors", "pytorch_model.bin")
"""Names of the weights in a folder, the best first."""

_SCHEME: Final = "hf://"
_NAME: Final = re.compile(r"(?:hf://)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*?)(?:@([\w./-]+))?")
_TIMM: Final = re.compile(r"timm/\w*densenet[\w.-]*(@[\w./-]+)?")
_NETWORK_FIX: Final = "check the network and HF_ENDPOINT, or give the files in a folder"


@sources.register("hub")
class HubSource(Source):
    """Load a folder or a repository with weights and their `config.json`."""

    names = ("hf://OWNER/NAME",)

    def matches(self, source: object) -> Match:
        if isinstance(source, str) and source.startswith(_SCHEME):
            return Match.CERTAIN
        if not isinstance(source, (str, os.PathLike)):
            return Match.NO
        path = Path(source)
        if path.is_dir():
            return Match.CERTAIN if any((path / name).is_file() for name in (CONFIG, *WEIGHTS_FILES)) else Match.NO
        is_timm = isinstance(source, str) and _TIMM.fullmatch(source) is not None and not path.exists()
        return Match.CERTAIN if is_timm else Match.NO

    def check(self, source: object, variant: str | None) -> None:  # noqa: ARG002 - the weights say what they are of
        if isinstance(source, str) and source.startswith(_SCHEME):
            _parts(source)

    def load(self, source: object, constraint: WeightsConstraint) -> LoadedNetwork:
        require_packages("export", "torch", "safetensors")
        assert isinstance(source, (str, os.PathLike))
        if isinstance(source, os.PathLike) or Path(source).is_dir():
            folder = Path(source)
            return dataclasses.replace(load_file(_weights_in(folder), constraint), name=folder.resolve().name)
        require_packages("hub", "huggingface_hub")
        repository, revision = _parts(source)
        loaded = load_file(_fetched(repository, revision), constraint)
        assert loaded.origin is not None
        origin = dataclasses.replace(loaded.origin, source=source)
        return dataclasses.replace(loaded, name=repository.rpartition("/")[2], origin=origin)


def _weights_in(folder: Path) -> Path:
    found = next((folder / name for name in WEIGHTS_FILES if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(folder, f"holds neither {' nor '.join(WEIGHTS_FILES)}", "give the path of the weights")
    return found


def _parts(source: str) -> tuple[str, str | None]:
    """(owner/name, revision)."""
    match = _NAME.fullmatch(source)
    if match is None:
        raise UsageError(source, "is not the name of a repository", "write hf://owner/name or hf://owner/name@revision")
    return match[1], match[2]


def _fetched(repository: str, revision: str | None) -> Path:
    """Return the path of the weights in the cache, beside whatever describes them."""
    for name in (CONFIG, PREPROCESSOR):
        _download(repository, name, revision)
    for name in WEIGHTS_FILES:
        if (path := _download(repository, name, revision)) is not None:
            return path
    raise CheckpointError(
        repository, f"holds neither {' nor '.join(WEIGHTS_FILES)}", "download its weights, and give their path"
    )


def _download(repository: str, name: str, revision: str | None) -> Path | None:
    """Return the cached file `name`; None if the repository has none of that name."""
    import huggingface_hub
    from huggingface_hub import errors

    endpoint = os.environ.get("HF_ENDPOINT") or None
    fetch: Callable[..., Any] = huggingface_hub.hf_hub_download
    try:
        return Path(fetch(repository, name, revision=revision, endpoint=endpoint))
    except errors.LocalEntryNotFoundError as exc:
        raise ResourceError(repository, f"cannot be downloaded ({_root(exc)})", _NETWORK_FIX) from exc
    except errors.EntryNotFoundError:
        return None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as exc:
        what = f"revision {revision} of it" if isinstance(exc, errors.RevisionNotFoundError) else "it"
        why = f"the hub does not have {what}, or keeps it private"
        raise CheckpointError(repository, why, "check the name, or log in: hf auth login") from exc
    except (errors.HfHubHTTPError, OSError) as exc:
        raise ResourceError(repository, f"cannot be downloaded ({_root(exc)})", _NETWORK_FIX) from exc


def _root(exc: BaseException) -> str:
    """The first line of the error at the bottom of the chain."""
    while exc.__cause__ is not None:
        exc = exc.__cause__
    return str(exc).strip().partition("\n")[0] or type(exc).__name__
