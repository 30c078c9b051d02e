"""Limits of a chat template, which is a program that came with a model.

transformers renders it in Jinja's sandbox, which keeps it from Python's own things and from long ranges, but neither from
loops in loops nor from texts as long as memory. Here loops end with a limit of time. Of long texts only the plain ways are
seen (products and powers): one that is doubled again and again may take memory for as long as that limit.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jinja2
from jinja2 import nodes

from coterie.errors import RequestError


class LateError(Exception):
    """Raised in the thread that renders."""


def require_small(template: str) -> None:
    """RequestError if a template repeats texts or raises numbers to powers, as no template of chat needs to."""
    plain = {"generation": "if true", "endgeneration": "endif"}  # a tag of transformers' own
    text = re.sub(r"(?<=\{%|%-)(\s*)(generation|endgeneration)\b", lambda m: m[1] + plain[m[2]], template)
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(text)
    except (jinja2.TemplateError, RecursionError):
        return  # transformers says itself what is wrong
    for product in tree.find_all((nodes.Mul, nodes.Pow)):
        if isinstance(product, nodes.Pow) or _large(product.left) or _large(product.right):
            raise RequestError(
                "the chat template makes texts without end",
                where="base: chat_template",
                expected="no power, and no product with a number above 1,000",
                found=f"line {product.lineno}",
                do="take it out of the template",
            )


def _large(side: nodes.Node) -> bool:
    if isinstance(side, nodes.Const):
        return isinstance(side.value, int | float) and side.value > 1000
    return isinstance(side, nodes.Mul | nodes.Pow)


@contextmanager
def ended_within(seconds: float) -> Iterator[None]:
    """LateError, in this thread, once it has taken longer."""
    thread, lock, over = threading.get_ident(), threading.Lock(), False

    def end() -> None:
        with lock:
            if not over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(LateError))

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            over = True
        timer.cancel()
