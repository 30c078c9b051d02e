"""Each kind of fault in its short form; `make faults` and `make faults-long` try more of the same."""

from __future__ import annotations

import os
from pathlib import Path

from tests.faults import campaign
from tests.faults.row import Row, Trial
from tests.faults.rows import ROWS
from tests.forked import CONTEXT


def in_turn(folder: Path, seed: int) -> None:
    for row in ROWS:
        if row.counts[0]:
            campaign._append(row.name, folder / f"{row.name}.jsonl", row.counts[0], seed, set(), seed % 1000)


def test_short_forms(tmp_path: Path) -> None:
    """In one process that is new: one with threads of other tests cannot be forked, and each would begin with imports."""
    seed = int.from_bytes(os.urandom(4))
    process = CONTEXT.Process(target=in_turn, args=(tmp_path, seed))
    process.start()
    process.join()
    assert process.exitcode == 0
    for row in ROWS:
        lines = campaign.read(tmp_path / f"{row.name}.jsonl")
        assert [(seed, line) for line in lines if line.violations] == []
        assert sum(line.landed for line in lines) == row.counts[0]


def test_a_campaign_goes_on_where_it_was(tmp_path, monkeypatch) -> None:
    tried = []

    def trial(prepared, home, draw) -> Trial:
        tried.append(draw.random())
        return Trial("coin", f"{tried[-1]}", landed=tried[-1] < 0.5, violations=("edge",) if tried[-1] > 0.9 else ())

    toy = Row("toy", "a coin", "it falls", (4, 8, 16), trial)
    file = tmp_path / "toy.jsonl"
    monkeypatch.setattr(campaign, "ROWS", [toy])
    campaign._append("toy", file, 4, 7, set(), 0, 2)
    first = campaign.read(file)
    campaign._append("toy", file, 4, 7, {line.number for line in first}, 1, 1)
    assert sum(line.landed for line in first) == 4
    assert {line.number % 2 for line in first} == {0}
    assert campaign.one(toy, tmp_path, 7, first[0].number).what == first[0].what
    (tmp_path / "campaign.json").write_text('{"form": "long", "seed": 7}')
    assert "| a coin | it falls |" in campaign.report(tmp_path)


def test_what_raises_is_a_violation(tmp_path) -> None:
    def trial(prepared, home, draw) -> Trial:
        raise KeyError("lost")

    line = campaign.one(Row("toy", "", "", (1, 1, 1), trial), tmp_path, 0, 3)
    assert line.kind == "error"
    assert "KeyError: 'lost'" in line.violations[0]
