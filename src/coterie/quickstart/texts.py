"""Text that every machine has: the standard library's source, the language reference in `pydoc_data`, and a small
chronicle of dated facts made here. No download, and the same bytes for the same Python version."""

from __future__ import annotations

import json
import random
import re
import sysconfig
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import yaml

from coterie.errors import RequestError
from coterie.spec.json_types import Settings

CODE_BYTES = 1_500_000
"""Source to read; the quickstart trains for seconds, so more would not be seen."""
RECIPE, TIME = (Path(__file__).with_name(name) for name in ("quickstart.yaml", "time.yaml"))


def recipe(folder: Path) -> Settings:
    """The quickstart's recipe, its texts written to ``folder``; beside them a recipe for windows of time, to try next."""
    paths = write(folder)
    (folder / TIME.name).write_text(TIME.read_text())
    raw = yaml.safe_load(RECIPE.read_text())
    for name, corpus in raw["corpora"].items():
        corpus["path"] = str(paths[name].absolute())
    return raw


def write(folder: Path) -> dict[str, Path]:
    """Write `code.jsonl`, `reference.jsonl`, `chronicle.jsonl` and `offices.jsonl` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = {"code": standard_library(), "reference": language_reference(), "chronicle": chronicle(), "offices": offices()}
    paths = {}
    for name, rows in sources.items():
        paths[name] = folder / f"{name}.jsonl"
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if not text:
            raise RequestError(f"this Python installation lacks the text for {name!r}", do="use a full CPython build")
        if not paths[name].exists() or paths[name].read_text(encoding="utf-8") != text:
            paths[name].write_text(text, encoding="utf-8")
    return paths


def standard_library() -> Iterator[dict]:
    """Modules of the standard library, top level and packages, tests left out, until CODE_BYTES are read."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(
        p
        for p in [*root.glob("*.py"), *root.glob("[a-z]*/*.py")]
        if not {"site-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data", "turtledemo"} & set(p.parts)
    )
    read = 0
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if 1_000 <= len(text) <= 60_000:
            read += len(text)
            yield {"id": path.relative_to(root).as_posix(), "text": text}
        if read > CODE_BYTES:
            return


def language_reference() -> Iterator[dict]:
    """The pages behind `help("topic")`: the language reference in plain text."""
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        yield {"id": name, "text": text.strip()}


_FIRST = (
    "Ada Bela Cyrus Dorit Emil Fenna Goran Hanne Ivo Jonna Karel Lore Milan Noor Otis Petra Quint Rosa Sven Tilde"
).split()
_LAST = ("Abram Brandt Corvin Dahl Eklund Farkas Grieve Holt Iversen Jansen Koller Lind Moreau Nyberg Orsini Palmer").split()
_TOWN = ("Ashford Birkhaven Corwen Dunmere Eastbrook Fallow Glenrock Harwick Inverlea Juniper Kestrel Langmoor").split()
_THING = ["bridge", "library", "market hall", "observatory", "railway station", "theatre", "water mill", "school"]
_OFFICE = ["mayor", "harbour master", "head of the library", "chief engineer", "judge", "editor of the Gazette"]


def chronicle(entries: int = 4_000, seed: int = 2013) -> Iterator[dict]:
    """Dated entries of invented towns, 2013 to 2024: offices change hands, so what is true depends on the date."""
    draw = random.Random(seed)
    holder: dict[tuple[str, str], str] = {}
    span = (date(2025, 1, 1) - date(2013, 1, 1)).days
    for i in range(entries):
        day = date(2013, 1, 1) + timedelta(days=i * span // entries)
        town, office = draw.choice(_TOWN), draw.choice(_OFFICE)
        person = f"{draw.choice(_FIRST)} {draw.choice(_LAST)}"
        before = holder.get((town, office))
        written = f"{day.day} {day:%B} {day.year}"
        if draw.random() < 0.4 and before:
            text = f"On {written} {before} was still {office} of {town}."
        elif draw.random() < 0.5:
            holder[town, office] = person
            text = f"On {written} {person} became {office} of {town}"
            text += f", after {before}." if before else ", the first to hold that office."
        else:
            thing, count = draw.choice(_THING), draw.randrange(2, 90)
            text = f"On {written} the {thing} of {town} was opened by {person}; {count} people came."
        known = [f"{o} was {p}" for (t, o), p in sorted(holder.items()) if t == town]
        if known:
            text += f" In those days the {draw.choice(known)}."
        yield {"id": f"entry-{i:05d}", "date": day.isoformat(), "town": town, "text": text}


def offices(questions: int = 150, seed: int = 2013) -> Iterator[dict]:
    """Who held an office at a date, asked of the chronicle: who did, who had before, who would later."""
    draw = random.Random(seed)
    held: dict[tuple[str, str], list[tuple[date, str]]] = {}
    for entry in chronicle():
        found = re.match(r"On .*? \d{4} (\w+ \w+) became (.*?) of (\w+)[,.]", entry["text"])
        if found:
            held.setdefault((found[3], found[2]), []).append((date.fromisoformat(entry["date"]), found[1]))
    changes = [(place, i) for place, holders in sorted(held.items()) for i in range(1, len(holders) - 1)]
    draw.shuffle(changes)
    for (town, office), i in changes:
        (_, before), (since, now), (until, after) = held[town, office][i - 1 : i + 2]
        day = since + (until - since) / 2
        if day.year < 2017 or len({before, now, after}) < 3:  # before 2017 no expert of the recipe may answer
            continue
        options = [(now, "correct"), (before, "past"), (after, "future")]
        draw.shuffle(options)
        yield {
            "question": f"On {day.day} {day:%B} {day.year}",
            "options": [f"{name} was still {office} of {town}." for name, _ in options],
            "option_kinds": [kind for _, kind in options],
            "label": [kind for _, kind in options].index("correct"),
            "date": day.isoformat(),
        }
        questions -= 1
        if not questions:
            return
