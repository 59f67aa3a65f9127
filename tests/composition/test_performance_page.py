"""The page on what composes names tests that exist."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "performance.md"


def test_every_row_names_a_test_that_exists():
    rows = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    for row in rows:
        file, test = re.search(r"`(test_\w+\.py)::(test_\w+)` \|$", row).groups()
        folder = TESTS / "composition" if (TESTS / "composition" / file).exists() else TESTS
        assert f"def {test}(" in (folder / file).read_text("utf-8"), row
