"""All read models that follow from the log, in the order in which they take a page."""

from __future__ import annotations

from projections import commands, history, instances, operations, quota

MODELS = (commands.MODEL, operations.MODEL, instances.MODEL, quota.MODEL, history.MODEL)
