"""Models, adapters, mixtures, tokenizers, recipes and corpora that somebody made to do harm: each in a process of its own,
under a hook that hears what it opens, connects to, starts and compiles.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import site
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tests.faults import harness as h
from tests.faults.row import Draw, Row, Trial
from tests.faults.rows.damage import Raw, _command
from tests.mixtures.adapters.cases import mixture as adapters_mixture
from tests.mixtures.layers.cases import mixture as layers_mixture
from tests.models.test_hostile import CLAIMS, configure
from tests.models.test_remote_code import adapter, model, poisoned
from tests.run.small import recipe
from transformers import AutoTokenizer

import coterie
from coterie.errors import CoterieError

SECONDS, HANGS = 5.0, 30
"""It is refused within so many (on a quiet machine), and hangs after so many."""
Case = Callable[[Path], Callable[[], object]]
"""Fills a folder and gives what a person would do with it."""
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
NAME = '=HYPERLINK("http://x.example")<script>alert(1)</script><img src=x onerror=alert(1)>\x1b]0;owned\x07\x1b[31m'
"""A text that a spreadsheet, a browser and a terminal would each act on."""


def _opened(make: Callable[[Path], None]) -> Case:
    """A model's folder, changed."""

    def case(home: Path) -> Callable[[], object]:
        folder = model(home / "m")
        make(folder)
        return lambda: coterie.load(folder).complete("the cat", max_new_tokens=1)

    return case


def _claim(changes: dict[str, Any]) -> Case:
    return _opened(lambda folder: configure(folder, **changes))


def _number(bad: float) -> Case:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.mlp.down_proj.weight"][3, 4] = bad
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return _opened(change)


def _weights(data: bytes) -> Case:
    return _opened(lambda folder: _put(folder / "model.safetensors", data))


def _put(path: Path, data: bytes | str) -> None:
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def _index(target: str) -> Case:
    def change(folder: Path) -> None:
        shutil.copy(folder / "model.safetensors", folder.parent / "outside.safetensors")
        names = list(load_file(folder / "model.safetensors"))
        (folder / "model.safetensors").unlink()
        where = target.format(outside=folder.parent / "outside.safetensors")
        _put(
            folder / "model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, where)})
        )

    return _opened(change)


