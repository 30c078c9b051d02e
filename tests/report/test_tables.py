"""What is in the tables, what is best, and what is left out."""

from __future__ import annotations

from tests.report.fixture import make_summary

from coterie.report import difference_tables, evaluation_tables
from coterie.report.figures import count, perplexity, seconds, signed, ticks
from coterie.report.measure import ACCURACY


def test_every_model_and_reference_has_a_row_and_the_best_real_one_is_marked() -> None:
    summary = make_summary()
    losses, releases = evaluation_tables(summary)
    table = summary["evaluation"]["losses"]
    assert {r.name for r in losses.rows} == set(table)
    assert losses.columns == ["all", "meetings", "code", "questions"]
    assert [r.cells[0].value for r in losses.rows] == sorted(e["all"]["nll"] for e in table.values())
    for c, group in enumerate(losses.columns):
        marked = [r.name for r in losses.rows if r.cells[c].best]
        real = {m: by[group]["nll"] for m, by in table.items() if m not in ("best_expert", "oracle")}
        assert marked == [min(real, key=lambda m: real[m])]
    by_name = {r.name: r for r in losses.rows}
    assert by_name["best_expert"].detail == table["best_expert"]["all"]["expert"]
    assert [c.note for c in by_name["oracle"].cells] == [None, "meetings", "code", "questions"]
    assert [by_name[n].kind for n in ("learned", "code", "single", "oracle")] == ["mixture", "expert", "single", "reference"]
    first = by_name["learned"].cells[0]
    assert (first.text, first.other) == ("3.010", "20.29")
    assert releases.measure == ACCURACY
    assert releases.columns == ["right", "past", "future", "irrelevant"]
    assert releases.rows[0].name == "learned"
    assert releases.rows[0].cells[0].best
    assert not any(c.best for r in releases.rows for c in r.cells[1:])


def test_marks_lie_on_the_axis_in_order() -> None:
    for table in (*evaluation_tables(make_summary()), *difference_tables(make_summary())):
        for row in table.rows:
            assert row.mark is not None
            assert 0 < row.mark.low <= row.mark.at <= row.mark.high < 100
        assert all(0 <= at <= 100 for at, _ in table.axis)
        assert len(table.axis) >= 2


def test_differences_are_clear_only_if_the_interval_leaves_out_zero() -> None:
    tables = {t.reference: {r.name: r.cells[0] for r in t.rows} for t in difference_tables(make_summary())}
    assert tables["best_expert"]["average"].clear == "better"
    assert tables["best_expert"]["learned"].clear == "worse"
    assert tables["single"]["average"].clear == ""
    assert tables["best_expert"]["average"].text == "−0.200"
    right = {"all": {"accuracy": 0.1, "ci95": [0.05, 0.2], "documents": 9}}
    (table,) = difference_tables(make_summary(differences={"quiz": {"learned": {"best_expert": right}}}))
    assert (table.rows[0].cells[0].text, table.rows[0].cells[0].clear) == ("+10.0", "better")


def test_what_a_model_cannot_answer_is_said() -> None:
    nothing = {"tokens": 0, "nll": None, "perplexity": None, "ci95": None, "documents": 0, "skipped": 8}
    part = {"tokens": 9, "nll": 1.0, "perplexity": 2.7, "ci95": None, "documents": 3, "skipped": 5}
    summary = make_summary(evaluation={"e": {"never": {"all": nothing}, "learned": {"all": part}}})
    (table,) = evaluation_tables(summary)
    assert [r.name for r in table.rows] == ["learned", "never"]
    assert table.rows[0].detail == "mixture, answers 3 of 8"
    assert table.rows[1].cells[0].text == "–"
    assert table.rows[1].mark is None


def test_counts() -> None:
    values = (812, 9_999, 26_400, 999_999, 2e6, 1.234e9, None)
    assert [count(v) for v in values] == ["812", "9,999", "26.4 k", "1 M", "2 M", "1.23 G", "–"]


def test_other_figures() -> None:
    assert [perplexity(v) for v in (2.5, 24.567, 1234.5, 3e7, None)] == ["2.500", "24.57", "1,234", "3.0e+07", "–"]
    assert [seconds(v) for v in (1.25, 75, 3599.9, 3700, None)] == ["1.2 s", "1 min 15 s", "1 h 00 min", "1 h 01 min", "–"]
    assert signed(-0.1234) == "−0.123"
    assert ticks(2.85, 3.45, 4) == [3.0, 3.2, 3.4]
    assert ticks(1, 1) == [1]
