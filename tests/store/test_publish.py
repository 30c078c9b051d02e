"""Publishing onto what lies there already."""

from __future__ import annotations

import pytest
from tests.faults import harness as h

from coterie.store.durable import discard
from coterie.store.objects import publish, read_object
from coterie.store.quarantine import DamageError, set_aside


def _publish(root, name):
    temp = root / "temp" / name
    temp.mkdir(parents=True)
    h.build(temp)
    return publish(temp, root, h.action().statement)


def test_the_loser_of_a_race_takes_the_winners(tmp_path):
    first = _publish(tmp_path, "one")
    inode = (tmp_path / "corpora" / first[0]).stat().st_ino
    assert _publish(tmp_path, "two") == first
    assert (tmp_path / "corpora" / first[0]).stat().st_ino == inode


@pytest.mark.parametrize("damage", ["changed", "extra", "empty", "file"])
def test_unless_the_winners_is_damaged(tmp_path, damage):
    digest, files = _publish(tmp_path, "one")
    target = tmp_path / "corpora" / digest
    target.chmod(0o755)
    if damage == "changed":
        target.joinpath("facts.json").chmod(0o644)
        target.joinpath("facts.json").write_text('{"number": 1}')
    elif damage == "extra":
        (target / "more").touch()
    else:
        discard(target)
        target.touch() if damage == "file" else target.mkdir()
    assert _publish(tmp_path, "two") == (digest, files)
    assert h.broken(tmp_path) == []
    assert len(list(tmp_path.glob("quarantine/*"))) == (damage != "empty")


def test_only_the_damaged_one_is_set_aside(tmp_path):
    """Two processes saw the damage; when the slower one acts, the other has already made it again."""
    digest, _ = _publish(tmp_path, "one")
    target = tmp_path / "corpora" / digest
    target.joinpath("facts.json").chmod(0o644)
    target.joinpath("facts.json").write_text("{}")
    with pytest.raises(DamageError) as seen:
        read_object(target)
    for _ in range(2):
        set_aside(tmp_path, seen.value)
        _publish(tmp_path, "two")
    assert h.broken(tmp_path) == []
    assert len(list(tmp_path.glob("quarantine/*"))) == 1
