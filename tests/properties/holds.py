"""How a property becomes two tests: a few inputs, always the same, in every run; many random ones by name (-m study).

    @holds_for(few=20, many=2000, text=st.text())
    def test_text_is_kept(text: str) -> None: ...

Parameters that are not strategies are fixtures, set up once for all inputs. There are no deadlines: other work on the
machine says nothing about ours. A failure prints how to repeat it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

_STUDY_SECONDS = 6 * 3600
QUIET = tuple(check for check in HealthCheck if check not in (HealthCheck.filter_too_much,))


def holds_for(
    *, few: int, many: int, shrink: bool = True, **strategies: SearchStrategy[Any]
) -> Callable[[Callable[..., None]], Any]:
    """Make tests of a property: `few` inputs in every run, `many` with `-m study`.

    Without `shrink` a failure shows the input that was found, not the smallest: where one input takes seconds.
    """
    phases = (Phase.explicit, Phase.generate, *([Phase.shrink] if shrink else []))
    study = pytest.param(many, marks=[pytest.mark.study, pytest.mark.timeout(_STUDY_SECONDS)], id="many")

    def decorate(check: Callable[..., None]) -> Any:
        def test(inputs: int, **fixtures: Any) -> None:
            is_study = inputs == many

            @settings(
                max_examples=inputs,
                phases=phases,
                derandomize=not is_study,
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
        test.__signature__ = inspect.Signature([*kept, inspect.Parameter("inputs", kind)])  # type: ignore[attr-defined]
        test.__name__, test.__doc__, test.__module__ = check.__name__, check.__doc__, check.__module__
        test.check = check  # type: ignore[attr-defined]
        test.pytestmark = [*getattr(check, "pytestmark", [])]  # type: ignore[attr-defined]
        return pytest.mark.parametrize("inputs", [pytest.param(few, id="few"), study])(test)

    return decorate
