"""The table of seeded bugs stays alive when the source changes; `make seeded` tries them."""

from __future__ import annotations

import pytest
from tests.faults.bugs import BUGS, Bug
from tests.faults.seeded import ROOT, first, planted


def test_there_are_sixty_all_different() -> None:
    assert len({(bug.file, bug.new, bug.why) for bug in BUGS}) == len(BUGS) == 60
    assert {bug.file.partition("/")[0] for bug in BUGS} >= {
        path.name for path in (ROOT / "src" / "coterie").iterdir() if path.is_dir() and any(path.glob("[a-z]*.py"))
    } - {"quickstart"}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.file}: {bug.why}"[:60])
def test_a_bugs_place_is_there_once_and_what_it_leaves_compiles(bug: Bug) -> None:
    path = ROOT / "src" / "coterie" / bug.file
    source = path.read_text(encoding="utf-8")
    changed = planted(bug, source)
    assert changed != source
    compile(changed, bug.file, "exec")
    assert first(bug.file)
