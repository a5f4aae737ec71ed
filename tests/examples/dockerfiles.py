"""Dockerfiles, read line by line: what the tests run of them without Docker."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "examples" / "docker"

KNOWN = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


@dataclass
class Stage:
    """One stage: its base and name, its build arguments, and the other instructions in order."""

    base: str
    name: str
    arguments: dict[str, str] = field(default_factory=dict)
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        return [text for step, text in self.steps if step == word]

    def only(self, word: str) -> str:
        (text,) = self.all(word)
        return text


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile: the word in capitals, and the rest with its lines joined."""
    kept = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", "", kept)
    found = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    for word, *rest in found:
        assert word in KNOWN, f"{word}: an instruction that the tests do not know"
        assert rest, word
    return [(word, rest) for word, rest in found]


def stages(name: str) -> list[Stage]:
    """The stages of a file in `examples/docker`."""
    found: list[Stage] = []
    for word, text in instructions((FOLDER / name).read_text()):
        if word == "FROM":
            base, _, stage = text.partition(" AS ")
            found.append(Stage(base, stage))
        elif word == "ARG" and found:
            key, _, value = text.partition("=")
            found[-1].arguments[key] = value
        elif word != "ARG":
            found[-1].steps.append((word, text))
    return found


def with_arguments(stage: Stage, text: str) -> str:
    for key, value in stage.arguments.items():
        text = text.replace(f"${{{key}}}", value)
    return text


def words(text: str) -> list[str]:
    """The words of the exec form, `["a", "b"]`."""
    found = json.loads(text)
    assert isinstance(found, list)
    return found
