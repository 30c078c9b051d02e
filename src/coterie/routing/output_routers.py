"""Routers at the outputs. Each class is all there is to say of one: its name, its settings, whether and on what it is
fitted, and the module that does the work.

Whatever the kind, a router reads causal features of the prefix and gives logits over distinct experts; a policy turns them
into weights: softmax over all eligible experts, then `top_k` or `top_p`, then renormalised.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from coterie.routing.fit_settings import FitSettings
from coterie.routing.policy_settings import PolicySettings
from coterie.spec.kind import Kind
from coterie.spec.settings import Count, Positive

if TYPE_CHECKING:
    from coterie.routing.routers import RouterModule


class OutputRouter(PolicySettings, Kind):
    """A router on the experts' probabilities."""

    noun: ClassVar[str] = "router at outputs"
    default_tag: ClassVar[str | None] = "uniform"

    kind: str
    """The router."""

    @property
    def fitting(self) -> FitSettings | None:
        """How it is fitted on the experts' cached scores of the valid split; None: it is not."""
        return None

    @property
    def unfitted(self) -> OutputRouter:
        """What decides until it is fitted: itself if it needs no fit, else equal weights."""
        return self if self.fitting is None else Uniform()

    def build(self, experts: int, vocab_size: int, seed: int = 0) -> RouterModule:
        """The module for so many distinct experts; fresh parameters come from ``seed`` alone."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.module(experts, vocab_size)

    @abstractmethod
    def module(self, experts: int, vocab_size: int) -> RouterModule:
        """The module for so many distinct experts, with fresh parameters from torch's global generator."""


class Uniform(OutputRouter):
    """Equal weights over eligible slots."""

    kind: Literal["uniform"] = "uniform"
    """The router."""

    def module(self, experts: int, vocab_size: int) -> RouterModule:
        from coterie.routing.routers import RouterModule

        return RouterModule(experts)


class FittedRouter(FitSettings, OutputRouter):
    """A router with parameters, fitted on the experts' cached scores."""

    learns_from = "scores of the `valid` split"

    @property
    def fitting(self) -> FitSettings | None:
        return self


class Posterior(FittedRouter):
    """Weights follow how well each expert has predicted the text so far: w_s(t) proportional to
    prior_s exp(sum over u < t of decay^(t-u) log P_s(x_u) / tau)."""

    paper = "the exact Bayesian form of c-BTM's domain posterior, Gururangan et al. 2023 (2303.14177)"
    learns_from = "scores of the `valid` split; with `fit: false`, nothing"
    examples = ({}, {"fit": False, "decay": 0.8, "tau": 2.0})

    kind: Literal["posterior"] = "posterior"
    """The router."""
    decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """How fast old tokens are forgotten; 1 never."""
    tau: Positive = 1.0
    """Temperature of the likelihoods."""
    fit: bool = True
    """Learn prior, decay and tau on the valid split, starting from the values above."""

    @property
    def fitting(self) -> FitSettings | None:
        return super().fitting if self.fit else None

    @property
    def unfitted(self) -> Posterior:
        return self.model_copy(update={"fit": False})

    def module(self, experts: int, vocab_size: int) -> RouterModule:
        from coterie.routing.routers import PosteriorModule

        return PosteriorModule(experts, self.decay, self.tau, self.fit)


class Linear(FittedRouter):
    """Weights follow features of the text so far, through a linear map."""

    examples = ({}, {"features": ["posterior"]}, {"features": ["tokens", "posterior"]})

    kind: Literal["linear"] = "linear"
    """The router."""
    features: tuple[Literal["tokens", "posterior"], ...] = ("tokens",)
    """`tokens`: frequencies of the prefix's tokens; `posterior`: the posterior's log-weights."""

    def module(self, experts: int, vocab_size: int) -> RouterModule:
        from coterie.routing.routers import LinearModule

        return LinearModule(experts, vocab_size, self.features)


class Mlp(FittedRouter):
    """Weights follow features of the text so far, through one hidden layer."""

    examples = ({"hidden": 4}, {"hidden": 4, "features": ["posterior"]}, {"hidden": 4, "features": ["tokens", "posterior"]})

    kind: Literal["mlp"] = "mlp"
    """The router."""
    features: tuple[Literal["tokens", "posterior"], ...] = ("tokens",)
    """`tokens`: frequencies of the prefix's tokens; `posterior`: the posterior's log-weights."""
    hidden: Count = 32
    """Width of the hidden layer."""

    def module(self, experts: int, vocab_size: int) -> RouterModule:
        from coterie.routing.routers import MlpModule

        return MlpModule(experts, vocab_size, self.features, self.hidden)
