"""What a person asks for: frozen models, one file a noun, and how a file becomes one. No torch."""

from coterie.recipe.at_adapters import AdaptersSpec, Arrow, Joint, Learned, RidgeGates, UniformGates
from coterie.recipe.at_layers import LayersSpec, Tune
from coterie.recipe.at_outputs import Linear, Mlp, OutputsSpec, Posterior, Router, Uniform
from coterie.recipe.base import Base, CheckpointBase, FreshBase, Pretrain, TrainedTokenizer
from coterie.recipe.corpus import Corpus, Limit, Split
from coterie.recipe.evaluation import Choices, Evaluation, Losses
from coterie.recipe.expert import Expert, Lora, Single, Window
from coterie.recipe.lineage import Lineage, lineage
from coterie.recipe.places import Mixture
from coterie.recipe.read_recipe import read
from coterie.recipe.recipe import Recipe
from coterie.recipe.spec import Spec, canonical_json, digest
from coterie.recipe.train import EarlyStopping, Train

__all__ = [
    "AdaptersSpec",
    "Arrow",
    "Base",
    "CheckpointBase",
    "Choices",
    "Corpus",
    "EarlyStopping",
    "Evaluation",
    "Expert",
    "FreshBase",
    "Joint",
    "LayersSpec",
    "Learned",
    "Limit",
    "Lineage",
    "Linear",
    "Lora",
    "Losses",
    "Mixture",
    "Mlp",
    "OutputsSpec",
    "Posterior",
    "Pretrain",
    "Recipe",
    "RidgeGates",
    "Router",
    "Single",
    "Spec",
    "Split",
    "Train",
    "TrainedTokenizer",
    "Tune",
    "Uniform",
    "UniformGates",
    "Window",
    "canonical_json",
    "digest",
    "lineage",
    "read",
]
