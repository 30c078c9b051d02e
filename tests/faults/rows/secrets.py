"""Secrets that lie around while commands work: none may be in anything that a person shares."""

from __future__ import annotations

import json
from pathlib import Path

from tests.faults.row import Draw, Row, Trial
from tests.faults.rows.kills import _adapters, _layers, _outputs, _write
from tests.forked import Command

CANARIES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "WANDB_API_KEY",
    "OPENAI_API_KEY",
    "GITHUB_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "PGPASSWORD",
    "SLURM_JWT",
    "COTERIE_SECRET",
    "HTTPS_PROXY",
)
"""Variables that hold one, each with a value of its own."""


def trial(prepared: Path, home: Path, draw: Draw) -> Trial:
    secrets = {name: f"canary{draw.getrandbits(64):016x}" for name in CANARIES}
    env = {**secrets, "HTTPS_PROXY": f"http://user:{secrets['HTTPS_PROXY']}@127.0.0.1:9"}
    person = home / f"home-of-{secrets['HF_TOKEN'][:12]}"
    (person / ".cache/huggingface").mkdir(parents=True)
    (person / ".cache/huggingface/token").write_text(secrets["HF_TOKEN"])
    kind = [_outputs, _layers, _adapters][draw.number % 3]
    work = person / "work"
    work.mkdir()
    raw = kind(work)
    _write(work, raw)
    mixture = raw["mixtures"][0]["name"]
    broken = {**raw, "train": {**raw["train"], "learning_rate": 1e12}}
    (work / "broken.json").write_text(json.dumps(broken))
    store = ("--store", "store")
    commands: list[tuple[str, ...]] = [
        ("run", "recipe.json", *store, "--out", "out", "--dry-run"),
        ("run", "recipe.json", *store, "--out", "out"),
        ("report", "out", "--format", "md"),
        ("generate", f"out/mixtures/{mixture}", "ripe", "--max-new-tokens", "2"),
        ("store", "ls", *store),
        ("store", "verify", *store),
        ("--debug", "run", "broken.json", *store, "--out", "broken"),
        ("run", "nothing.json", *store),
    ]
    if kind is _layers:
        commands.append(("export", f"out/mixtures/{mixture}", "--to", "new"))
    bad: list[str] = []
    for words in commands:
        command = Command(*words, cwd=work, env={**env, "HOME": str(person)})
        command.wait(120)
        bad += [
            f"{name} in what {words[0]} printed"
            for name, value in secrets.items()
            if value in command.stdout + command.stderr
        ]
    for path in [p for folder in ("store", "out", "new", "broken") for p in (work / folder).rglob("*") if p.is_file()]:
        data = path.read_bytes()
        bad += [f"{name} in {path.relative_to(work)}" for name, value in secrets.items() if value.encode() in data]
        own = path.relative_to(work).parts[:2] in (("store", "roots"), ("store", "file-digests"))  # notes of this machine
        if str(person).encode() in data and not own:
            bad.append(f"the home's path in {path.relative_to(work)}")
    return Trial(
        kind.__name__.strip("_"), f"{len(commands)} commands, {len(secrets)} secrets", violations=tuple(dict.fromkeys(bad))
    )


ROWS = [
    Row(
        "secrets",
        f"{len(CANARIES)} canaries in variables, a token's file and a home's name, under every command, those that fail too",
        "none in anything printed, in no manifest, report, export or log",
        (0, 3, 12),
        trial,
    )
]
