"""Bad arguments of sigmoid_varlen_attention and sigmoid_decode."""

import torch

from sigmoid_attention.attention import sigmoid_decode, sigmoid_varlen_attention
from tests.support.attention.complaints import (
    WRONG_TYPES,
    WRONG_VALUES,
    assert_sentence,
    complaint,
    longs,
    no_tensors,
    not_dense,
    ones,
    table,
)

PACKED = {
    "query": ones(5, 4, 3),
    "key": ones(7, 4, 3),
    "value": ones(7, 4, 6),
    "cu_seq_q": longs(0, 2, 5),
    "cu_seq_k": longs(0, 3, 7),
    "max_q": 3,
    "max_k": 4,
    "bias": -1.0,
}

VARLEN_TYPES = (
    WRONG_TYPES
    | no_tensors("query", "key", "value", "cu_seq_q", "cu_seq_k")
    | {
        "max-half": ({"max_q": 3.5}, "max_q", ("3.5",)),
        "max-word": ({"max_k": "4"}, "max_k", ("4",)),
        "max-none": ({"max_k": None}, "max_k", ("None",)),
    }
)
VARLEN_VALUES = (
    WRONG_VALUES
    | not_dense("query", "key", "value", "cu_seq_q", "cu_seq_k")
    | {
        "max-huge": ({"max_q": 10**400}, "max_q", ("max_q",)),
        "max-negative": ({"max_q": -1}, "max_q", ("-1",)),
        "query-integer": ({"query": ones(5, 4, 3).long()}, "query", ("fp16", "torch.int64")),
        "key-dtype": ({"key": ones(7, 4, 3).double()}, "key", ("torch.float64", "torch.float32")),
        "query-of-four-dims": (
            {"query": ones(1, 5, 4, 3)},
            "query",
            ("(tokens, heads, dim)", "(1, 5,"),
        ),
        "value-of-two-dims": ({"value": ones(7, 4)}, "value", ("(tokens, heads, dim)", "(7, 4)")),
        "key-head-dim": ({"key": ones(7, 4, 5)}, "key", ("head dim", "(7, 4, 5)", "(5, 4, 3)")),
        "value-tokens": ({"value": ones(6, 4, 6)}, "value", ("tokens", "(6, 4, 6)", "(7, 4, 3)")),
        "fewer-key-heads-without-gqa": (
            {"key": ones(7, 2, 3), "value": ones(7, 2, 6)},
            "key",
            ("2 heads", "4 query heads", "enable_gqa=True"),
        ),
        "key-heads-that-do-not-divide": (
            {"key": ones(7, 3, 3), "value": ones(7, 3, 6), "enable_gqa": True},
            "key",
            ("3 heads", "do not divide", "4 query heads"),
        ),
        "ends-of-two-dims": (
            {"cu_seq_q": longs(0, 2, 5)[None]},
            "cu_seq_q",
            ("(sequences + 1,)", "(1, 3)"),
        ),
        "ends-of-nothing": ({"cu_seq_q": longs(0)}, "cu_seq_q", ("(sequences + 1,)", "(1,)")),
        "ends-floating": (
            {"cu_seq_q": longs(0, 2, 5).float()},
            "cu_seq_q",
            ("int32", "torch.float32"),
        ),
        "ends-short": ({"cu_seq_k": longs(0, 7)}, "cu_seq_k", ("(3,)", "(2,)")),
        "ends-not-from-zero": (
            {"cu_seq_q": longs(1, 2, 5)},
            "cu_seq_q",
            ("from 0 to", "5", "[1, 2, 5]"),
        ),
        "ends-before-the-last-token": (
            {"cu_seq_k": longs(0, 3, 6)},
            "cu_seq_k",
            ("7", "[0, 3, 6]"),
        ),
        "ends-that-fall": ({"cu_seq_k": longs(0, 8, 7)}, "cu_seq_k", ("rise", "[0, 8, 7]")),
        "ends-elsewhere": (
            {"cu_seq_k": torch.zeros(3, dtype=torch.int64, device="meta")},
            "cu_seq_k",
            ("device", "meta", "cpu"),
        ),
        "max-below-the-longest-query": ({"max_q": 2}, "max_q", ("longest sequence", "3", "2")),
        "max-below-the-longest-key": ({"max_k": 1}, "max_k", ("longest sequence", "4", "1")),
        "dropout-of-all": ({"dropout_p": 1.0}, "dropout_p", ("below 1", "1.0")),
        "bias-of-other-shape": (
            {"bias": ones(2, 4, 3, 5)},
            "bias",
            ("broadcast", "(2, 4, 3, 4)", "(2, 4, 3, 5)"),
        ),
        "no-bias": ({"bias": None}, "bias", ("training length", "NegLogLength(1024)")),
    }
)


@table(types=VARLEN_TYPES, values=VARLEN_VALUES)
def test_sigmoid_varlen_attention_refuses(error, wrong, name, mentions):
    assert sigmoid_varlen_attention(**PACKED).shape == (5, 4, 6)
    assert_sentence(complaint(error, sigmoid_varlen_attention, PACKED | wrong), name, mentions)


CACHED = {
    "query": ones(2, 4, 1, 3),
    "key_cache": ones(2, 4, 7, 3),
    "value_cache": ones(2, 4, 7, 6),
    "seqused_k": longs(7, 4),
    "is_causal": True,
    "bias": -1.0,
}
PAGES = {
    "key_cache": ones(5, 2, 4, 3),
    "value_cache": ones(5, 2, 4, 6),
    "block_table": torch.tensor([[0, 1, 2, 3], [4, 3, 0, 0]]),
}

