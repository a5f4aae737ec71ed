"""How a property becomes two tests: a few inputs in every run; many as a slow test. Both draw the same ones every time.

    @holds_for(few=20, many=100, text=st.text())
    def test_text_is_kept(text: str) -> None: ...

`pytest -m slow --times 20` draws twenty times as many, other ones each time: new faults are looked for there. A change
is judged by inputs that do not change, so the numbers in the code of modules imported so far, which Hypothesis would
try too, are left out: they differ from process to process. Parameters that are not strategies are fixtures, set up once
for all inputs. There are no deadlines: other work on the machine says nothing about ours. A failure prints how to
repeat it.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.internal.conjecture import providers
from hypothesis.strategies import SearchStrategy

_NO_CONSTANTS = copy.deepcopy(providers._local_constants)
providers._get_local_constants = lambda: _NO_CONSTANTS

_LONGEST_SECONDS = 6 * 3600
QUIET = tuple(check for check in HealthCheck if check not in (HealthCheck.filter_too_much,))


def holds_for(
    *, few: int, many: int, shrink: bool = True, **strategies: SearchStrategy[Any]
) -> Callable[[Callable[..., None]], Any]:
    """Make tests of a property: `few` inputs in every run, `many` with `-m slow`, random ones if `--times` is above 1.

    Without `shrink` a failure shows the input that was found, not the smallest: where one input takes seconds.
    """
    phases = (Phase.explicit, Phase.generate, *([Phase.shrink] if shrink else []))
    slow = pytest.param(True, marks=[pytest.mark.slow, pytest.mark.timeout(_LONGEST_SECONDS)], id="many")

    def decorate(check: Callable[..., None]) -> Any:
        def test(is_long: bool, times: int, **fixtures: Any) -> None:
            @settings(
                max_examples=many * times if is_long else few,
                phases=phases,
                derandomize=not is_long or times == 1,
                deadline=None,
                database=None,
                print_blob=True,
                suppress_health_check=QUIET,
            )
            @given(**strategies)
            def holds(**drawn: Any) -> None:
                check(**fixtures, **drawn)

            holds()

        parameters = inspect.signature(check, eval_str=True).parameters.values()
        kept = [parameter for parameter in parameters if parameter.name not in strategies]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        drawn = [inspect.Parameter(name, kind) for name in ("is_long", "times")]
        test.__signature__ = inspect.Signature([*kept, *drawn])  # type: ignore[attr-defined]
        test.__name__, test.__doc__, test.__module__ = check.__name__, check.__doc__, check.__module__
        test.check = check  # type: ignore[attr-defined]
        test.pytestmark = [*getattr(check, "pytestmark", [])]  # type: ignore[attr-defined]
        return pytest.mark.parametrize("is_long", [pytest.param(False, id="few"), slow])(test)

    return decorate
