"""Damage to a file of a store or of results, then a command that reads it: never unseen, never a library's own error.

Ways in and what they read: `store verify` every file of the store; `run` what its artifacts are found by (whatever it reads
must come out as it was, or be made again with the same digest); `load`, `generate`, `evaluate` and `export` the model's
folder with all below; `report` and `grow` the run's own files. The report itself is made from these and left out.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.faults import harness as h
from tests.faults import results
from tests.faults.row import Draw, Row, Trial

import coterie
from coterie.errors import RequestError
from coterie.store import Store, verify

LIMIT = 30
"""Seconds after which a command hangs."""


def prepare(folder: Path) -> None:
    results.finished(folder)
    coterie.load(folder / "out/mixtures/out")  # everything is imported by now
    _command("report", str(folder / "out"))


# how a file is damaged ----------------------------------------------------------------------------------------------------


def bit(path: Path, draw: random.Random) -> None:
    results.flip(path, draw)


def cut(path: Path, draw: random.Random) -> None:
    path.chmod(0o644)
    os.truncate(path, draw.randrange(path.stat().st_size))


def zeros(path: Path, draw: random.Random) -> None:
    path.chmod(0o644)
    path.write_bytes(bytes(path.stat().st_size))


def swap(path: Path, draw: random.Random) -> None:
    others = [p for p in path.parent.iterdir() if p.is_file() and p != path and p.read_bytes() != path.read_bytes()]
    if not others:
        return cut(path, draw)
    other, aside = draw.choice(others), path.with_name("aside")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)
    return None


def lose(path: Path, draw: random.Random) -> None:
    path.unlink()


def link(path: Path, draw: random.Random) -> None:
    path.symlink_to(path.rename(path.parents[1] / f"moved-{path.name}"))


def pipe(path: Path, draw: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def add(path: Path, draw: random.Random) -> None:
    (path.parent / draw.choice(["chat_template.jinja", "pytorch_model.bin", "custom.py", "notes.txt"])).write_text("x")


HARMS = (bit, bit, bit, cut, zeros, swap, lose, link, pipe, add)


# ways in ------------------------------------------------------------------------------------------------------------------


class Late(BaseException):
    """A command did not end. No library makes something else of it, as of a `TimeoutError`."""


class Raw(Exception):  # noqa: N818
    """A command ended as none should."""


def _command(*words: str) -> str:
    """The command line in this process: what it printed; RequestError if it refused in our words."""
    from coterie.cli import main

    out, err, before = (
        io.StringIO(),
        io.StringIO(),
        (sys.argv, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)),
    )
    sys.argv = ["coterie", "--quiet", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before[0]
        signal.signal(signal.SIGINT, before[1])
        signal.signal(signal.SIGTERM, before[2])
    told = err.getvalue()
    if code == 2 and "Traceback" not in told:
        parts = dict.fromkeys(("where", "expected", "found", "do"), None)
        for line in told.splitlines():
            key, _, rest = line.strip().partition(":")
            parts[key] = rest.strip() if key in parts else parts.get(key)
        raise RequestError(told.splitlines()[0], **{k: parts[k] for k in ("where", "expected", "found", "do")})
    if code:
        raise Raw(f"exit code {code}: {told[-400:]}")
    return out.getvalue() + told


def _of_model(home: Path, file: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Ways to open the model that a file of results belongs to."""
    inside = file.relative_to(home / "out").parts
    folder = home / "out" / ("base" if inside[0] == "base" else Path(*inside[:2]))
    yield "load", lambda: coterie.load(folder)
    yield "generate", lambda: _command("generate", str(folder), "ripe", "--max-new-tokens", "1")
    yield "evaluate", lambda: coterie.evaluate({"m": folder}, ["ripe plum and pear"] * 2, bootstrap=5)
    if inside[:2] == ("mixtures", "in"):
        yield "export", lambda: _command("export", str(folder), "--to", str(home / "new"))


