"""Machines as they are: full disks, foreign and read-only stores, no home, other locales, odd paths, clocks that jump,
stores that are moved or have two names.
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.faults import harness as h
from tests.faults.row import Draw, Row, Trial
from tests.faults.rows.kills import _outputs, _write, summary
from tests.forked import Command, coterie

NOBODY = 65534
FORKED = ("run", "recipe.json", "--out", "out")


def prepare(folder: Path) -> None:
    home = folder / "undisturbed"
    home.mkdir()
    _write(home, _outputs(home))
    done = coterie(*FORKED, "--store", "store", cwd=home)
    assert done.returncode == 0, done.stderr
    (folder / "expected.json").write_text(json.dumps(summary(home)))
    size = sum(p.stat().st_size for p in [*home.glob("store/**/*"), *home.glob("out/**/*")] if p.is_file())
    (folder / "size").write_text(str(size))


def _start(prepared: Path, home: Path) -> Path:
    home.mkdir(exist_ok=True)
    shutil.copytree(prepared / "undisturbed/data", home / "data")
    shutil.copyfile(prepared / "undisturbed/recipe.json", home / "recipe.json")
    return home


def _clear(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What is wrong with how a command refused."""
    bad = [] if done.returncode in (1, 2) else [f"ended with {done.returncode}: {done.stderr[-300:]}"]
    bad += ["a traceback"] if "Traceback" in done.stderr else []
    return bad + [f"the message has no {part} {done.stderr[-300:]}" for part in ("where:", "do:") if part not in done.stderr]


def _same(prepared: Path, home: Path, done: subprocess.CompletedProcess[str], store: str = "store") -> list[str]:
    """What is wrong with a command that should have done its work."""
    if done.returncode != 0:
        return [f"ended with {done.returncode}: {done.stderr[-400:]}"]
    expected = json.loads((prepared / "expected.json").read_text())
    bad = [] if json.loads(json.dumps(summary(home))) == expected else ["other results"]
    return bad + h.broken(home / store)


def _run(home: Path, *more: str, store: str = "store", before: Callable[[], None] | None = None, **env: str) -> Any:
    command = Command(*FORKED, "--store", store, *more, cwd=home, env=env, before=before)
    try:
        out, err = command.communicate(120)
    finally:
        command.kill()
    return subprocess.CompletedProcess(command.args, command.wait(), out, err)


