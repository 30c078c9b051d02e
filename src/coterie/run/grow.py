"""Experts as they are needed: a finished run takes in a corpus, drops an expert that is not used, or makes two into one.

Growth is a change of the recipe, and then a run of it: experts that stay are found in the store, bit by bit what they were,
and only what is new is made. What was decided and what it did to every skill is kept in ``OUT/growth.json``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from coterie.errors import RequestError
from coterie.growth.growth_actions import features, make_library
from coterie.growth.novelty import ALARM, Decision, Library, read_features
from coterie.mixtures.adapters.adapters_place import AdaptersPlace
from coterie.models.checkpoint import contents
from coterie.progress import say
from coterie.recipe import read
from coterie.run import run
from coterie.run.parts import Parts
from coterie.run.publish import Run
from coterie.spec.json_file import read_json
from coterie.spec.json_types import Figures
from coterie.store import Store, link_tree
from coterie.store.durable import replace_synced
from coterie.store.store import default_root
from coterie.store.whole import OWN, break_seal, require_whole, write_seal

SEEN = 100_000
"""Tokens of each corpus that the decision reads, of either split."""

Losses = dict[str, dict[str, float]]
"""Nats a token of each model, by corpus."""


class Grown:
    """A finished run that is to change.

    Args:
        out: its results folder.
        mixture: which of its mixtures of adapters; the only one by default.

    Raises:
        RequestError: no finished run is there, or it has no such mixture.
    """

    def __init__(
        self, out: str | Path, store: str | Path | None = None, mixture: str | None = None, settings: Iterable[str] = ()
    ) -> None:
        self.out, self.store = Path(out), Path(store) if store is not None else default_root()
        self.settings = list(settings)
        if not (self.out / "recipe.json").is_file() or not (self.out / "summary.json").is_file():
            raise RequestError(
                "no finished run is here",
                where=str(out),
                expected="recipe.json and summary.json",
                found=", ".join(sorted(p.name for p in self.out.glob("*.json"))) or "no such files",
                do="run a recipe first: coterie run RECIPE --out OUT",
            )
        for name in OWN:
            require_whole(self.out / name)
        self.raw = _settings(self.out)
        self.summary: Figures = read_json(self.out / "summary.json")
        able = [m["name"] for m in self.raw["mixtures"] if m["at"] == "adapters" and not m.get("joint")]
        if mixture is None and len(able) == 1:
            mixture = able[0]
        if mixture not in able:
            raise RequestError(
                "say which mixture is to grow" if mixture is None else f"no mixture called {mixture!r} can grow",
                where=str(out),
                expected=", ".join(able) or "a mixture at adapters with slots (joint ones hold theirs)",
                do="give --mixture",
            )
        assert mixture is not None
        self.mixture = mixture
        tokenizer = self.raw["base"].get("tokenizer")
        if isinstance(tokenizer, dict) and tokenizer.get("corpora") is None:
            # Trained on all that the recipe trains on: with other corpora, it and all that rests on it would be another.
            tokenizer["corpora"] = Parts(read(copy.deepcopy(self.raw)), Store(self.store)).trained_corpora

    # what there is --------------------------------------------------------------------------------------------------------

    def spec(self, raw: Figures) -> Figures:
        """The mixture in a recipe."""
        return next(m for m in raw["mixtures"] if m["name"] == self.mixture)

    def parts(self, raw: Figures) -> tuple[Parts, AdaptersPlace]:
        recipe = read(copy.deepcopy(dict(raw)), self.settings)
        mixture = next(m for m in recipe.mixtures if m.name == self.mixture)
        assert isinstance(mixture, AdaptersPlace)
        return Parts(recipe, Store(self.store)), mixture

    def losses(self, summary: Figures) -> Losses:
        """Of the mixture and its experts, from every evaluation of losses."""
        names = [self.mixture, *dict.fromkeys(s["name"] for s in summary["slots"][self.mixture])]
        found: Losses = {}
        for table in summary["evaluation"].values():
            for name in names:
                groups = {g: f["nll"] for g, f in table.get(name, {}).items() if g != "all" and "nll" in f}
                if groups:
                    found.setdefault(name, {}).update(groups)
        return found

    # changes --------------------------------------------------------------------------------------------------------------

    def corpus(self, name: str, path: str | Path, *, alarm: float = ALARM, train_on: bool = False) -> Run | None:
        """Decide whether a corpus is new; if so add an expert for it.

        Args:
            alarm: share of known batches that may be called new.
            train_on: if it is not new, train the expert that it belongs to on it.

        Returns:
            the run that followed; None where nothing was to be done.

        Raises:
            RequestError: the corpus is empty or cannot be read; nothing of the run is touched.
        """
        raw = copy.deepcopy(self.raw)
        self._add_corpus(raw, name, path)
        decision = self._decide(raw, name, alarm)
        print(f"{name}: {decision}")
        if not decision.novel and not train_on:
            self._note({"corpus": name, "decision": decision.as_json(), "change": "none"}, self.summary)
            return None
        names = {e["name"] for e in raw["experts"]} | {m["name"] for m in raw["mixtures"]}
        like = next(
            e for e in raw["experts"] if e["name"] == (self.spec(raw)["slots"][0] if decision.novel else decision.expert)
        )
        new = {key: like[key] for key in ("kind", "lora", "train", "from") if key in like} | {"corpus": name}
        if decision.novel:
            new["name"] = _free(name, names)
            self.spec(raw)["slots"] = [*self.spec(raw)["slots"], new["name"]]
        else:
            new |= {"name": _free(f"{like['name']}-{name}", names), "from": like["name"]}
            seats = [new["name"] if s == like["name"] else s for s in self.spec(raw)["slots"]]
            self.spec(raw)["slots"] = seats
        raw["experts"] = [*raw["experts"], new]
        for evaluation in raw["evaluation"]:
            if "corpora" in evaluation and name not in evaluation["corpora"]:
                evaluation["corpora"] = [*evaluation["corpora"], name]
        change = {"corpus": name, "decision": decision.as_json(), "change": "added" if decision.novel else "trained on"}
        return self._run(raw, {**change, "expert": new["name"]})

    def prune(self, below: float = 0.05) -> Run | None:
        """Take experts out of the mixture that hold less than a share of the weight."""
        use = self._use()
        gone = [name for name, share in use.items() if share < below]
        if len(gone) == len(use):
            raise RequestError("no expert would be left", where="--below", found=str(below), do="give a smaller share")
        shares = ", ".join(f"{name} {share:.1%}" for name, share in use.items())
        print(f"{self.mixture}: use {shares}; below {below:.0%}: {', '.join(gone) or 'none'}")
        if not gone:
            return None
        raw = copy.deepcopy(self.raw)
        self._unseat(raw, dict.fromkeys(gone))
        return self._run(raw, {"change": "pruned", "experts": gone, "use": use})

    def merge(self, above: float = 0.5) -> Run | None:
        """Make the two experts with the most similar updates into one, each by its use."""
        from coterie.growth.expert_similarity import merged, similarities
        from coterie.models import lora_files as files
        from coterie.models.open import open_model

        parts, mixture = self.parts(self.raw)
        base = mixture.base(parts)
        places = files.linears(open_model(base))
        seated = {name: files.read(parts.experts[name].path, places) for name in mixture.experts(parts)}
        if len(seated) < 2:
            raise RequestError("one expert alone cannot be merged", where=self.mixture)
        (one, two), alike = max(similarities(seated).items(), key=lambda item: item[1])
        print(f"{self.mixture}: {one} and {two} are the most alike, with a cosine of {alike:.3f}")
        if alike < above:
            print(f"that is below {above}: nothing is merged")
            return None
        use = self._use()
        share = use[one] / (use[one] + use[two]) if use[one] + use[two] else 0.5
        adapter, lost = merged(seated[one], seated[two], share)
        raw = copy.deepcopy(self.raw)
        names = {e["name"] for e in raw["experts"]} | {m["name"] for m in raw["mixtures"]}
        name = _free(f"{one}-{two}"[:60], names)
        folder = self.out / "grown" / name
        files.write(adapter, places, folder)
        (folder / "facts.json").write_text(
            json.dumps({"base": contents(base), "merged": {one: share, two: 1 - share}}) + "\n"
        )
        print(f"{name}: {share:.0%} {one} and {1 - share:.0%} {two}; its rank loses {lost:.2%} of their sum")
        kept = one if use[one] >= use[two] else two
        like = next(e for e in raw["experts"] if e["name"] == kept)
        rests = {key: like[key] for key in ("corpus", "from") if key in like}
        raw["experts"] = [*raw["experts"], {**rests, "name": name, "adapter": str(folder.absolute()), "kind": "lora"}]
        self._unseat(raw, {one: name, two: None})
        return self._run(raw, {"change": "merged", "experts": [one, two], "expert": name, "similarity": alike, "lost": lost})

    # how ------------------------------------------------------------------------------------------------------------------

    def _add_corpus(self, raw: Figures, name: str, path: str | Path) -> None:
        known = raw["corpora"].get(name)
        path = str(Path(path).expanduser().absolute())
        if known is not None and known.get("path") != path:
            raise RequestError(
                f"a corpus is called {name!r} already",
                where="--corpus",
                found=str(known.get("path")),
                do="choose another name",
            )
        if known is None:
            raw["corpora"][name] = {"path": path}

    def _decide(self, raw: Figures, name: str, alarm: float) -> Decision:
        parts, mixture = self.parts(raw)
        base = mixture.base(parts)

        def seen(corpus: str, split: str, window: Any = None, where: Any = None) -> Any:
            blocks = parts.blocks(corpus, split, window, where, SEEN)
            return features(parts.store, base, blocks, label=f"features of {parts.text_of[blocks.digest]}")

        new = seen(name, "train")
        skills, experts = {}, {}
        for expert in (parts.by_name[e] for e in mixture.experts(parts)):
            if expert.corpus:
                skills[expert.name] = tuple(seen(expert.corpus, s, expert.window, expert.where) for s in ("train", "valid"))
                experts[expert.name] = expert.name
        library = make_library(parts.store, skills, experts=experts)
        break_seal(self.out)
        link_tree(library, self.out / "library")
        return Library.read(library.path).decide(read_features(new), alarm)

    def _use(self) -> dict[str, float]:
        routing = self.summary["routing"].get(self.mixture)
        if routing is None:
            raise RequestError(
                "how much each expert is used is not known", where=self.mixture, do="give the recipe an evaluation of losses"
            )
        return dict(zip(routing["experts"], routing["utilization"], strict=True))

    def _unseat(self, raw: Figures, change: Mapping[str, str | None]) -> None:
        """Replace or drop slots; experts that no mixture seats any more and no other branches from leave the recipe."""
        mixture = self.spec(raw)
        mixture["slots"] = [new for s in mixture["slots"] if (new := change.get(s, s)) is not None]
        top_k = mixture["router"].get("top_k")
        if top_k is not None and top_k > len(set(mixture["slots"])):
            mixture["router"]["top_k"] = len(set(mixture["slots"]))
            say(f"  {self.mixture}: top_k is now {mixture['router']['top_k']}")
        seated = {s for m in raw["mixtures"] for s in m["slots"]} | {e.get("from") for e in raw["experts"]}
        raw["experts"] = [e for e in raw["experts"] if e["name"] not in change or e["name"] in seated]

    def _run(self, raw: Figures, change: Figures) -> Run:
        done = run(raw, store=self.store, out=self.out, settings=self.settings)
        before, after = self.losses(self.summary), self.losses(done.summary)
        self._note(change, done.summary)
        print(_table(self.mixture, before, after))
        self.summary, self.raw = dict(done.summary), _settings(self.out)
        return done

    def _note(self, change: Figures, summary: Figures) -> None:
        """Add to the forgetting table: the loss on each skill after each change."""
        path = self.out / "growth.json"
        stages = (
            json.loads(path.read_text()) if path.exists() else [{"change": "start", "losses": self.losses(self.summary)}]
        )
        stages.append({**change, "losses": self.losses(summary)})
        break_seal(self.out)
        replace_synced(path, (json.dumps(stages, indent=1) + "\n").encode(), self.out)
        write_seal(self.out)


def _free(name: str, taken: set[str]) -> str:
    """The name, or with a number that makes it free."""
    return next(n for n in (name, *(f"{name}-{i}" for i in range(2, 1000))) if n not in taken)


def _table(mixture: str, before: Losses, after: Losses) -> str:
    """Losses before and after, by corpus: of the mixture, and of each expert that was there before."""
    lines = [f"{'':24}{'corpus':16}{'before':>9}{'after':>9}{'change':>10}"]
    for model in dict.fromkeys([mixture, *before, *after]):
        for corpus in dict.fromkeys([*before.get(model, {}), *after.get(model, {})]):
            one, two = before.get(model, {}).get(corpus), after.get(model, {}).get(corpus)
            cells = [f"{x:9.4f}" if x is not None else f"{'-':>9}" for x in (one, two)]
            change = f"{two - one:+10.4f}" if one is not None and two is not None else f"{'':10}"
            lines.append(f"{model[:22]:24}{corpus[:14]:16}{cells[0]}{cells[1]}{change}")
    return "\n".join(lines)


def _settings(out: Path) -> Figures:
    """A run's recipe as a mapping, its paths as seen from anywhere."""
    settings: Figures = json.loads(read(out / "recipe.json").model_dump_json(by_alias=True))
    return settings
