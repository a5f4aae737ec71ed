"""Min-max: cover every value that was seen. Nothing is clipped, so one outlier coarsens the whole channel."""

from __future__ import annotations

from densenet_deploy.quantize.observers.observer import ChannelRanges, Observer, observers


@observers.register("minmax")
class MinMaxObserver(Observer):
    """The exact minimum and maximum of every channel."""

    def ranges(self) -> ChannelRanges:
        return self._extremes()
