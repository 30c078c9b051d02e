"""Where results live: address, publish, lease, verify, prune. No torch."""

from coterie.store.address import Action
from coterie.store.artifact import Artifact, Planned, sha256
from coterie.store.store import DryStore, Store

__all__ = ["Action", "Artifact", "DryStore", "Planned", "Store", "sha256"]
