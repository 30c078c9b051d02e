"""Who is used where: figures of routing over several domains."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from coterie.shares import gini, mutual_information
from coterie.spec.json_types import Figures


def usage(facts: Mapping[str, Figures]) -> Figures:
    """Figures of routing over several domains, from those of each.

    Returns:
        ``utilization`` (mean weight of each distinct expert), its ``gini``, mean ``entropy`` (nats) and ``confidence`` (mean
        largest weight), ``by_group``, ``by_position``, ``mutual_information`` of domain and expert (nats).
    """
    tokens_G = np.array([f["tokens"] for f in facts.values()], dtype=float)
    share_G = tokens_G / tokens_G.sum()
    use_GU = np.array([f["utilization"] for f in facts.values()])
    use_U = share_G @ use_GU
    joint_GU = share_G[:, None] * use_GU
    return {
        "utilization": use_U.tolist(),
        "gini": gini(use_U),
        "entropy": float(share_G @ [f["entropy"] for f in facts.values()]),
        "confidence": float(share_G @ [f["confidence"] for f in facts.values()]),
        "mutual_information": mutual_information(joint_GU),
        "by_group": {name: f["utilization"] for name, f in facts.items()},
        # by domain: over all of them, later positions belong to the domains with long documents
        "by_position": {name: f["by_position"] for name, f in facts.items()},
    }
