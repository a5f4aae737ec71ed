"""`main` and the signals that end it."""

from __future__ import annotations

import json
import signal
import threading

import pytest

from densenet_deploy.cli import Stopped, StopSignals, main


def test_a_command_runs_in_any_thread(capsys: pytest.CaptureFixture[str]) -> None:
    """Only the main thread may listen to signals."""
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["inspect", "--variant", "121", "--json"])))
    thread.start()
    thread.join()
    captured = capsys.readouterr()
    assert (codes, captured.err) == ([0], "")
    assert json.loads(captured.out)["parameters"] == 7_978_856


@pytest.mark.parametrize(("first", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_ends_a_command_and_later_ones_leave_it_alone(first: signal.Signals, code: int) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    signals, unwound = StopSignals(), []

    def work() -> None:
        try:
            signal.raise_signal(first)
        finally:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            unwound.append(True)

    with pytest.raises(Stopped) as caught, signals.listening():
        work()
    assert (caught.value.exit_code, signals.received, unwound) == (code, caught.value, [True])
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
