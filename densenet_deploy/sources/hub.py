"""Hugging Face folders and repositories: `config.json` beside `model.safetensors` or `pytorch_model.bin`.

A repository is named `hf://owner/name`, with `@revision` if it is not the newest one; timm's may be named as timm does,
`timm/densenet121.ra_in1k`. Files go to huggingface-hub's own cache, and nothing is fetched unless such a name is given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
from collections.abc import Callable, Iterator
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
_TIMEOUT_SECONDS: Final = 20.0
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
    files = _listed(repository, revision)
    weights = next((name for name in WEIGHTS_FILES if files is None or name in files), None)
    if weights is None:
        why = f"holds neither {' nor '.join(WEIGHTS_FILES)}"
        raise CheckpointError(repository, why, "download its weights, and give their path")
    if files is None:
        return _cached(repository, revision)
    for name in (CONFIG, PREPROCESSOR):
        if name in files:
            _download(repository, name, revision)
    return _download(repository, weights, revision)


def _listed(repository: str, revision: str | None) -> frozenset[str] | None:
    """The names of the files; without a network, None: what was fetched earlier may do."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        api = huggingface_hub.HfApi(endpoint=_endpoint())
        info = api.model_info(repository, revision=revision, timeout=_TIMEOUT_SECONDS)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as exc:
        what = f"revision {revision} of it" if isinstance(exc, errors.RevisionNotFoundError) else "it"
        why = f"the hub does not have {what}, or keeps it private"
        raise CheckpointError(repository, why, "check the name, or log in: hf auth login") from exc
    except errors.HfHubHTTPError as exc:
        raise _unreachable(repository, exc) from exc
    except Exception as exc:  # noqa: BLE001 - of the HTTP library underneath, which differs by version
        logging.getLogger(__name__).info("%s: %s", repository, exc)
        return None
    return frozenset(item.rfilename for item in info.siblings or ())


def _cached(repository: str, revision: str | None) -> Path:
    """Return the weights that were fetched earlier."""
    from huggingface_hub import try_to_load_from_cache

    for name in WEIGHTS_FILES:
        if isinstance(found := try_to_load_from_cache(repository, name, revision=revision), str):
            return Path(found)
    raise ResourceError(repository, "cannot be reached, and was not downloaded before", _NETWORK_FIX)


def _download(repository: str, name: str, revision: str | None) -> Path:
    """Return the cached file `name`."""
    import huggingface_hub

    fetch: Callable[..., Any] = huggingface_hub.hf_hub_download
    try:
        with _quiet():
            return Path(fetch(repository, name, revision=revision, endpoint=_endpoint()))
    except Exception as exc:
        raise _unreachable(repository, exc) from exc


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _unreachable(repository: str, exc: BaseException) -> ResourceError:
    return ResourceError(repository, f"cannot be downloaded ({_root(exc)})", _NETWORK_FIX)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the package's progress bars and warnings from the user, who sees ours."""
    from huggingface_hub import utils

    logger = logging.getLogger("huggingface_hub")
    level, was_off = logger.level, utils.are_progress_bars_disabled()  # type: ignore[attr-defined]
    logger.setLevel(logging.CRITICAL)
    utils.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        logger.setLevel(level)
        if not was_off:
            utils.enable_progress_bars()  # type: ignore[attr-defined]


def _root(exc: BaseException) -> str:
    """The first line of the error at the bottom of the chain."""
    while exc.__cause__ is not None:
        exc = exc.__cause__
    return str(exc).strip().partition("\n")[0] or type(exc).__name__