def _instead(name: str, make: Callable[[Path], object]) -> Case:
    """Something else in the place of a file."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return _opened(change)


def _code(file: str) -> Case:
    def case(home: Path) -> Callable[[], object]:
        folder = poisoned(model(home / "m"), file, home / "canary")
        return lambda: coterie.load(folder)

    return case


def _pickle(name: str) -> Case:
    def change(folder: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.system, ("touch canary",)

        (folder / "model.safetensors").unlink()
        torch.save({"x": Evil()}, folder / name)

    return _opened(change)


def _template(text: str) -> Case:
    """A chat template that is asked to render something."""

    def case(home: Path) -> Callable[[], object]:
        folder = model(home / "m")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = text
        tokenizer.save_pretrained(folder)
        return lambda: coterie.load(folder).complete("the cat", max_new_tokens=1, chat=True)

    return case


def _adapter(changes: dict[str, Any]) -> Case:
    def case(home: Path) -> Callable[[], object]:
        base, folder = model(home / "base"), adapter(home / "a")
        path = folder / "adapter_config.json"
        _put(path, json.dumps(json.loads(path.read_text()) | changes))
        return lambda: coterie.load(folder, base=base)

    return case


def _pickled_adapter(home: Path) -> Callable[[], object]:
    base, folder = model(home / "base"), adapter(home / "a")
    (folder / "adapter_model.safetensors").unlink()
    torch.save({}, folder / "adapter_model.bin")
    return lambda: coterie.load(folder, base=base)


def _mixture(at: str, change: Callable[[Path], object]) -> Case:
    def case(home: Path) -> Callable[[], object]:
        made = layers_mixture("llama")[0] if at == "layers" else adapters_mixture("llama")
        made.save_pretrained(home / "mix")
        change(home / "mix")
        return lambda: coterie.load(home / "mix")

    return case


def _first_number(folder: Path, bad: float) -> None:
    file = next(folder.glob("*.safetensors"))
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] = bad
    save_file(tensors, file, metadata={"format": "pt"})


def _linked_out(folder: Path) -> None:
    file = next(folder.rglob("*.safetensors"))
    file.rename(folder.parent / "outside.safetensors")
    file.symlink_to(folder.parent / "outside.safetensors")


def _recipe_text(text: str) -> Case:
    def case(home: Path) -> Callable[[], object]:
        _put(home / "recipe.yaml", text)
        return lambda: _command("run", str(home / "recipe.yaml"), "--store", str(home / "store"), "--out", str(home / "out"))

    return case


def _recipe(**changes: Any) -> Case:
    def case(home: Path) -> Callable[[], object]:
        return _recipe_text(json.dumps(recipe(home / "data", single=None, mixtures=[]) | changes))(home)

    return case


def _corpus(write: Callable[[Path], object], name: str = "x.jsonl", **settings: Any) -> Case:
    def case(home: Path) -> Callable[[], object]:
        raw = recipe(home / "data", single=None, mixtures=[], evaluation=[])
        write(home / name)
        raw["corpora"]["fruit"] |= {"path": str(home / name), "id": None, **settings}
        return _recipe_text(json.dumps(raw))(home)

    return case


def _bomb(path: Path) -> None:
    """A gigabyte of one letter in a megabyte."""
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(b'{"text": "')
        for _ in range(1000):
            file.write(b"a" * 1_000_000)


def _gguf(home: Path) -> Callable[[], object]:
    _put(home / "x.gguf", b"GGUF" + (3).to_bytes(4, "little") + (2**60).to_bytes(8, "little") * 2 + bytes(64))
    return _recipe(base={"path": str(home / "x.gguf")})(home)


def _shown(home: Path) -> Callable[[], object]:
    """A run whose groups are called by what others would act on; then its report, in every form."""
    raw = recipe(home / "data", single=None, mixtures=[])
    rows = [json.dumps({"text": f"ripe plum {i} and pear", "kind": NAME, "id": f"{NAME}{i}"}) for i in range(80)]
    _put(home / "x.jsonl", "\n".join(rows))
    raw["corpora"]["fruit"] |= {"path": str(home / "x.jsonl"), "columns": ["kind"]}
    raw["evaluation"] = [{"name": "losses", "corpora": ["fruit"], "by": "kind", "bootstrap": 5}]

    def shown() -> None:
        _put(home / "recipe.json", json.dumps(raw))
        printed = _command("run", str(home / "recipe.json"), "--store", str(home / "store"), "--out", str(home / "out"))
        written = _command("report", str(home / "out"), "--format", "md")
        page = (home / "out/report.html").read_text()
        if {"\x1b", "\x07"} & set(printed + written):
            raise Raw("a terminal would act on what is printed")
        if "<script>alert" in page or "<img src=x" in page or "<script>alert" in written:
            raise Raw("a browser would act on the page")

    return shown


CASES: dict[str, Case] = {
    **{f"a configuration that claims {json.dumps(claim)}": _claim(claim) for claim in CLAIMS},
    **{f"weights that hold {bad}": _number(bad) for bad in (float("nan"), float("inf"), float("-inf"))},
    "a kernel of a hub": _claim({"attn_implementation": "somebody/kernel"}),
    "a kernel below the text's configuration": _claim({"text_config": {"attn_implementation": "somebody/kernel:rev"}}),
    "code that the configuration names": _code("config.json"),
    "code that the tokenizer names": _code("tokenizer_config.json"),
    "a pickle in place of weights": _pickle("pytorch_model.bin"),
    "a pickle called model.pt": _pickle("model.pt"),
    "a header of weights that claims 2**62 bytes": _weights((2**62).to_bytes(8, "little") + b"{}"),
    "a header of weights that nests": _weights((3005).to_bytes(8, "little") + b'{"a":' + b"[" * 3000 + bytes(16)),
    "weights that are a web page": _weights(b"<!doctype html><title>404</title>"),
    "an index that names ../outside": _index("../outside.safetensors"),
    "an index that names a file by its whole path": _index("{outside}"),
    "a pipe in place of the configuration": _instead("config.json", os.mkfifo),
    "a pipe in place of weights": _instead("model.safetensors", os.mkfifo),
    "a device in place of the tokenizer": _instead("tokenizer.json", lambda path: path.symlink_to("/dev/zero")),
    "a link to a file outside in place of the tokenizer": _instead(
        "tokenizer.json", lambda path: path.symlink_to("/etc/hostname")
    ),
    "a configuration that nests": _instead("config.json", lambda path: _put(path, "[" * 3000)),
    "a tokenizer that nests": _instead("tokenizer.json", lambda path: _put(path, '{"a":' * 100_000)),
    "a tokenizer's configuration that is a list": _instead("tokenizer_config.json", lambda path: _put(path, "[1]")),
    "a chat template that reaches for classes": _template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "a chat template that counts for ever": _template(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    ),
    "a chat template that grows": _template("{% set x = 'a' * 10**10 %}{{ x }}"),
    "a chat template that imports": _template("{% import 'os' as os %}{{ os.system('touch canary') }}"),
    "an adapter whose targets take for ever": _adapter({"target_modules": "(.*.*)*(.*.*)*(.*.*)*x$"}),
    "an adapter whose targets are (a+)+$": _adapter({"target_modules": "([a-z.]+)+!"}),
    "an adapter of rank 2**40": _adapter({"r": 2**40}),
    "an adapter of a kind that nobody knows": _adapter({"peft_type": "EVIL"}),
    "an adapter that trains modules elsewhere": _adapter({"modules_to_save": ["../../x"]}),
    "an adapter that asks for a module": _adapter({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}),
    "an adapter that is a pickle": _pickled_adapter,
    "a mixture of 10**8 slots": _mixture("adapters", lambda f: configure(f, slots=[{"name": "a", "expert": 0}] * 1_000_000)),
    "a mixture of a million experts": _mixture("layers", lambda f: configure(f, experts=[{"name": "e"}] * 1_000_000)),
    "a mixture whose expert lies outside": _mixture(
        "adapters", lambda f: configure(f, experts=[{"name": "e", "dir": "../../etc"}])
    ),
    "a mixture whose gates hold NaN": _mixture("layers", lambda f: _first_number(f, float("nan"))),
    "a mixture whose weights are a link to outside": _mixture("adapters", _linked_out),
    "a mixture whose router nobody knows": _mixture("adapters", lambda f: configure(f, router={"kind": "evil"})),
    "a recipe of aliases": _recipe_text(
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{c}: &{c} [{','.join([f'*{p}'] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True))
    ),
    "a recipe with an object of Python": _recipe_text("name: !!python/object/apply:os.system ['touch canary']"),
    "a recipe that nests": _recipe_text("[" * 3000),
    "a recipe whose name is a path": _recipe(name="../../x"),
    "a recipe whose name is for a terminal": _recipe(name=NAME),
    "a template that reaches for classes": _corpus(
        lambda p: _put(p, '{"text": "a"}\n' * 9), text="{text.__class__.__mro__}"
    ),
    "a date that is searched for ever": _corpus(
        lambda p: _put(p, json.dumps({"text": "a", "when": "a" * 5000 + "!"}) + "\n"), time="when", time_pattern="((a+)+)$"
    ),
    "a line of 20 MB": _corpus(lambda p: _put(p, '{"text": "' + "a" * 20_000_000 + '"}\n{"text": "b c"}\n')),
    "a gigabyte in a megabyte": _corpus(_bomb, "x.jsonl.gz"),
    "a pipe for a corpus": _corpus(os.mkfifo),
    "a device for a corpus": _corpus(lambda p: p.symlink_to("/dev/zero")),
    "a corpus that nests": _corpus(lambda p: _put(p, '{"text": ' + "[" * 100_000 + "\n")),
    "a corpus of zeros": _corpus(lambda p: _put(p, bytes(1_000_000))),
    "a Parquet file that is none": _corpus(lambda p: _put(p, b"PAR1" + b"\xff" * 1000 + b"PAR1"), "x.parquet"),
    "an Arrow file of random bytes": _corpus(lambda p: _put(p, b"ARROW1\0\0" + random.Random(1).randbytes(5000)), "x.arrow"),
    "a CSV file whose quote never ends": _corpus(lambda p: _put(p, 'text\n"' + "a,\n" * 500_000), "x.csv"),
    "a GGUF file that claims 2**60 tensors": _gguf,
    "names for a browser, a terminal and a spreadsheet": _shown,
}


def _allowed(path: str, home: Path) -> bool:
    """Whether a process may read there: the folder at hand, Python and its libraries, what a system has for everybody."""
    own = [
        home,
        sys.prefix,
        sys.base_prefix,
        site.getusersitepackages(),
        sysconfig.get_path("stdlib"),
        Path(coterie.__file__).parents[1],
    ]
    common = [
        "/proc",
        "/sys",
        "/dev/null",
        "/dev/urandom",
        "/etc/ssl",
        "/etc/localtime",
        "/usr/share",
        "/lib",
        "/usr/lib",
        "/etc/mime.types",
        Path.home() / ".cache",
        "/tmp/torchinductor",
        "/etc/nsswitch.conf",
        "/etc/passwd",
        "/etc/ld.so.cache",
        Path(__file__).parents[3],
    ]
    try:
        real = os.path.realpath(path)
    except (OSError, ValueError):
        return True
    return any(real.startswith(str(place)) for place in [*own, *common])


def _listen(home: Path, heard: list[str]) -> None:
    """Hear of everything that nothing hostile may bring about."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in (
            "socket.connect",
            "socket.getaddrinfo",
            "subprocess.Popen",
            "os.system",
            "os.exec",
            "os.posix_spawn",
            "os.fork",
        ):
            heard.append(f"{event} {str(args[:2])[:120]}")
        elif event == "open" and isinstance(args[0], str) and not (args[2] or 0) & 3 and not _allowed(args[0], home):
            heard.append(f"read {args[0]}")
        elif event == "import" and isinstance(args[1], str) and args[1].startswith(str(home)):
            heard.append(f"import {args[1]}")
        elif event == "compile" and isinstance(args[1], str) and args[1].startswith(str(home)):
            heard.append(f"compile {args[1]}")

    sys.addaudithook(hook)


