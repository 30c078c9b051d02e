"""Where results live: address, publish, lease, verify, prune. No torch."""

from coterie.store.address import Action
from coterie.store.artifact import Artifact, Planned, sha256
from coterie.store.inventory import Row, Verified, ls, verify
from coterie.store.link import link_tree
from coterie.store.step import Step
from coterie.store.store import DryStore, Store
from coterie.store.sweep import Pruned, prune

__all__ = [
    "Action",
    "Artifact",
    "DryStore",
    "Planned",
    "Pruned",
    "Row",
    "Step",
    "Store",
    "Verified",
    "link_tree",
    "ls",
    "prune",
    "sha256",
    "verify",
]
