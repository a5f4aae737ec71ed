"""Change a module in many small ways, one at a time, and report the changes that its own tests do not notice.

    python -m tests.mutation graph/rescale                  every mutant of one module
    python -m tests.mutation graph --sample 150 --seed 13   a random sample of a package's
    python -m tests.mutation records --list                 the mutants, without testing them

A module's own tests are those of the same place and name: of `densenet_deploy/graph/bus.py`, `tests/graph/test_bus.py`
and `tests/graph/test_bus_*.py`; of a package's `__init__.py`, the test named like the package. Each mutant is tested in
a process forked from one that has imported the large libraries, on a copy of the repository, so the checkout does not
change, and tests that start processes start mutated ones. A test that fails, crashes or exceeds the time limit (five
times the time of the unchanged module, and 5 s) notices the mutant. `equivalent.toml` lists mutants that no test can
notice, with the reason.

mutmut mutates neither statements nor the top level of a module, and cosmic-ray starts an interpreter for every mutant,
which takes longer to import PyTorch and ONNX Runtime than these tests take.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.made_once import FOLDER
from tests.mutation.mutants import Mutant, mutants
from tests.strength import record

ROOT: Final = Path(__file__).parents[2]
PACKAGE: Final = ROOT / "densenet_deploy"
EQUIVALENT: Final = Path(__file__).with_name("equivalent.toml")
IMPORTED: Final = (
    *("numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "torch", "torchvision", "PIL.Image", "hypothesis"),
)
MEMORY_LIMIT: Final = 16 * 2**30


def main() -> int:
    """Return 0 if every mutant was noticed, 1 if some survived, 2 if the tests fail without any change."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="+", help="modules or packages below densenet_deploy/, without .py")
    parser.add_argument("--sample", type=int, help="test this many mutants, drawn at random from all targets")
    parser.add_argument("--seed", type=int, default=1, help="of the sample (default: 1)")
    parser.add_argument("--jobs", "-j", type=int, default=2, help="mutants tested at the same time (default: 2)")
    parser.add_argument("--record", action="store_true", help="record the result (tests/strength.py)")
    parser.add_argument("--list", action="store_true", help="print the mutants without testing them")
    given = parser.parse_args()

    modules = [module for target in given.targets for module in modules_of(target)]
    drawn = [(module, mutant) for module in modules for mutant in mutants(module.read_bytes())]
    known = equivalent()
    total = len(drawn)
    drawn = [(module, mutant) for module, mutant in drawn if (name_of(module), mutant.change) not in known]
    print(f"{total} mutants in {len(modules)} modules, {total - len(drawn)} of them equivalent", end="")
    if given.sample and given.sample < len(drawn):
        drawn = sorted(random.Random(given.seed).sample(drawn, given.sample), key=lambda one: (one[0], one[1].start))
        print(f"; a sample of {len(drawn)} (seed {given.seed})", end="")
    print(flush=True)
    if given.list:
        for module, mutant in drawn:
            print(f"{name_of(module)}:{mutant.line}: {mutant.change}")
        return 0
    scores = test(drawn, given.jobs)
    if scores is None:
        return 2
    noticed = sum(score.noticed for score in scores.values())
    if given.record:
        facts = {"changes": total, "tested": len(drawn), "noticed": noticed, "seed": given.seed}
        record("mutation", {", ".join(given.targets): facts})
    return 1 if noticed < len(drawn) else 0


def modules_of(target: str) -> list[Path]:
    """Return the modules of a package, or the one module of that name."""
    path = PACKAGE / target
    found = [path.with_suffix(".py")] if path.with_suffix(".py").is_file() else sorted(path.rglob("*.py"))
    if not found:
        sys.exit(f"no module or package {target} in {PACKAGE}")
    return found


def name_of(module: Path) -> str:
    return module.relative_to(PACKAGE).with_suffix("").as_posix()


def own_tests(module: Path) -> list[str]:
    """Return the test files that mirror a module, relative to the repository."""
    place = module.relative_to(PACKAGE)
    if place.name == "__init__.py":
        place = place.parent / place.parent.name
    folder = ROOT / "tests" / place.parent
    found = [*folder.glob(f"test_{place.stem}.py"), *folder.glob(f"test_{place.stem}_*.py")]
    longer = [other.stem for other in module.parent.glob(f"{module.stem}_*.py")]  # has tests of its own
    return [
        test.relative_to(ROOT).as_posix()
        for test in sorted(found)
        if not any(test.stem == f"test_{other}" or test.stem.startswith(f"test_{other}_") for other in longer)
    ]


def equivalent() -> set[tuple[str, str]]:
    """Return module and change of the mutants that no test can notice."""
    return {(one["module"], one["change"]) for one in tomllib.loads(EQUIVALENT.read_text("utf-8"))["mutant"]}


