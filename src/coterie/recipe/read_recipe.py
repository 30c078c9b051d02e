"""From a file to a resolved recipe: YAML with line numbers, `--set`, defaults, validation, expansion."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from coterie.errors import RequestError
from coterie.recipe.expand import expand, long_form
from coterie.recipe.recipe import Recipe
from coterie.recipe.select_forms import for_selecting, only_selects
from coterie.spec.json_types import Figures
from coterie.spec.kind import near

Key = tuple[str | int, ...]
Lines = dict[Key, int | str]
"""The line of every key, or the `--set` that gave it."""


MOST = 100_000
"""Values in a recipe, written out; aliases of aliases could make any number."""


class _Loader(yaml.SafeLoader):
    """Safe YAML that remembers the line of every key and refuses a key given twice."""


def read(source: str | Path | Mapping[str, object], settings: Iterable[str] = (), *, selecting: bool = False) -> Recipe:
    """Read, complete and check a recipe.

    Args:
        source: a YAML or JSON file, or the same as a mapping.
        settings: overrides such as ``"seed=1"`` or ``"experts.0.train.tokens=1000"``.
        selecting: the file may have no experts: it only selects.

    Returns:
        the recipe with families expanded, globs resolved, the flat form written out.

    Raises:
        RequestError: with file, line and key, what was expected and found.
    """
    lines: Lines = {}
    file: str | None = None
    if isinstance(source, Mapping):
        raw: Any = json.loads(json.dumps(source, default=str))
        folder, stem = Path.cwd(), "recipe"
    else:
        path = Path(source)
        file, folder, stem = str(path), path.resolve().parent, path.stem.lower()
        raw = _parse(_text(path), str(path), lines)
    if not isinstance(raw, dict):
        raise RequestError("a recipe is a mapping of keys to values", where=file, found=type(raw).__name__)
    for setting in settings:
        _set(raw, setting, lines)
    if selecting:
        raw = for_selecting(raw)
    elif only_selects(raw):
        raise RequestError(
            "the recipe only selects: it has no experts",
            where=_where(file, ("experts",), lines),
            do=f"coterie select pick {file or 'RECIPE'} --out DIR chooses; to train on what is chosen, add experts",
        )
    try:
        raw = long_form(raw, folder=folder, stem=stem)
        return expand(Recipe.model_validate(raw))
    except ValidationError as error:
        raise readable(error, file, lines) from None
    except RequestError as error:
        key = tuple(int(k) if k.isdigit() else k for k in (error.where or "").split("."))
        error.where = _where(file, key, lines)
        raise


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RequestError("no such recipe", where=str(path), do="check the path") from None
    except IsADirectoryError:
        raise _folder(path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError("the recipe cannot be read", where=str(path), found=str(error)) from None
    if not text.strip():
        raise RequestError("the recipe is empty", where=str(path), expected="at least name, corpora and experts")
    return text


def _parse(text: str, place: str, lines: Lines) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        _mark(node, (), lines, place, [MOST])
        return loader.construct_document(node) if node is not None else None
    except RequestError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark and not place.startswith("--set") else ""
        raise RequestError("not valid YAML or JSON", where=f"{place}{line}", found=error.problem or str(error)) from None
    except (yaml.YAMLError, ValueError) as error:
        raise RequestError("not valid YAML or JSON", where=place, found=str(error)) from None
    except RecursionError:
        raise RequestError("not valid YAML or JSON", where=place, found="nested too deeply") from None
    finally:
        loader.dispose()


def _folder(path: Path) -> RequestError:
    """The error for a folder given as a recipe; it names the recipes in it."""
    files = sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml", ".json") and p.is_file())
    found = [str(p) for p in files if re.search(r"""\b(corpora|datasets)["']?:""", p.read_text("utf-8", "replace"))]
    return RequestError(
        "a recipe is a file, and this is a folder",
        where=str(path),
        expected="a YAML or JSON file",
        found=f"recipes in it: {', '.join(found)}" if found else "no recipe in it",
        do=f"name one, such as {found[0]}" if found else "`coterie recipe` says what a recipe holds",
    )


def _mark(node: yaml.Node | None, key: Key, lines: Lines, place: str, left: list[int]) -> None:
    if node is None:
        return
    left[0] -= 1
    if left[0] < 0:
        raise RequestError("the recipe is too large", where=place, expected=f"at most {MOST:,} values", found="more")
    lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for name, value in node.value:
            line = name.start_mark.line + 1
            if not isinstance(name, yaml.ScalarNode):
                raise RequestError("a key is a list or a mapping", where=place, found=f"line {line}", expected="plain text")
            if name.value in seen:
                raise RequestError(
                    "a key is given twice",
                    where=f"{place}:{line} ({'.'.join(map(str, (*key, name.value)))})",
                    found=f"first on line {seen[name.value]}",
                    do="keep one of them",
                )
            seen[name.value] = line
            lines[(*key, name.value)] = line
            _mark(value, (*key, name.value), lines, place, left)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _mark(value, (*key, index), lines, place, left)


