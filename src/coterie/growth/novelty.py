"""The skill library: what is known, and whether something is new.

A skill keeps the mean and the covariance (shrunk, Ledoit and Wolf 2004) of its documents' features, how many they were, who
learned it, and the features of documents that were held out. A batch of documents is compared with a skill by the cosine
distance and by the Mahalanobis distance of its mean. How far a batch of known documents strays by chance is not assumed but
measured, on batches drawn from what was held out; a distance is then counted in units of the one that only a share ``alarm``
of those reach. A corpus is novel if most of its batches are further than 1 from every skill, by either distance.

Both distances shrink with the size of a batch, so known and new ones are compared at the same size.

Shapes: D documents, H width, K draws.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors.numpy import load_file, save_file

from coterie.errors import RequestError
from coterie.spec.json_types import Figures
from coterie.store import Artifact

VERSION = 1
BATCH = 32
"""Documents in a batch, where there are so many."""
DRAWS = 1000
"""Batches drawn to measure how far known documents stray."""
ALARM = 0.01
"""Share of known batches that may be called new."""
LEAST = 8
"""Held-out documents that measuring takes at least."""


def read_features(artifact: Artifact) -> Float[np.ndarray, "D H"]:
    return load_file(artifact.file("features.safetensors"))["mean"].astype(np.float64)


@dataclass(frozen=True)
class Skill:
    """One thing that an expert knows."""

    name: str
    expert: str
    documents: int
    mean_H: Float[np.ndarray, " H"]
    covariance_HH: Float[np.ndarray, "H H"]
    shrinkage: float
    held_out_DH: Float[np.ndarray, "D H"]

    def distances(self, batch_mean_KH: Float[np.ndarray, "K H"], size: int, origin_H: np.ndarray) -> np.ndarray:
        """Cosine and Mahalanobis distance [K, 2] of means of ``size`` documents; cosines are seen from the origin."""
        away_KH, own_H = batch_mean_KH - origin_H, self.mean_H - origin_H
        lengths = np.linalg.norm(away_KH, axis=1) * np.linalg.norm(own_H)
        cosine_K = 1 - away_KH @ own_H / np.maximum(lengths, 1e-12)
        off_KH = batch_mean_KH - self.mean_H
        solved_HK = np.linalg.solve(self.covariance_HH, off_KH.T)
        mahalanobis_K = np.sqrt(np.maximum((off_KH * solved_HK.T).sum(1), 0) * size / len(self.mean_H))
        return np.stack([cosine_K, mahalanobis_K], axis=1)


@dataclass(frozen=True)
class Decision:
    """Whether a corpus is new, with the figures that say so."""

    novel: bool
    nearest: str
    """The skill nearest to it."""
    expert: str
    """Who has that skill."""
    score: float
    """Median over batches of the distance to the nearest skill; 1 is what a share ``alarm`` of known batches reach."""
    by_skill: dict[str, dict[str, float]]
    """Of each skill: ``score``, ``cosine`` and ``mahalanobis`` (medians) and the thresholds of both."""
    documents: int
    batch: int
    alarm: float

    def as_json(self) -> Figures:
        return asdict(self)

    def __str__(self) -> str:
        verdict = "novel" if self.novel else f"known: it belongs to expert {self.expert!r}"
        lines = [
            f"{verdict} (score {self.score:.2f}; above 1 is new; {self.documents} documents in batches of {self.batch}, "
            f"false alarms {self.alarm:.0%})"
        ]
        for name, f in sorted(self.by_skill.items(), key=lambda item: item[1]["score"]):
            lines.append(
                f"  {name}: score {f['score']:.2f}, cosine {f['cosine']:.3f} (known up to {f['cosine_limit']:.3f}), "
                f"Mahalanobis {f['mahalanobis']:.2f} (known up to {f['mahalanobis_limit']:.2f})"
            )
        return "\n".join(lines)


class Library:
    """Skills by name, in the order in which they came."""

    def __init__(self, skills: list[Skill]) -> None:
        self.skills = skills

    def add(
        self, name: str, expert: str, learned_DH: Float[np.ndarray, "D H"], held_out_DH: Float[np.ndarray, "D H"]
    ) -> None:
        """Count a skill.

        Args:
            learned_DH: features of its training documents.
            held_out_DH: of others like them.

        Raises:
            RequestError: too few documents to know it by.
        """
        from sklearn.covariance import ledoit_wolf

        if len(learned_DH) < 2 or len(held_out_DH) < LEAST:
            raise RequestError(
                f"the skill {name!r} has too few documents to be known again",
                where=name,
                expected=f"at least 2 to learn and {LEAST} held out",
                found=f"{len(learned_DH)} and {len(held_out_DH)}",
                do="give the corpus more documents, or a larger valid split",
            )
        covariance_HH, shrinkage = ledoit_wolf(learned_DH)
        covariance_HH = covariance_HH + 1e-6 * np.trace(covariance_HH) / len(covariance_HH) * np.eye(len(covariance_HH))
        skill = Skill(name, expert, len(learned_DH), learned_DH.mean(0), covariance_HH, float(shrinkage), held_out_DH)
        self.skills.append(skill)

    @property
    def origin_H(self) -> np.ndarray:
        """What all texts share: the mean of the skills' means, or nothing where there is one skill alone."""
        means = [s.mean_H for s in self.skills]
        return np.mean(means, axis=0) if len(means) > 1 else np.zeros_like(means[0])

    def decide(self, features_DH: Float[np.ndarray, "D H"], alarm: float = ALARM, seed: int = 0) -> Decision:
        """Whether documents are of a new kind.

        Raises:
            RequestError: there are none, or they are not finite, or of another base.
        """
        self._check(features_DH)
        draw = np.random.Generator(np.random.PCG64(seed))
        new_KH, size = _parts(features_DH, draw)
        by_skill, scores = {}, []
        for skill in self.skills:
            known = skill.distances(_draws(skill.held_out_DH, size, draw), size, self.origin_H)
            limits = np.maximum(np.quantile(known, 1 - alarm / 2, axis=0), 1e-9)  # two distances, half the alarms each
            found = skill.distances(new_KH, size, self.origin_H)
            score_K = (found / limits).max(1)
            scores.append(score_K)
            cosine, mahalanobis = np.median(found, axis=0)
            by_skill[skill.name] = {
                "score": float(np.median(score_K)),
                "cosine": float(cosine),
                "mahalanobis": float(mahalanobis),
                "cosine_limit": float(limits[0]),
                "mahalanobis_limit": float(limits[1]),
            }
        score = float(np.median(np.min(scores, axis=0)))
        near = min(self.skills, key=lambda s: by_skill[s.name]["score"])
        return Decision(score > 1, near.name, near.expert, score, by_skill, len(features_DH), size, alarm)

    def _check(self, features_DH: np.ndarray) -> None:
        if not self.skills:
            raise RequestError("the library holds no skill", do="run the recipe first, so that its experts are known")
        if not len(features_DH):
            raise RequestError("the corpus is empty: there is nothing to decide on", do="give it documents")
        if features_DH.shape[1] != len(self.skills[0].mean_H) or not np.isfinite(features_DH).all():
            raise RequestError(
                "the features are not of the library's base",
                expected=f"{len(self.skills[0].mean_H)} finite numbers",
                found=f"{features_DH.shape[1]}",
            )

    def write(self, folder: Path) -> None:
        """``library.json`` to be read, ``library.safetensors`` beside it."""
        plain = ("name", "expert", "documents", "shrinkage")
        skills = [{key: getattr(s, key) for key in plain} | {"held": len(s.held_out_DH)} for s in self.skills]
        text = json.dumps({"version": VERSION, "width": len(self.skills[0].mean_H), "skills": skills}, indent=1)
        (folder / "library.json").write_text(text + "\n")
        (folder / "facts.json").write_text(text + "\n")
        parts = {"mean": "mean_H", "covariance": "covariance_HH", "held": "held_out_DH"}
        tensors = {f"{s.name}/{part}": getattr(s, field) for s in self.skills for part, field in parts.items()}
        save_file(tensors, folder / "library.safetensors")

    @classmethod
    def read(cls, folder: Path) -> Library:
        """What `write` wrote.

        Raises:
            RequestError: it is of another version.
        """
        library = json.loads((folder / "library.json").read_text())
        if library["version"] != VERSION:
            found = str(library["version"])
            raise RequestError("the library is of another version", where=str(folder), expected=str(VERSION), found=found)
        tensors = load_file(folder / "library.safetensors")

        def skill(name: str, expert: str, documents: int, shrinkage: float, held: int) -> Skill:
            mean, covariance, held_out = (tensors[f"{name}/{part}"] for part in ("mean", "covariance", "held"))
            return Skill(name, expert, documents, mean, covariance, shrinkage, held_out)

        return cls([skill(**settings) for settings in library["skills"]])


def _parts(features_DH: np.ndarray, draw: np.random.Generator) -> tuple[Float[np.ndarray, "K H"], int]:
    """Means of batches that share no document, and how many documents are in each."""
    count = max(len(features_DH) // BATCH, 1)
    size = len(features_DH) // count
    order = draw.permutation(len(features_DH))[: count * size]
    return features_DH[order].reshape(count, size, -1).mean(1), size


def _draws(features_DH: np.ndarray, size: int, draw: np.random.Generator) -> Float[np.ndarray, "K H"]:
    """Means of batches drawn at random, with repeats: without, those of a small stock would be too much alike."""
    return np.stack([features_DH[draw.integers(0, len(features_DH), size)].mean(0) for _ in range(DRAWS)])
