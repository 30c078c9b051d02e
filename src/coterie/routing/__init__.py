"""Eligibility, features, routers, policy, fitting, statistics. Pure tensors: no store, no expert, no tokenizer."""

from coterie.routing.eligibility import Eligibility
from coterie.routing.fit import Scored, Settings, fit, mix
from coterie.routing.policy import Policy, log_softmax
from coterie.routing.routers import Router, build
from coterie.routing.scan import decayed_sum
from coterie.routing.statistics import Usage

__all__ = [
    "Eligibility",
    "Policy",
    "Router",
    "Scored",
    "Settings",
    "Usage",
    "build",
    "decayed_sum",
    "fit",
    "log_softmax",
    "mix",
]