_QUOTED = """a text with braces, colons or brackets needs quotes of YAML's own: --set '{key}="{text}"'"""


def _set(raw: Figures, setting: str, lines: Lines) -> None:
    """`a.b=v`: v is read as YAML. List items go by index or, where items have names, by name."""
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise RequestError("--set takes KEY=VALUE", where=f"--set {setting}", do="for example --set seed=1")
    try:
        value = _parse(text, f"--set {setting}", {})
    except RequestError as error:
        error.do = _QUOTED.format(key=key, text=text)
        raise
    if isinstance(value, dict) and value and all(v is None for v in value.values()):
        raise RequestError(
            "the value is a YAML mapping without values",
            where=f"--set {setting}",
            expected="a value, or text in quotes",
            found=text,
            do=_QUOTED.format(key=key, text=text),
        )
    *parents, last = key.split(".")
    place: Any = raw
    at: Key = ()
    for part in parents:
        here = _index(place, part, setting) if isinstance(place, list) else part
        at = (*at, here)
        if isinstance(place, dict) and place.get(here) is None:
            place[here] = {}
            lines[at] = f"--set {key}"
        place = place[here]
        if not isinstance(place, dict | list):
            raise RequestError("the key goes through a plain value", where=f"--set {setting}", found=f"{part}: {place!r}")
    here = _index(place, last, setting) if isinstance(place, list) else last
    place[here] = value
    at = (*at, here)
    for below in [k for k in lines if k[: len(at)] == at]:
        del lines[below]  # what the file said there no longer counts
    lines[at] = f"--set {key}"


def _index(items: list[Any], part: str, setting: str) -> int:
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(items):
        return int(part)
    known = ", ".join(str(n) for n in names if n) or f"0 to {len(items) - 1}"
    raise RequestError("no such list item", where=f"--set {setting}", expected=known, found=part)


def readable(error: ValidationError, file: str | None = None, lines: Lines | None = None) -> RequestError:
    """What is wrong with settings, for people: the key, what was expected and found, the nearest names."""
    lines = lines or {}
    first = error.errors()[0]
    key, kind = list(first["loc"]), first["type"]
    if key and key[0] == "base" and len(key) > 1 and key[1] in ("fresh", "checkpoint"):
        del key[1]  # which of the two it is: nobody wrote that
    more = len(error.errors()) - 1
    rest = f" ({more} more problems after it)" if more else ""
    if kind in ("unknown_kind", "no_kind"):
        about = first["ctx"]
        key += [about["key"]] if about["key"] else []
        names = about["known"]
        what = about["what"] if kind == "unknown_kind" else f"missing key: {about['key']}"
        do = f"did you mean {names[0]!r}?" if kind == "unknown_kind" else f"say {about['key']}: {names[0]}"
        found = repr(about["found"]) if kind == "unknown_kind" else None
        return RequestError(
            what, where=_where(file, tuple(key), lines), expected=", ".join(names), found=found, do=do + rest
        )
    if kind == "unknown_key":
        names = near(str(key[-1]), dict.fromkeys(first["ctx"]["keys"]))
        return RequestError(
            "unknown key",
            where=_where(file, tuple(key), lines),
            expected=", ".join(names) or None,
            found=str(key[-1]),
            do=f"did you mean {names[0]!r}? Else take it out" + rest,
        )
    found = first.get("input")
    shown = None if isinstance(found, dict | list) or kind == "missing" else f"{found!r} ({type(found).__name__})"
    return RequestError(
        "missing key" if kind == "missing" else "wrong value",
        where=_where(file, tuple(key), lines),
        expected=first["msg"].removeprefix("Value error, "),
        found=shown,
        do="correct this key" + rest,
    )


def _where(file: str | None, key: Key, lines: Lines) -> str:
    if key not in lines and "train" in key and key[key.index("train") :] in lines:
        key = key[key.index("train") :]  # what is said once for all experts
    dotted = ".".join(map(str, key))
    line = next((lines[key[:n]] for n in range(len(key), -1, -1) if key[:n] in lines), None)
    if isinstance(line, str):
        return line if line == f"--set {dotted}" else f"{line} ({dotted})"
    if file is None:
        return dotted or "recipe"
    place = f"{file}:{line}" if line else file
    return f"{place} ({dotted})" if dotted else place
