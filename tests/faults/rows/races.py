"""Eight processes that want the same forty things of one store, with kills and prune beside them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path

from tests.faults import harness as h
from tests.faults.row import Draw, Row, Trial

from coterie.errors import CoterieError
from coterie.store import Store, prune

PROCESSES, KEYS = 8, 40
LIMIT = 60.0


def _get_all(root: Path, number: int) -> None:
    """Ask for everything in an order of its own; what it got, by key."""
    got, store = {}, Store(root)
    for key in random.Random(os.getpid()).sample(range(KEYS), KEYS):
        artifact = h.make(root, key, slow=0.01, store=store)
        if (artifact.path / "inner" / "b.txt").read_text() != "b" * (key + 1):  # in use, so nobody may prune it
            raise AssertionError(f"thing {key} is not what it should be")
        got[str(key)] = artifact.digest
    (root.parent / f"got-{number}").write_text(json.dumps(got))


def _prune_again_and_again(root: Path) -> None:
    while True:
        with contextlib.suppress(CoterieError):  # it refuses while the store is in use, and that is right
            prune(Store(root))
        time.sleep(0.02)


def trial(prepared: Path, home: Path, draw: Draw) -> Trial:
    root = home / "store"
    kills = draw.randrange(0, 12)
    with_prune = draw.random() < 0.5
    hold = Store(root)  # somebody uses the store from the first to the last, so all of it is in use
    h.make(root, 0, store=hold)
    children = {n: h.start(lambda n=n: _get_all(root, n)) for n in range(PROCESSES)}
    pruner = h.start(lambda: _prune_again_and_again(root)) if with_prune else None
    killed, bad, limit = 0, [], time.monotonic() + LIMIT
    for _ in range(kills):
        time.sleep(draw.uniform(0.02, 0.15))
        number = draw.choice(list(children))
        with contextlib.suppress(ProcessLookupError):
            os.kill(children[number], signal.SIGKILL)
        killed += h.wait(children[number]) == -signal.SIGKILL
        children[number] = h.start(lambda n=number: _get_all(root, n))
    while children and time.monotonic() < limit:
        for number, child in list(children.items()):
            if os.waitpid(child, os.WNOHANG) != (0, 0):
                del children[number]
        time.sleep(0.01)
    for child in children.values():
        os.kill(child, signal.SIGKILL)
        h.wait(child)
    if children:
        bad.append(f"{len(children)} processes waited for more than {LIMIT:g} s")
    if pruner is not None:
        os.kill(pruner, signal.SIGKILL)
        h.wait(pruner)
    hold.leave()
    got = [json.loads(p.read_text()) for p in sorted(root.parent.glob("got-*"))]
    if len(got) != PROCESSES or any(one != got[0] for one in got):
        bad.append(f"{len(got)} of {PROCESSES} got everything; all the same: {all(one == got[0] for one in got)}")
    built = [h.builds(root, key) for key in range(KEYS)]
    if min(built) < 1 or sum(built) > KEYS + killed:
        bad.append(f"{sum(built)} builds of {KEYS} things with {killed} kills")
    if len(h.object_directories(root)) != KEYS:
        bad.append(f"{len(h.object_directories(root))} things in the store")
    bad += h.broken(root)
    bad += ["something was set aside"] if (root / "quarantine").exists() else []
    kind = f"{'with' if killed else 'without'} kills, {'with' if with_prune else 'without'} prune"
    return Trial(kind, f"{killed} kills, {sum(built)} builds", violations=tuple(bad))


ROWS = [
    Row(
        "races",
        f"{PROCESSES} processes ask for {KEYS} things at once, with kills and prune beside them",
        "each is built once, and once more for each kill at most; nothing in use is pruned; nobody waits for ever",
        (1, 4, 40),
        trial,
    )
]
