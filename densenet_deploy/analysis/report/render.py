"""A page as HTML: one file that holds its style, script and figures, and asks nothing of any network.

Whatever comes from files goes through `printable` (control characters escaped, megabytes cut) and is then escaped by
the template engine, which does so for every value unless told otherwise. The page forbids itself to load anything, and
to run any script but its own.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from densenet_deploy.analysis.report.inline_svg import inline_svg
from densenet_deploy.analysis.report.page import Figure, Page
from densenet_deploy.errors import printable
from densenet_deploy.packages import require_packages

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

MOST_ROWS: Final = 500
_LONGEST_TEXT: Final = 400
_LONG: Final = 52  # characters of a cell that its column need not be as wide as
_LONGEST_COMMAND: Final = 4000


def render(page: Page) -> bytes:
    """Return `page` as UTF-8 HTML; equal pages give equal bytes.

    Raises:
        MissingPackageError: if Jinja2 is not installed.
    """
    require_packages("report", "jinja2")
    from markupsafe import Markup

    style, script = _part("page.css"), _part("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = (
        _environment()
        .get_template("page.html")
        .render(
            page=page,
            style=Markup(style),  # noqa: S704 - our own file
            script=Markup(script),  # noqa: S704
            script_hash=digest,
            most_rows=MOST_ROWS,
            long=_LONG,
        )
    )
    return text.encode("utf-8", "backslashreplace")


def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_part),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "svg": _svg,
        "breakable": _breakable,
        "prose": _prose,
        "shell": _shell,
        "percent": _percent,
    }
    return environment


def _shown(value: Any) -> Any:
    """What the template prints: markup of its own as it is, and anything else as one line of bounded length."""
    return value if hasattr(value, "__html__") else printable(value, _LONGEST_TEXT)


def _svg(figure: Figure) -> Markup:
    from markupsafe import Markup

    return Markup(inline_svg(figure.svg, figure.name, printable(figure.caption)))  # noqa: S704 - ours, serialized


def _breakable(text: str) -> Markup:
    """Let long names of files and layers be broken behind their dots."""
    from markupsafe import Markup, escape

    return escape(_shown(text)).replace(".", Markup(".<wbr>"))


def _prose(text: str) -> Markup:
    """Keep options of commands whole: a browser would break them behind their hyphens."""
    from markupsafe import Markup

    return Markup(" ").join(_whole(word) if word.startswith("-") else word for word in _shown(text).split(" "))


def _shell(line: str) -> Markup:
    """Let a command be broken at its spaces alone."""
    from markupsafe import Markup

    return Markup(" ").join(_whole(word) for word in printable(line, _LONGEST_COMMAND).split(" "))


def _whole(word: str) -> Markup:
    from markupsafe import Markup

    return Markup('<span class="whole">{}</span>').format(word) if "-" in word else Markup("{}").format(word)


def _percent(fraction: float) -> str:
    return f"{100 * min(max(fraction, 0.0), 1.0):.2f}"


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")
