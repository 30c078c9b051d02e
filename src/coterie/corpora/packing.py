"""Best-fit-decreasing bin packing: pieces of documents into sequences of one length.

Longest first, each into the fullest sequence that still has room: at most 11/9 of the fewest possible sequences plus one,
and for texts nearly always the fewest. Rooms are kept by size, with one bit for each size that is in use, so finding the
best room is a shift of one integer and not a search.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64


def pack(length_P: Int64[np.ndarray, " P"], capacity: int) -> Int64[np.ndarray, " P"]:
    """The sequence of every piece.

    Args:
        length_P: tokens of each piece, 1 to ``capacity``.
        capacity: tokens of a sequence.

    Returns:
        Sequence numbers. Sequences are numbered by their earliest piece, so the numbering follows the pieces' order.
        Equal input gives equal output.
    """
    assert len(length_P) == 0 or (length_P.min() >= 1 and length_P.max() <= capacity)
    rooms: list[list[int]] = [[] for _ in range(capacity + 1)]
    in_use = 0
    sequence_P = np.empty(len(length_P), dtype=np.int64)
    count = 0
    for piece in np.argsort(-length_P, kind="stable").tolist():
        length = int(length_P[piece])
        fitting = in_use >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            sequence = rooms[room].pop()
            if not rooms[room]:
                in_use &= ~(1 << room)
        else:
            room, sequence, count = capacity, count, count + 1
        sequence_P[piece] = sequence
        if left := room - length:
            rooms[left].append(sequence)
            in_use |= 1 << left
    _, first, inverse = np.unique(sequence_P, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]
