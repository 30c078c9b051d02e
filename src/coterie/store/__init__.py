"""Where results live: address, publish, lease, verify, prune. No torch."""

from coterie.store.artifact import Action, Artifact, Planned, Step, sha256
from coterie.store.inventory import Pruned, Row, Verified, ls, prune, verify
from coterie.store.link import link_tree
from coterie.store.store import DryStore, Store

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
