"""A disk that loses power: what was fsynced is there, of the rest anything may be.

kill -9 keeps the page cache, so it cannot show that an fsync is missing. Here every change to the disk is watched; at each
moment the durable image is known (each file as it was when it was last fsynced, each directory with the names it had then)
beside the current one, and a crash state takes one or the other for each file and directory, by chance. Files that were
never fsynced may also be empty or zeros, as real file systems leave them.
"""

from __future__ import annotations

import contextlib
import os
import random
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import harness as h

Tree = dict[int, bytes | dict[str, int]]
"""Inode -> a file's bytes, or a directory's names and their inodes."""


def _look(path: Path, tree: Tree, same: dict[bytes, bytes]) -> int:
    """``same`` holds each content once, since every moment has nearly all of the last."""
    info = path.lstat()
    if stat.S_ISDIR(info.st_mode):
        names: dict[str, int] = {}
        for child in sorted(path.iterdir()):
            with contextlib.suppress(FileNotFoundError):  # another thread took it away meanwhile
                names[child.name] = _look(child, tree, same)
        tree[info.st_ino] = names
    else:
        data = path.read_bytes()
        tree[info.st_ino] = same.setdefault(data, data)
    return info.st_ino


@dataclass
class Disk:
    """Records the images of one directory while a function runs."""

    root: Path
    durable: Tree = field(default_factory=dict)
    moments: list[tuple[Tree, Tree]] = field(default_factory=list)
    """(durable, current) at every event."""
    done: bool = False
    same: dict[bytes, bytes] = field(default_factory=dict)

    def watch(self, function: Callable[[], object]) -> None:
        """Only in a child: the watching never ends."""
        self.top = _look(self.root, self.durable, self.same)
        h.watch(self._step)
        function()
        self._moment()
        self.done = True

    def _moment(self) -> Tree:
        current: Tree = {}
        _look(self.root, current, self.same)
        self.moments.append((dict(self.durable), current))
        return current

    def _step(self, event: str, path: str) -> None:
        if self.done:
            return
        current = self._moment()
        if event == "fsync":
            inode = os.stat(path).st_ino
            if inode in current:
                self.durable[inode] = current[inode]

    def crash(self, moment: int, generator: random.Random, target: Path, *, worst: bool = False) -> None:
        """Write one possible state of the disk after losing power at a moment; the worst: nothing but what was fsynced."""
        durable, current = self.moments[moment]

        def write(inode: int, path: Path) -> None:
            choices = [tree[inode] for tree in (durable, current) if inode in tree]
            is_file = isinstance(choices[0], bytes)
            if inode not in durable:
                choices += [b"", bytes(len(choices[0]))] if is_file else [{}]
            chosen = generator.choice(choices)
            if worst:
                chosen = durable.get(inode, b"" if is_file else {})
            if isinstance(chosen, bytes):
                path.write_bytes(chosen)
                return
            path.mkdir()
            for name, child in chosen.items():
                if child in durable or child in current:
                    write(child, path / name)

        write(self.top, target)