def _of_run(home: Path, file: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    if file.name != "recipe.json":  # which a report does not read
        yield "report", lambda: _command("report", str(home / "out"), "--format", "md")
    yield "grow", lambda: _command("grow", str(home / "out"), "--prune", "--store", str(home / "store"))


def trial(prepared: Path, home: Path, draw: Draw) -> Trial:
    in_store = draw.random() < 0.5
    shutil.copytree(prepared / ("store" if in_store else "out"), home / ("store" if in_store else "out"))
    if in_store:
        return _in_store(prepared, home, draw)
    root = home / "out"
    folders: dict[Path, list[Path]] = {}
    for path in results.files(root):
        folders.setdefault(path.parent, []).append(path)
    file = draw.choice(folders[draw.choice(sorted(folders))])  # folders count alike, however many files they have
    own = file.parent == root
    ways = list(_of_run(home, file) if own else _of_model(home, file))
    way, opens = draw.choice(ways)
    if way == "grow":
        shutil.copytree(prepared / "store", home / "store")
    harms = _possible(file, [harm for harm in HARMS if not (own and harm is add)])  # its owner may add to a run's folder
    return _judged(file, root, draw.choice(harms), draw, way, opens)


def _judged(
    file: Path, root: Path, harm: Callable[..., None], draw: random.Random, way: str, opens: Callable[[], object]
) -> Trial:
    kind, what = f"{harm.__name__} through {way}", f"{harm.__name__} of {file.relative_to(root)}"
    harm(file, draw)
    try:
        with _limit():
            opens()
    except RequestError as error:
        missing = [part for part in ("where", "expected", "found", "do") if not getattr(error, part)]
        bad = [f"the message has no {', '.join(missing)}: {error}"] if missing else []
        return Trial(kind, what, violations=tuple(bad))
    except (Exception, Late) as error:
        return Trial(kind, what, violations=(f"raw: {type(error).__name__}: {str(error)[:400]}",))
    return Trial(kind, what, violations=("unseen",))


def _possible(file: Path, harms: Sequence[Callable[..., None]]) -> list[Callable[..., None]]:
    """An empty file has no bit to flip."""
    return [harm for harm in harms if file.stat().st_size or harm not in (bit, cut, zeros)]


def _in_store(prepared: Path, home: Path, draw: random.Random) -> Trial:
    root = home / "store"
    kinds: dict[str, list[Path]] = {}
    for path in sorted(root.glob("*/**/*")):
        kind = path.relative_to(root).parts[0]
        if path.is_file() and (len(path.relative_to(root).parts) > 2 or kind == "actions"):
            kinds.setdefault(kind, []).append(path)
    file = draw.choice(kinds[draw.choice(sorted(k for k in kinds if k not in ("users", "locks", "temp", "work")))])
    harm = draw.choice(
        _possible(file, [one for one in HARMS if not (one is add and file.relative_to(root).parts[0] == "actions")])
    )
    if draw.random() < 0.5:
        return _verified(root, file, harm, draw)
    kind, what = f"{harm.__name__} through run", f"{harm.__name__} of {file.relative_to(root)}"
    harm(file, draw)
    try:
        with _limit(4 * LIMIT):
            _command("run", str(prepared / "out/recipe.json"), "--store", str(root), "--out", str(home / "out"))
    except (Exception, Late) as error:
        return Trial(kind, what, violations=(f"{type(error).__name__}: {str(error)[:400]}",))
    expected = json.loads((prepared / "out" / "summary.json").read_text())
    found = json.loads((home / "out" / "summary.json").read_text())
    same = [list(found["experts"]) == list(expected["experts"])]
    same += [found[key] == expected[key] for key in ("mixtures", "evaluation", "routing")]
    bad = [] if all(same) else ["other results than undisturbed"]
    for path in (home / "out").glob("mixtures/*"):
        coterie.load(path)
    bad += [] if _equal_files(prepared / "out", home / "out") else ["other bytes in the results"]
    return Trial(kind, what, violations=tuple(bad))


def _equal_files(one: Path, two: Path) -> bool:
    def hashes(root: Path) -> dict[str, str]:
        own = ("summary.json", "plan.json", "metrics.jsonl", "results.seal", "recipe.json", "report.html")
        found = [p for p in root.rglob("*") if p.is_file() and p.name not in (*own, "manifest.json")]
        return {p.relative_to(root).as_posix(): h.hashlib.sha256(p.read_bytes()).hexdigest() for p in found}

    return hashes(one) == hashes(two)


def _verified(root: Path, file: Path, harm: Callable[..., None], draw: random.Random) -> Trial:
    kind, what = (f"{harm.__name__} through verify", f"{harm.__name__} of {file.relative_to(root)}")
    harm(file, draw)
    try:
        with _limit():
            found = verify(Store(root)).damaged
    except (Exception, Late) as error:
        return Trial(kind, what, violations=(f"raw: {type(error).__name__}: {str(error)[:400]}",))
    if harm is lose and file.is_file() and file.parts[-3] == "actions":
        return Trial(kind, what)  # a record is written again from what is there
    named = [place for place, _ in found if Path(place).name in str(file) or file.stem in place]
    return Trial(kind, what, violations=() if named else (f"unseen; named were {found}",))


@contextlib.contextmanager
def _limit(seconds: int = LIMIT) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise Late(f"no end within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


ROWS = [
    Row(
        "damage",
        "one bit, zeros, a cut, two files swapped, one lost, one added, a link or a pipe in its place",
        "seen before use, named with what was expected, found and to do; `run` ends with the same bytes",
        (8, 300, 10_000),
        trial,
        prepare,
    )
]
