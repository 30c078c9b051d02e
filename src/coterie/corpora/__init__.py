"""From documents to what is trained on: read, split, tokenize, pack, order. No torch."""

from coterie.corpora.blocks import Blocks, blocks
from coterie.corpora.documents import documents
from coterie.corpora.order import Order
from coterie.corpora.splits import split_tokens
from coterie.corpora.tokenizer import tokenizer

__all__ = ["Blocks", "Order", "blocks", "documents", "split_tokens", "tokenizer"]
