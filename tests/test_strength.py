"""What is recorded of the tests: one entry for each package, the newest."""

import json

from tests.strength import by_package, record


def of_file(*counts: int) -> dict[str, dict[str, int]]:
    names = ("covered_lines", "num_statements", "covered_branches", "num_branches")
    return {"summary": dict(zip(names, counts, strict=True))}


def test_files_are_counted_by_package():
    files = {
        "densenet_deploy/graph/bus.py": of_file(3, 4, 1, 2),
        "densenet_deploy/graph/passes/fold.py": of_file(10, 20, 3, 4),
        "densenet_deploy/records.py": of_file(5, 5, 0, 0),
    }
    assert by_package(files) == {
        "graph": {"covered_lines": 13, "num_statements": 24, "covered_branches": 4, "num_branches": 6},
        "modules at the top": {"covered_lines": 5, "num_statements": 5, "covered_branches": 0, "num_branches": 0},
    }


def test_a_new_record_replaces_that_of_the_same_name(tmp_path):
    recorded = tmp_path / "strength.json"
    record("mutation", {"graph": {"noticed": 1}, "bench": {"noticed": 2}}, recorded)
    record("coverage", {"graph": {"lines": 9}}, recorded)
    record("mutation", {"graph": {"noticed": 3}}, recorded)
    known = json.loads(recorded.read_text())
    assert [(name, facts["noticed"]) for name, facts in known["mutation"].items()] == [("bench", 2), ("graph", 3)]
    assert known["coverage"]["graph"]["lines"] == 9
    assert len(known["mutation"]["graph"]["date"]) == len("2026-01-31")
