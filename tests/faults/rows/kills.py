"""Commands that are killed, told to end, or stopped and continued: at random times, and at every event of the disk.

Each trial takes a command that an undisturbed process has carried out before, sends one signal, looks at what is left with
plain eyes, and gives the same command again. Half of the trials begin where much is in the store already, so that signals
fall on every part of the work.
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from tests.faults import harness as h
from tests.faults.row import Draw, Row, Trial
from tests.forked import Command, coterie
from tests.run.small import recipe, write_corpus

LIMIT = 30.0
"""Seconds after which something hangs, beside the time that it takes undisturbed."""
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP)
RIDGE = {"kind": "ridge", "scope": "model"}


@dataclass(frozen=True)
class Work:
    """A command in a folder of its own."""

    name: str
    words: tuple[str, ...]
    start: Callable[[Path], None]
    """Fill a folder with what the command needs."""
    result: Callable[[Path], Any]
    """What must come out the same whatever was done to it; also the judge that it opens."""
    weight: float
    events: bool = True
    """Whether it is one process, whose events of the disk can be counted."""


def _recipe(home: Path, **changes: Any) -> dict[str, Any]:
    raw = recipe(home / "data", single=None, **changes)
    raw["base"]["pretrain"]["tokens"] = 600
    raw["train"] |= {"tokens": 800, "save_every": 200}
    raw["evaluation"][0] |= {"bootstrap": 10, "tokens": 300}
    for name, corpus in raw["corpora"].items():
        corpus["path"] = f"data/{name}.jsonl"  # so that the folder can be copied
    return raw


def _write(home: Path, raw: dict[str, Any]) -> None:
    (home / "recipe.json").write_text(json.dumps(raw))


def _outputs(home: Path) -> dict[str, Any]:
    slots = ["fruit", "tools"]
    mixtures = [
        {"name": "even", "at": "outputs", "slots": slots},
        {"name": "learned", "at": "outputs", "slots": slots, "router": {"kind": "linear", "epochs": 1}},
    ]
    return _recipe(home, mixtures=mixtures)


def _layers(home: Path) -> dict[str, Any]:
    raw = _recipe(home, mixtures=[{"name": "in", "at": "layers", "slots": ["fruit", "tools"], "router": "ridge"}])
    raw["experts"] = [{"name": n, "corpus": n, "kind": "ffn"} for n in ("fruit", "tools")]
    return raw


def _adapters(home: Path) -> dict[str, Any]:
    raw = _recipe(home, mixtures=[{"name": "on", "at": "adapters", "slots": ["fruit", "tools"], "router": RIDGE}])
    raw["experts"] = [{"name": n, "corpus": n, "kind": "lora", "lora": {"r": 2}} for n in ("fruit", "tools")]
    return raw


def _begin(kind: Callable[[Path], dict[str, Any]], home: Path) -> None:
    _write(home, kind(home))


def _run(home: Path, *more: str) -> None:
    done = coterie("run", "recipe.json", "--store", "store", "--out", "out", *more, cwd=home)
    assert done.returncode == 0, done.stderr


def _finished(kind: Callable[[Path], dict[str, Any]], home: Path) -> None:
    _begin(kind, home)
    _run(home)


def _unused(home: Path) -> None:
    """A store half of which nothing rests on any more."""
    _finished(_outputs, home)
    raw = _outputs(home)
    raw["experts"][0]["seed"] = 5
    _write(home, raw)
    done = coterie("run", "recipe.json", "--store", "store", "--out", "other", cwd=home)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(home / "other")


def _selects(home: Path) -> None:
    raw = _outputs(home)
    both = {**raw["corpora"]["fruit"], "path": [c["path"] for c in raw["corpora"].values()]}
    raw["corpora"] = {"both": both | {"select": {"budget": {"docs": 60}, "axes": {"cluster": {"k": 2, "mix": 0.5}}}}}
    raw |= {"experts": [], "mixtures": [], "evaluation": []}
    raw["base"]["pretrain"]["corpora"] = ["both"]
    _write(home, raw)


def summary(home: Path, out: str = "out") -> Any:
    """The digests of a run, after a look at whether all of it opens."""
    import coterie

    found = json.loads((home / out / "summary.json").read_text())
    for name in found["mixtures"]:
        coterie.load(home / out / "mixtures" / name)
    return [list(found["experts"]), found["mixtures"], found["evaluation"]]


def files(folder: str, home: Path) -> Any:
    """A file, or every file of a folder, by its hash."""
    found = sorted(p for p in [home / folder, *(home / folder).rglob("*")] if p.is_file())
    return [(p.relative_to(home).as_posix(), h.hashlib.sha256(p.read_bytes()).hexdigest()) for p in found]


def objects(home: Path) -> Any:
    return [sorted(p.name for p in h.object_directories(home / "store")), summary(home)]


def _grows(home: Path) -> None:
    _finished(_adapters, home)
    write_corpus(home / "data/sea.jsonl", "wave salt tide gull rope sail net shore".split(), 60, 7)


def _ranks(home: Path) -> dict[str, Any]:
    raw = _outputs(home)
    raw["experts"][0]["train"] = {"parallel": "ddp", "processes": 2}
    return raw


RUN = ("run", "recipe.json", "--store", "store", "--out", "out")
SEA = ("--set", "corpora.sea.text=text", "--set", "corpora.sea.split={valid: 0.2, test: 0.2}")
KINDS = {"outputs": _outputs, "layers": _layers, "adapters": _adapters}
WORKS = [
    *(Work(f"run at {at}", RUN, functools.partial(_begin, kind), summary, 5) for at, kind in KINDS.items()),
    Work("grow", ("grow", "out", "--store", "store", "--corpus", "sea=data/sea.jsonl", *SEA), _grows, summary, 3),
    Work(
        "select pick",
        ("select", "pick", "recipe.json", "--store", "store", "--out", "chosen"),
        _selects,
        functools.partial(files, "chosen/selected.jsonl"),
        3,
    ),
    Work(
        "export",
        ("export", "out/mixtures/in", "--to", "new"),
        functools.partial(_finished, _layers),
        functools.partial(files, "new"),
        4,
    ),
    Work("store prune", ("store", "prune", "--store", "store"), _unused, objects, 4),
    Work("run --jobs 2", (*RUN, "--jobs", "2"), functools.partial(_begin, _outputs), summary, 0.2, events=False),
    Work("run under ddp", RUN, functools.partial(_begin, _ranks), summary, 0.2, events=False),
]


def signal_at(number: int, which: int) -> None:
    """Send a signal to this process at its event of that number; called in the process before the command."""
    h.watch(h.nth(number, lambda event, path: os.kill(os.getpid(), which)))


def count_into(file: str) -> None:
    """Leave a byte in a file for each event."""
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    h.watch(lambda event, path: os.write(handle, b"."))


@functools.cache
def undisturbed(work: Work, prepared: Path) -> tuple[Path, Path | None, Any, float, int]:
    """Where it starts, a start at which half is done, what comes out, how long it takes, and how many events it has."""
    assert coterie("--version", cwd=prepared).returncode == 0  # by now the fork server is up
    start, done = prepared / work.name / "start", prepared / work.name / "done"
    start.mkdir(parents=True)
    work.start(start)
    shutil.copytree(start, done)
    before = time.monotonic()
    command = Command(*work.words, cwd=done, before=functools.partial(count_into, str(done.parent / "events")))
    assert command.wait(240) == 0, command.stderr
    took = time.monotonic() - before
    half = None
    if work.words[0] == "run":
        half = shutil.copytree(start, prepared / work.name / "half")
        ended = coterie("train", "recipe.json", "--store", "store", "--out", "out", "--expert", "fruit", cwd=half)
        assert ended.returncode == 0, ended.stderr
    return start, half, work.result(done), took, (done.parent / "events").stat().st_size


def trial(prepared: Path, home: Path, draw: Draw, works: Sequence[Work] = WORKS) -> Trial:
    work = draw.choices(works, [w.weight for w in works])[0]
    start, half, expected, took, events = undisturbed(work, prepared)
    from_half = half is not None and draw.random() < 0.5
    shutil.copytree(half if half is not None and from_half else start, home, dirs_exist_ok=True)
    which = draw.choice(SIGNALS)
    at_event = work.events and draw.random() < 0.5
    number, seconds = draw.randrange(1, events + 1), draw.uniform(0.05, took)
    hook = functools.partial(signal_at, number, which) if at_event else None
    command = Command(*work.words, cwd=home, before=hook)
    when = f"event {number} of {events}" if at_event else f"{seconds:.2f} s of {took:.2f}"
    whom = "a child" if not work.events and draw.random() < 0.5 else "it"
    what = f"{work.name}, {when}" + (", half done before" if from_half else "") + (", a child of it" if whom != "it" else "")
    if not at_event:
        landed = _send(command, which, seconds, whom)
    else:
        landed = _ended(command, took) if which != signal.SIGSTOP else _stopped(command, took)
        if which == signal.SIGSTOP and landed:
            time.sleep(draw.uniform(0, 0.3))
            os.kill(command.pid, signal.SIGCONT)
    violations: list[str] = []
    try:
        code = command.wait(took * 6 + LIMIT)
    except subprocess.TimeoutExpired:
        violations.append(f"hung after the signal: {command.stderr[-300:]}")
        os.killpg(command.pid, signal.SIGKILL)
        code = command.wait()
    name = signal.Signals(which).name
    landed = landed and (code != 0 or which == signal.SIGSTOP or whom != "it")
    if not landed:
        return Trial(f"{name}, {work.name}", what, landed=False, violations=tuple(violations))
    violations += _after(command, code, which, whom, home)
    if which == signal.SIGSTOP and code != 0 and whom == "it":
        violations.append(f"stopped and continued, it ended with {code}: {command.stderr[-300:]}")
    unfinished = [
        p
        for p in (home / "store" / "work").glob("*/checkpoint-*")
        if "~" not in p.name and not list((home / "store" / "actions").glob(f"*/{p.parent.name}.json"))
    ]
    again = coterie(*work.words, cwd=home, timeout=took * 6 + LIMIT)
    if work.name == "export" and again.returncode == 2 and (home / "new").exists():
        again.returncode = 0  # it had been finished, and an export is not overwritten
    if again.returncode != 0:
        violations.append(f"the same command ended with {again.returncode}: {again.stderr[-400:]}")
    elif (found := work.result(home)) != expected:
        violations.append(f"other results: {found} instead of {expected}"[:600])
    if unfinished and work.events and "goes on from checkpoint" not in again.stderr:
        violations.append(f"there was {unfinished[-1].name}, and it was not gone on from: {again.stderr[-300:]}")
    store = home / "store"
    violations += h.broken(store) if store.is_dir() else []
    violations += [f"left in work/: {p.name}" for p in sorted((store / "work").glob("*"))]
    if store.is_dir():  # what a killed process was writing goes when room is made
        assert coterie("store", "prune", "--store", "store", cwd=home).returncode == 0
        violations += [f"left after a prune: {p.name}" for p in sorted((store / "temp").glob("*"))]
    violations += ["something was set aside"] if (store / "quarantine").exists() else []
    return Trial(f"{name}, {work.name}", what, violations=tuple(violations))


def _after(command: Command, code: int, which: int, whom: str, home: Path) -> list[str]:
    """What is wrong right after the signal."""
    found = h.broken(home / "store") if (home / "store").is_dir() else []
    if "Traceback" in command.stderr:
        found.append(f"a traceback: {command.stderr[-600:]}")
    told = which in (signal.SIGTERM, signal.SIGINT) and whom == "it"
    silent = code in (130, -which) and not command.stderr  # before a verb began there is nothing to say
    if told and not silent and not (code == 130 and "stopped" in command.stderr):
        found.append(f"ended with {code}: {command.stderr[-300:]}")
    limit = time.monotonic() + 20
    while left := _session(command.pid):
        if time.monotonic() > limit:
            found.append(f"processes left behind: {left}")
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            break
        time.sleep(0.05)
    return found


def _session(pid: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def _ended(command: Command, took: float) -> bool:
    """Wait until it has ended; whether it did in time."""
    try:
        command.wait(took * 6 + LIMIT)
    except subprocess.TimeoutExpired:
        return True  # judged by the one who waits next
    return True


def _stopped(command: Command, took: float) -> bool:
    """Wait until it has stopped itself; False if it ended without."""
    limit = time.monotonic() + took * 6 + LIMIT
    while time.monotonic() < limit and command.poll() is None:
        if psutil.Process(command.pid).status() == psutil.STATUS_STOPPED:
            return True
        time.sleep(0.01)
    return False


def _send(command: Command, which: int, seconds: float, whom: str) -> bool:
    """Send it after some seconds; whether there was somebody to get it."""
    time.sleep(seconds)
    try:
        target = psutil.Process(command.pid)
        if whom != "it":
            target = random.choice(target.children(recursive=True) or [target])
        if command.poll() is not None or not command.begun:
            return False
        target.send_signal(which)
        if which == signal.SIGSTOP:
            time.sleep(0.2)
            target.send_signal(signal.SIGCONT)
    except psutil.NoSuchProcess:
        return False
    return True


ROWS = [
    Row(
        "kills",
        "SIGKILL, SIGTERM, SIGINT, STOP and CONT at random times and at every event of the disk",
        "what is visible is whole; the same command goes on to the digests of an undisturbed one; nothing is left over",
        (1, 40, 1000),
        trial,
    )
]
