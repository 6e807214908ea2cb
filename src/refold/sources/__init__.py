"""Networks by name: what a MODEL is, built without downloading anything."""

from __future__ import annotations
