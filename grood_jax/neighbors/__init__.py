"""Exact nearest neighbours in banks of vectors, on one device or many."""

from grood_jax.neighbors.bank import Bank, ShardedBank
from grood_jax.neighbors.building import (
    bank_rows,
    build_bank,
    build_bank_in_pieces,
    grow_bank,
    merge_banks,
    thin_bank,
)
from grood_jax.neighbors.searching import nearest_distances
from grood_jax.neighbors.sharding import shard_bank

__all__ = [
    "Bank",
    "ShardedBank",
    "bank_rows",
    "build_bank",
    "build_bank_in_pieces",
    "grow_bank",
    "merge_banks",
    "nearest_distances",
    "shard_bank",
    "thin_bank",
]
