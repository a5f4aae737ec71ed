"""The layers between the pooled features and the last linear layer, written as one line of text.

A line holds words separated by spaces, in the order of execution: `linear:512` (a linear layer with 512 outputs and a
bias), `linear:512:nobias`, `norm` (BatchNormalization of the row) and `relu`. Dropout computes nothing and is left out.

>>> hidden_layers("linear:512 norm relu")[0].width
512
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from densenet_deploy.errors import UsageError

_WORD: Final = re.compile(r"linear:(\d{1,7})(:nobias)?|norm|relu")
MOST_LAYERS: Final = 32


@dataclass(frozen=True)
class HiddenLayer:
    """One layer: `kind` is linear, norm or relu; `width` and `bias` are those of a linear layer."""

    kind: str
    width: int = 0
    bias: bool = True

    def __str__(self) -> str:
        if self.kind != "linear":
            return self.kind
        return f"linear:{self.width}" if self.bias else f"linear:{self.width}:nobias"


def hidden_layers(text: str) -> tuple[HiddenLayer, ...]:
    """Read the layers from their line.

    Raises:
        UsageError: if a word is unknown, or a width is 0.
    """
    layers = tuple(map(_layer, text.split()))
    if len(layers) > MOST_LAYERS:
        raise UsageError("hidden", f"holds {len(layers)} layers", f"give at most {MOST_LAYERS}")
    return layers


def hidden_text(layers: Iterable[HiddenLayer]) -> str:
    """Write the layers as one line."""
    return " ".join(map(str, layers))


def named_hidden_layers(text: str, width: int) -> tuple[tuple[str, HiddenLayer, int], ...]:
    """Return (name, layer, width of the row that it reads) for each layer behind a row of `width` features.

    >>> [(name, entering) for name, _, entering in named_hidden_layers("linear:8 relu linear:4", 16)]
    [('linear1', 16), ('relu1', 8), ('linear2', 8)]
    """
    counts, named = Counter[str](), []
    for layer in hidden_layers(text):
        counts[layer.kind] += 1
        named.append((f"{layer.kind}{counts[layer.kind]}", layer, width))
        width = layer.width or width
    return tuple(named)


def _layer(word: str) -> HiddenLayer:
    match = _WORD.fullmatch(word)
    if match is None or (match[1] and int(match[1]) == 0):
        raise UsageError(f"hidden={word}", "is not a layer", "give linear:WIDTH, linear:WIDTH:nobias, norm or relu")
    if match[1] is None:
        return HiddenLayer(word)
    return HiddenLayer("linear", int(match[1]), bias=match[2] is None)