DECODE_TYPES = (
    WRONG_TYPES
    | no_tensors("query", "key_cache", "value_cache", "seqused_k")
    | no_tensors("block_table", but=("none",))
)
DECODE_VALUES = (
    WRONG_VALUES
    | not_dense("query", "key_cache", "value_cache", "seqused_k", "block_table")
    | {
        "query-of-three-dims": ({"query": ones(4, 1, 3)}, "query", ("(batch, heads,", "(4, 1, 3)")),
        "key-dtype": (
            {"key_cache": ones(2, 4, 7, 3).half()},
            "key_cache",
            ("query", "torch.float16"),
        ),
        "value-elsewhere": (
            {"value_cache": ones(2, 4, 7, 6, device="meta")},
            "value_cache",
            ("query's device", "meta", "cpu"),
        ),
        "key-batch": ({"key_cache": ones(3, 4, 7, 3)}, "key_cache", ("batch", "(3, 4, 7, 3)")),
        "value-length": (
            {"value_cache": ones(2, 4, 8, 6)},
            "value_cache",
            ("length", "(2, 4, 8, 6)"),
        ),
        "fewer-key-heads-without-gqa": (
            {"key_cache": ones(2, 2, 7, 3), "value_cache": ones(2, 2, 7, 6)},
            "key_cache",
            ("2 heads", "4 query heads", "enable_gqa=True"),
        ),
        "used-beyond-capacity": ({"seqused_k": longs(8, 4)}, "seqused_k", ("capacity 7", "4 to 8")),
        "used-negative": ({"seqused_k": longs(7, -1)}, "seqused_k", ("0 to", "-1 to 7")),
        "used-of-other-batch": ({"seqused_k": longs(7)}, "seqused_k", ("(2,)", "(1,)")),
        "used-floating": (
            {"seqused_k": longs(7, 4).float()},
            "seqused_k",
            ("int32", "torch.float32"),
        ),
        "used-elsewhere": (
            {"seqused_k": torch.zeros(2, dtype=torch.int32, device="meta")},
            "seqused_k",
            ("device", "meta", "cpu"),
        ),
        "bias-of-other-shape": (
            {"bias": ones(2, 4, 1, 4)},
            "bias",
            ("broadcast", "(2, 4, 1, 7)", "(2, 4, 1, 4)"),
        ),
        "no-bias": ({"bias": None}, "bias", ("trained", "NegLogLength(1024)")),
        "pages-of-three-dims": (
            PAGES | {"key_cache": ones(5, 2, 3)},
            "key_cache",
            ("pages", "(5, 2, 3)"),
        ),
        "pages-head-dim": (
            PAGES | {"key_cache": ones(5, 2, 4, 7)},
            "key_cache",
            ("head dim", "(5, 2, 4, 7)", "(2, 4, 1, 3)"),
        ),
        "pages-of-other-size": (
            PAGES | {"value_cache": ones(5, 3, 4, 6)},
            "value_cache",
            ("page size", "(5, 3, 4, 6)", "(5, 2, 4, 3)"),
        ),
        "fewer-pages-of-values": (
            PAGES | {"value_cache": ones(4, 2, 4, 6)},
            "value_cache",
            ("pages", "(4, 2, 4, 6)", "(5, 2, 4, 3)"),
        ),
        "pages-of-fewer-key-heads-without-gqa": (
            PAGES | {"key_cache": ones(5, 2, 2, 3), "value_cache": ones(5, 2, 2, 6)},
            "key_cache",
            ("2 heads", "4 query heads", "enable_gqa=True"),
        ),
        "used-beyond-the-table": (
            PAGES | {"seqused_k": longs(9, 4)},
            "seqused_k",
            ("capacity 8", "4 to 9"),
        ),
        "table-without-a-row": (
            PAGES | {"block_table": longs(0, 1)[None]},
            "block_table",
            ("batch 2", "(1, 2)"),
        ),
        "table-floating": (
            PAGES | {"block_table": PAGES["block_table"].float()},
            "block_table",
            ("int32", "torch.float32"),
        ),
        "table-of-a-page-that-is-not": (
            PAGES | {"block_table": torch.tensor([[0, 5], [1, 2]])},
            "block_table",
            ("0 to 4", "0 to 5"),
        ),
        "table-of-a-negative-page": (
            PAGES | {"block_table": torch.tensor([[0, -1], [1, 2]])},
            "block_table",
            ("0 to 4", "-1 to 2"),
        ),
        "table-elsewhere": (
            PAGES | {"block_table": torch.zeros(2, 4, dtype=torch.int64, device="meta")},
            "block_table",
            ("device", "meta", "cpu"),
        ),
        "used-beyond-the-pages": (
            PAGES | {"seqused_k": longs(9, 4)},
            "seqused_k",
            ("capacity 8", "9"),
        ),
    }
)


@table(types=DECODE_TYPES, values=DECODE_VALUES)
def test_sigmoid_decode_refuses(error, wrong, name, mentions):
    assert sigmoid_decode(**CACHED).shape == (2, 4, 1, 6)
    assert sigmoid_decode(**(CACHED | PAGES)).shape == (2, 4, 1, 6)
    assert_sentence(complaint(error, sigmoid_decode, CACHED | wrong), name, mentions)