@dataclass
class Place:
    """A copy of the repository in which one mutant at a time is tested."""

    folder: Path
    tested: tuple[Path, Mutant] | None = None
    pid: int = 0
    deadline: float = 0.0
    changes: int = 0

    def put(self, module: Path, source: bytes) -> None:
        """Write the source of a module, so that no compiled one is mistaken for it."""
        target = self.folder / module.relative_to(ROOT)
        target.write_bytes(source)
        self.changes += 1
        os.utime(target, (self.changes, self.changes))

    def start(self, tests: list[str], seconds: float) -> None:
        """Run tests in a fork of this process."""
        self.deadline = time.monotonic() + seconds
        self.pid = os.fork()
        if self.pid == 0:
            run_tests(self.folder, tests)

    def ended(self) -> int | None:
        """Return the status of the run, -1 if it exceeded the time, or None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            if time.monotonic() < self.deadline:
                return None
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            return -1
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # what it left behind
        return os.waitstatus_to_exitcode(status)


def run_tests(folder: Path, tests: list[str]) -> None:
    """Run pytest in a copy of the repository, print into a file, and end this process with its status."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    os.chdir(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "densenet_deploy")]:
        del sys.modules[name]
    sys.path[:] = [str(folder), *(entry for entry in sys.path if entry not in ("", str(ROOT)))]
    os.environ["PYTHONPATH"] = str(folder)
    output = os.open(f"{folder}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    status = 3
    try:
        without = ("cacheprovider", "hypothesispytest")  # the plugin of hypothesis takes a second to report
        plugins = [argument for name in without for argument in ("-p", f"no:{name}")]
        imported = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of libraries that this process has imported
        status = int(pytest.main(["-q", "-x", "-n0", f"--basetemp={folder}.tmp", *plugins, *imported, *tests]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@dataclass
class Score:
    noticed: int = 0
    survived: list[Mutant] = field(default_factory=list)
    seconds: float = 0.0


def test(drawn: list[tuple[Path, Mutant]], jobs: int) -> dict[Path, Score] | None:
    """Test mutants, print those that survive and a table; return the score of each module, None if its tests fail."""
    for name in IMPORTED:
        importlib.import_module(name)
    scores: dict[Path, Score] = defaultdict(Score)
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        os.environ[FOLDER] = str(Path(name, "made"))
        places = list(copies(Path(name), jobs))
        for module in sorted({module for module, _ in drawn}):
            score = scores[module]
            mine = [mutant for other, mutant in drawn if other == module]
            tests = own_tests(module)
            if not tests:
                print(f"{name_of(module)}: has no tests of its own", flush=True)
                score.survived = mine
                continue
            started = time.monotonic()
            places[0].start(tests, 600)
            while (status := places[0].ended()) is None:
                time.sleep(0.01)
            score.seconds = time.monotonic() - started
            if status != 0:
                print(f"{name_of(module)}: its tests fail without any change (pytest: {status})")
                print(Path(f"{places[0].folder}.txt").read_text("utf-8", "replace")[-3000:])
                return None
            for mutant, noticed in tested(module, mine, tests, 5 * score.seconds + 5, places):
                if noticed:
                    score.noticed += 1
                else:
                    score.survived.append(mutant)
                    print(f"{name_of(module)}:{mutant.line}: {mutant.change}", flush=True)
    print_table(scores)
    return scores


def copies(folder: Path, jobs: int) -> Iterator[Place]:
    """Copy the files of the repository that git knows or would take, `jobs` times."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for index in range(jobs):
        place = folder / f"copy{index}"
        for file in filter(None, files):
            if (ROOT / file).is_file():
                (place / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / file, place / file)
        yield Place(place)


def tested(
    module: Path, mine: list[Mutant], tests: list[str], seconds: float, places: list[Place]
) -> Iterator[tuple[Mutant, bool]]:
    """Yield each mutant of a module, and whether its tests noticed it."""
    source = module.read_bytes()
    waiting = list(reversed(mine))
    while waiting or any(place.tested for place in places):
        for place in places:
            if place.tested and (status := place.ended()) is not None:
                mutant = place.tested[1]
                place.tested = None
                place.put(module, source)
                yield mutant, status != 0
            if waiting and not place.tested:
                place.tested = (module, waiting.pop())
                place.put(module, place.tested[1].of(source))
                place.start(tests, seconds)
        time.sleep(0.01)


def print_table(scores: dict[Path, Score]) -> None:
    print("\n| module | mutants | noticed | share | seconds of its tests |\n|---|---|---|---|---|")
    for module, score in scores.items():
        print_row(name_of(module), score.noticed, len(score.survived), f"{score.seconds:.1f}")
    noticed = sum(score.noticed for score in scores.values())
    print_row("all", noticed, sum(len(score.survived) for score in scores.values()), "")


def print_row(name: str, noticed: int, survived: int, seconds: str) -> None:
    total = noticed + survived
    print(f"| {name} | {total} | {noticed} | {noticed / max(total, 1):.0%} | {seconds} |")


if __name__ == "__main__":
    sys.exit(main())
