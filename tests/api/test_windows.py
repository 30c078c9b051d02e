"""Windows given in Python rule as those of a recipe do."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.api.conftest import House
from tests.run.small import WORDS
from tests.tiny import V

import coterie
from coterie.errors import RequestError

WINDOWS = {"fruit": ("2013", "2015"), "tools": ("2015-01", 2017)}


def ids() -> torch.Tensor:
    return torch.randint(1, V - 6, (2, 12), generator=torch.Generator().manual_seed(0))


def rows(count: int = 40) -> list[dict[str, object]]:
    draw = random.Random(1)
    names = list(WORDS)
    return [
        {
            "text": " ".join(draw.choice(WORDS[names[i % 2]]) for _ in range(draw.randrange(6, 16))) + ".",
            "time": f"{2014 + i % 5}-0{1 + i % 9}-01",
        }
        for i in range(count)
    ]


def dated(house: House, **more: Any) -> Any:
    return coterie.mix(house.experts(), base=house.base, windows=WINDOWS, sequence_length=32, **more)


def test_what_a_date_may_not_use_has_no_part(house: House) -> None:
    m = dated(house)
    assert m.config.eligible["rule"] == "strict"
    fruit, both = house.run.experts["fruit"].log_probs(ids()), house.run.mixtures["average"].log_probs(ids())
    assert torch.equal(m.log_probs(ids(), time="2016-06-01"), fruit)
    assert torch.equal(m.log_probs(ids(), time=2017), both)
    with pytest.raises(RequestError, match="no expert may be used as of 2014-12-31"):
        m.log_probs(ids(), time="2014-12-31")
    inclusive = dated(house, eligible="inclusive")
    assert torch.equal(inclusive.log_probs(ids(), time="2014-12-31"), fruit)
    assert torch.equal(inclusive.log_probs(ids(), time="2015-01-01"), both)
    late = dated(house, fallback="tools", default_time="2016")
    assert torch.equal(late.log_probs(ids()), fruit)
    assert torch.equal(late.log_probs(ids(), time=2000), house.run.experts["tools"].log_probs(ids()))


def test_the_same_in_a_recipe_is_the_same_artifact(house: House, tmp_path: Path) -> None:
    spans = {"fruit": ("2013-01-01", "2015-01-01"), "tools": ("2015-01-01", "2017-01-01")}
    experts = [
        {"name": name, "model": str(folder), "window": dict(zip(("start", "end"), spans[name], strict=True))}
        for name, folder in house.experts().items()
    ]
    mixtures = [{"name": "m", "at": "outputs", "slots": list(spans)}]
    raw = {
        "name": "dated",
        "sequence_length": 32,
        "base": {"path": str(house.base)},
        "corpora": {},
        "experts": experts,
        "mixtures": mixtures,
    }
    run = coterie.run(raw, store=tmp_path / "store", out=tmp_path / "out")
    m = dated(house, store=tmp_path / "store")
    assert m.source.made.session.mixture_made.digest == run.summary["mixtures"]["m"]
    assert run.mixtures["m"].config.eligible["rule"] == "strict"


def test_a_router_is_fitted_and_evaluated_as_of_the_dates_of_the_texts(house: House, tmp_path: Path) -> None:
    m = dated(house, router=coterie.Linear(epochs=3), eligible="inclusive")
    with pytest.raises(RequestError, match="the texts have none"):
        m.fit([row["text"] for row in rows()])
    m.fit(rows())
    m.save_pretrained(tmp_path / "m")
    models = {"made": m, "opened": coterie.load(tmp_path / "m")}
    table = coterie.evaluate(models, {"news": rows(60)}, by="year", sequence_length=32, bootstrap=20)
    assert set(table["group"]) == {"2014", "2015", "2016", "2017", "2018", "all"}
    made, opened = (table.filter(table["model"] == name)["nll"] for name in models)
    assert (made - opened).abs().max() < 1e-5, "cached scores say what the mixture in memory says"
    alone = coterie.evaluate({"fruit": house.experts()["fruit"]}, {"news": rows(60)}, by="year", sequence_length=32)
    first = table.filter((table["model"] == "made") & (table["group"] == "2014"))["nll"].item()
    assert first == pytest.approx(alone.filter(alone["group"] == "2014")["nll"].item(), abs=1e-5)
    with pytest.raises(RequestError, match="the texts have none"):
        coterie.evaluate({"m": m}, [row["text"] for row in rows()])


def test_one_more_window_and_one_less(house: House) -> None:
    m = dated(house)
    m.add("third", house.experts("ffn")["fruit-ffn"], window=("2017", "2019"))
    assert torch.equal(m.log_probs(ids(), time=2018), house.run.mixtures["average"].log_probs(ids()))
    m.remove("fruit")
    assert torch.equal(m.log_probs(ids(), time=2018), house.run.experts["tools"].log_probs(ids()))
    with pytest.raises(RequestError, match="needs to know when the knowledge of expert 'fruit' ends"):
        m.add("fruit", house.experts()["fruit"])
    assert [slot["name"] for slot in m.slots] == ["tools", "third"], "what failed changed nothing"
    again = coterie.load(m.source.folder).add("fruit", house.experts()["fruit"], window=("2013", "2015"))
    assert torch.equal(again.log_probs(ids(), time="2016-06-01"), house.run.experts["fruit"].log_probs(ids()))


def test_training_on_a_window(house: House) -> None:
    how: dict[str, Any] = {"epochs": 1, "precision": "fp32", "sequence_length": 32}
    dates = [{"body": row["text"], "day": row["time"]} for row in rows()]
    early = coterie.train(house.base, dates, text="body", time="day", window=("2014", "2016"), **how)
    only = [row["text"] for row in rows() if str(row["time"]) < "2016"]
    same = coterie.train(house.base, only, **how)
    assert torch.equal(early.log_probs(ids()), same.log_probs(ids()))
    with pytest.raises(RequestError, match="a window needs texts with dates"):
        coterie.train(house.base, only, window=("2014", "2016"), **how)
