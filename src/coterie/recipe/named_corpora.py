"""Corpora that can be asked for by name: hub id, templates and split ship with us, a recipe may override the path.

Each has one or more layouts, because the hub's copy and the authors' own files name their columns differently. The
reader takes the first layout whose columns the data has.
"""

from __future__ import annotations

from typing import Any

CORPORA: dict[str, dict[str, Any]] = {
    "truthfulqa": {
        "hub": {"hub": "truthfulqa/truthful_qa", "config": "generation", "split_name": "validation"},
        "layout": {"text": "Question: {question}\nAnswer: {best_answer}"},
    },
    "qmsum": {
        "hub": {"hub": "pszemraj/qmsum-cleaned", "split_name": "train"},
        "layout": {"prompt": "{relevant_text}\n\n{query}\n", "response": "{answer}", "group": "meeting_id"},
        "hub_layout": {"prompt": "{input}\n", "response": "{output}"},
    },
    "code_alpaca": {
        "hub": {"hub": "sahil2801/CodeAlpaca-20k", "split_name": "train"},
        "layout": {"prompt": "{instruction}\n{input}\n", "response": "{output}"},
    },
    "mbpp": {
        "hub": {"hub": "google-research-datasets/mbpp", "config": "full"},
        "layout": {"prompt": "{text}\n", "response": "{code}"},
    },
    "cosmopedia-100k": {
        "hub": {"hub": "HuggingFaceTB/cosmopedia-100k", "split_name": "train"},
        "layout": {"text": "text", "columns": ["format", "audience", "seed_data"]},
    },
    "fineweb-edu": {
        "hub": {"hub": "HuggingFaceFW/fineweb-edu", "config": "sample-10BT", "split_name": "train"},
        "layout": {"text": "text", "id": "id"},
    },
}


def complete(name: str, value: dict[str, object]) -> dict[str, object]:
    """Fill in what a named corpus ships: its source unless the recipe gives one, its templates unless the recipe does."""
    shipped = CORPORA.get(name)
    if shipped is None:
        return value
    from_hub = not any(value.get(k) for k in ("path", "hub"))
    layout = dict(shipped.get("hub_layout", shipped["layout"]) if from_hub else shipped["layout"])
    group = layout.pop("group", None)
    if any(k in value for k in ("text", "prompt", "response")):
        layout, group = {}, None
    filled = {**(shipped["hub"] if from_hub else {}), **layout, **value}
    if group and "split" not in value:
        filled["split"] = {"group": group}
    return filled