@contextmanager
def _disk(home: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes."""
    place = home / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={max(size, 65536)}", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def full_disk(prepared: Path, home: Path, draw: random.Random) -> tuple[str, list[str]]:
    share = draw.uniform(0.02, 1.2)
    size = int(int((prepared / "size").read_text()) * share)
    data = sum(path.stat().st_size for path in (prepared / "undisturbed/data").iterdir())
    with _disk(home, size + 2 * data) as place:  # the data themselves find room
        _start(prepared, place / "home")
        work = place / "home"
        done = _run(work)
        bad = [] if done.returncode == 0 else _clear(done)
        if done.returncode and "full" not in done.stderr:
            bad.append(f"no word of a full disk: {done.stderr[-300:]}")
        bad += h.broken(work / "store") if (work / "store").exists() else []
        bad += [f"left in temp: {p.name}" for p in (work / "store/temp").glob("*")]
        subprocess.run(["mount", "-o", "remount,size=1g", place], check=True)
        bad += _same(prepared, work, _run(work))
    return f"{share:.0%} of what it needs", bad


def read_only(prepared: Path, home: Path, draw: random.Random) -> tuple[str, list[str]]:
    cached = draw.random() < 0.5
    with _disk(home, 1 << 28) as place:
        work = _start(prepared, home / "home")
        if cached:
            assert _run(work, store=str(place / "store")).returncode == 0
            shutil.rmtree(work / "out")
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        bad = _clear(_run(work, store=str(place / "store")))
        subprocess.run(["mount", "-o", "remount,rw", place], check=True)
        bad += _same(prepared, work, _run(work, store=str(place / "store")), store=str(place / "store"))
    return f"everything {'cached' if cached else 'missing'}", bad


def _be(user: int) -> None:
    import encodings.utf_8_sig  # noqa: F401  # Python's own files may be closed to that user

    os.setgroups([])
    os.setgid(user)
    os.setuid(user)


def other_user(prepared: Path, home: Path, draw: random.Random) -> tuple[str, list[str]]:
    work = _start(prepared, home / "home")
    assert _run(work, "--set", "mixtures=[]", "--set", "evaluation=[]").returncode == 0
    for path in [home, work, *work.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o055)
    bad = _clear(_run(work, before=functools.partial(_be, NOBODY), HOME="/nonexistent"))
    return "a store of root's", bad + _same(prepared, work, _run(work))


def no_home(prepared: Path, home: Path, draw: random.Random) -> tuple[str, list[str]]:
    work = _start(prepared, home / "home")
    place = draw.choice(["", "/nonexistent/home", "/proc/home"])
    env = {"HOME": place, "XDG_CACHE_HOME": "", "COTERIE_STORE": ""}
    command = Command(*FORKED, cwd=work, env=env)
    command.wait(120)
    done = subprocess.CompletedProcess(command.args, command.wait(), command.stdout, command.stderr)
    bad = _clear(done) if done.returncode else []
    return f"HOME={place!r}", bad + _same(prepared, work, _run(work, **env))


def locale(prepared: Path, home: Path, draw: random.Random) -> tuple[str, list[str]]:
    work = _start(prepared, home / draw.choice(["home", "Größe ñ", "ışık"]))
    env = draw.choice(
        [{"LC_ALL": "C"}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0"}, {"LC_ALL": "tr_TR.UTF-8"}, {"PYTHONIOENCODING": "ascii"}]
    )
    done = subprocess.run(
        [sys.executable, "-m", "coterie", *FORKED, "--store", "store"],
        cwd=work,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        timeout=120,
    )
    text = subprocess.CompletedProcess(done.args, done.returncode, "", done.stderr.decode("utf-8", "replace"))
    what = f"{env} in {work.name!r}"
    if "PYTHONUTF8" in env and not work.name.isascii():  # the one of them in which Python's file names are not UTF-8
        return what, _clear(text) + ([] if "PYTHONUTF8=1" in text.stderr else ["no remedy"]) + _same(
            prepared, work, _run(work)
        )
    return what, _same(prepared, work, text)


ODD = [
    "two words",
    "it's",
    'a "quote"',
    "日本語",
    "a\nb",
    "x" * 200,
    "#hash",
    "100%",
    "[brackets]",
    "{braces}",
    "-rf",
    "*",
    "a\\b",
    "~",
    "$HOME",
    "e\u0301",
    ".hidden",
    " leading",
    "trailing ",
    "semi;colon",
    "a&b",
]


def odd_path(prepared: Path, home: Path, draw: random.Random) -> tuple[str, list[str]]:
    name, inner = draw.choice(ODD), draw.choice(ODD)
    work = _start(prepared, home / name)
    store = f"./{inner}"
    return f"{name!r}, store {inner!r}", _same(prepared, work, _run(work, store=store), store=store)


def _clock(jump: float, at: int) -> None:
    """From its call of that number on the clock is so many seconds off."""
    real, real_ns, calls = time.time, time.time_ns, 0

    def off() -> float:
        nonlocal calls
        calls += 1
        return jump if calls > at else 0.0

    time.time = lambda: real() + off()
    time.time_ns = lambda: int(real_ns() + off() * 1e9)


def clock(prepared: Path, home: Path, draw: random.Random) -> tuple[str, list[str]]:
    work = _start(prepared, home / "home")
    jump, at = draw.choice([-3.2e8, -86400.0, -3600.0, -1.0, 3600.0, 86400.0, 3.2e8]), draw.choice([0, 5, 50, 500])
    bad = _same(prepared, work, _run(work, before=functools.partial(_clock, jump, at)))
    return f"{jump:+g} s from call {at}", bad + _same(prepared, work, _run(work))


def two_names(prepared: Path, home: Path, draw: random.Random) -> tuple[str, list[str]]:
    work = _start(prepared, home / "home")
    (work / "link").symlink_to("store")
    (work / "store").mkdir()
    other = draw.choice(["link", "../home/store", str(work / "store")])
    one = Command(*FORKED, "--store", "store", cwd=work)
    two = Command("run", "recipe.json", "--out", "out2", "--store", other, cwd=work)
    codes = [one.wait(180), two.wait(180)]
    bad = [f"ended with {codes}: {one.stderr[-200:]} {two.stderr[-200:]}"] if codes != [0, 0] else []
    if not bad:
        first, second = (json.loads((work / out / "summary.json").read_text()) for out in ("out", "out2"))
        for digest, expert in first["experts"].items():
            if expert["trained"] + second["experts"][digest]["trained"] != 1:
                bad.append(f"{expert['name']} was not trained once")
        bad += _same(prepared, work, subprocess.CompletedProcess([], 0, "", ""))
    return other if other != str(work / "store") else "the absolute path", bad


def moved_store(prepared: Path, home: Path, draw: random.Random) -> tuple[str, list[str]]:
    work, after = _start(prepared, home / "home"), draw.uniform(0.2, 4)
    command = Command(*FORKED, "--store", "store", cwd=work)
    time.sleep(after)
    if not (work / "store").exists():
        command.kill()
        return "too early", []
    (work / "store").rename(work / "moved")
    code = command.wait(120)
    done = subprocess.CompletedProcess(command.args, code, command.stdout, command.stderr)
    bad = _clear(done) if code else []
    bad += h.broken(work / "moved")
    return f"after {after:.1f} s", bad + _same(prepared, work, _run(work, store="moved"), store="moved")


CASES = {
    "full disk": full_disk,
    "read-only store": read_only,
    "other user": other_user,
    "no home": no_home,
    "other locale": locale,
    "odd path": odd_path,
    "clock that jumps": clock,
    "two names of one store": two_names,
    "store moved while it is used": moved_store,
}


def trial(prepared: Path, home: Path, draw: Draw) -> Trial:
    name = draw.choice(list(CASES))
    what, bad = CASES[name](prepared, home, draw)
    return Trial(name, what, landed=what != "too early", violations=tuple(bad))


ROWS = [
    Row(
        "environment",
        "full disks of every size, read-only and foreign stores, no home, locales, odd paths, jumping clocks, moved stores",
        "it works, or says what, where and the remedy; then the same command ends with the undisturbed digests",
        (1, 18, 200),
        trial,
        prepare,
    )
]