def trial(prepared: Path, home: Path, draw: Draw) -> Trial:
    names = list(CASES)
    return judged(names[draw.number % len(names)], home)


def judged(name: str, home: Path) -> Trial:
    """What became of one case."""
    try_it = CASES[name](home)
    report = home / "told.json"

    def alone() -> None:
        os.chdir(home)
        signal.alarm(HANGS)
        heard: list[str] = []
        _listen(home, heard)
        began = time.monotonic()
        how, text = "harmless", ""
        try:
            try_it()
        except CoterieError as error:
            how, text = "refused", str(error)
            if not error.where or not (error.do or error.expected or error.found):
                heard.append(f"the message does not say enough: {error}")
        except BaseException as error:
            how, text = "raw", f"{type(error).__name__}: {str(error)[:300]}"
        took = time.monotonic() - began
        report.write_text(json.dumps({"how": how, "text": text, "heard": heard, "took": took}))

    code = h.in_child(alone)
    if not report.exists():
        return Trial(name, "no end", violations=(f"the process ended with {code} (14: after {HANGS} s)",))
    told = json.loads(report.read_text())
    bad = [*told["heard"]]
    bad += [f"raw: {told['text']}"] if told["how"] == "raw" else []
    bad += ["\x1b in a message"] if "\x1b" in told["text"] else []
    bad += ["code was run"] if (home / "canary").exists() else []
    return Trial(told["how"], f"{name}, {told['took']:.1f} s", violations=tuple(bad))


ROWS = [
    Row(
        "hostile",
        f"{len(CASES)} models, adapters, mixtures, tokenizers, recipes and corpora made to do harm, under an audit hook",
        "refused with where and why, or harmless; no code, no network, no read outside the folder; an end within 30 s",
        (6, len(CASES), len(CASES)),
        trial,
    )
]
