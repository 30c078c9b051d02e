"""kill -9 at every event of the disk, one by one; the campaign of kills takes whole commands at times drawn by chance."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tests.faults import harness as h

from coterie.store import Store, prune

pytestmark = pytest.mark.slow


def _check_after_kill(root: Path, digest: str) -> None:
    assert h.broken(root) == []
    assert h.make(root).digest == digest
    assert h.broken(root) == []
    assert not (root / "quarantine").exists()
    store = Store(root)
    store.make(h.action(), h.build, label="found")
    out = root.parent / "out"
    out.mkdir()
    store.keep(out, finished=True)
    prune(store)
    assert list((root / "temp").iterdir()) == []
    assert [path.name for path in h.object_directories(root)] == [digest]


@pytest.fixture
def digests(tmp_path):
    root = tmp_path / "reference" / "store"
    root.parent.mkdir()
    return [h.make(root, number).digest for number in range(2)]


def test_killed_at_every_boundary(tmp_path, digests):
    roots = h.fresh(tmp_path)
    first = next(roots)
    steps = h.steps_of(lambda: h.make(first), tmp_path)
    assert steps > 30
    killed = 0
    for number in range(1, steps + 1):
        root = next(roots)

        def doomed(root=root, number=number):
            h.watch(h.nth(number, lambda event, path: h.die()))
            h.make(root)

        killed += h.in_child(doomed) == -signal.SIGKILL
        _check_after_kill(root, digests[0])
    assert killed == steps


def test_killed_while_damage_is_repaired(tmp_path, digests):
    """Quarantine and rebuild are moments like any other."""

    def damaged(root: Path) -> None:
        h.make(root)
        file = root / "corpora" / digests[0] / "inner" / "b.txt"
        file.chmod(0o644)
        file.write_text("x")

    roots = h.fresh(tmp_path)
    first = next(roots)
    damaged(first)
    steps = h.steps_of(lambda: h.make(first), tmp_path)
    for number in range(1, steps + 1):
        root = next(roots)
        damaged(root)

        def doomed(root=root, number=number):
            h.watch(h.nth(number, lambda event, path: h.die()))
            h.make(root)

        assert h.in_child(doomed) == -signal.SIGKILL
        assert h.make(root).digest == digests[0]
        assert h.broken(root) == []
        assert len(list((root / "quarantine").iterdir())) == 1


def test_killed_while_pruning(tmp_path, digests):
    """Half-swept, nothing visible is broken and what runs rest on is there."""

    def prepared(root: Path) -> None:
        store = Store(root)
        store.make(h.action(0), h.build, label="kept")
        (root.parent / "out").mkdir()
        store.keep(root.parent / "out", finished=True)
        h.make(root, 1)
        h.make(root, 2)
        store.leave()

    roots = h.fresh(tmp_path)
    first = next(roots)
    prepared(first)
    steps = h.steps_of(lambda: prune(Store(first)), tmp_path)
    assert [path.name for path in h.object_directories(first)] == digests[:1]
    for number in range(1, steps + 1):
        root = next(roots)
        prepared(root)

        def doomed(root=root, number=number):
            h.watch(h.nth(number, lambda event, path: h.die()))
            prune(Store(root))

        assert h.in_child(doomed) == -signal.SIGKILL
        assert h.broken(root) == []
        assert digests[0] in [path.name for path in h.object_directories(root)]
        prune(Store(root))
        assert [path.name for path in h.object_directories(root)] == digests[:1]
        assert list((root / "temp").iterdir()) == []
