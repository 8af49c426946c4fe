"""Every promise names tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`((?:tests/)?test_\w+\.py)(?:::(test_\w+))?`", PAGE)


def rows() -> list[list[str]]:
    """The rows of the page's tables, without their heads."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines()]
    return [row for row in cells if len(row) == 3 and "---" not in row and row[2] != "tested by"]


def test_every_promise_names_a_test() -> None:
    assert len(rows()) > 20
    for promise, mechanism, tests in rows():
        assert mechanism, promise
        assert "test_" in tests or tests == "the same", promise


@pytest.mark.parametrize(("file", "name"), sorted(set(NAMED)), ids=str)
def test_the_tests_named_are_there(file: str, name: str) -> None:
    path = ROOT / file if file.startswith("tests/") else ROOT / "tests" / "faults" / file
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if name:
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
