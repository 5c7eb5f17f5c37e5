"""Bundles brought to this machine, wherever their files come from: whole, checked, and into place in one step."""

from flows.pulling.bringing import BLOCK_BYTES, Files, Folder, bring, digest_of_file
from flows.pulling.placing import InTheWay

__all__ = ["BLOCK_BYTES", "Files", "Folder", "InTheWay", "bring", "digest_of_file"]
