"""The feature store: a frozen trunk's output for a sample, kept under (trunk id, sample digest, view) and never computed twice.

A trunk's features are stored as shards: safetensors files that appear whole and never change, each with its keys and
checksums in its header and named by that header's digest. The index is the union of the headers, so that any number of
writers extends it without a lock, and the layout needs nothing that an object store lacks: shards lie in a folder, or below
a prefix of a bucket, where they are put and listed; they are then read from copies on this machine.

Safetensors was chosen by measurement (tests/benchmarks/feature_storage.py): random batches take as long from memory-mapped
npy, safetensors and Arrow files, Parquet decodes whole shards for them, and safetensors alone keeps bfloat16 and is a
dependency of `heads` already. Shards are read by position and not mapped: as fast, and a reader's memory stays the size of
its batches, where the pages of a mapping count as the process's own.
"""

from heads.features.keys import Key, trunk_id
from heads.features.reading import Features
from heads.features.shards import FeatureError
from heads.features.store import DamagedShard, FeatureStore, Freed, TrunkStatus
from heads.features.trunk import TrunkFeatures

__all__ = ["DamagedShard", "FeatureError", "FeatureStore", "Features", "Freed", "Key", "TrunkFeatures", "TrunkStatus", "trunk_id"]
