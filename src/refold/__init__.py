"""refold: train with every branch, deploy one — any network, proven exact."""

from __future__ import annotations

# First: what the command line needs before torch is imported; does nothing in a library.
from refold.cli import entry as _entry  # noqa: F401  # pyright: ignore[reportUnusedImport]

# isort: split
from refold import bench as bench
from refold import blocks as blocks
from refold import branches as branches
from refold import checkpoint as checkpoint
from refold import equivalence as equivalence
from refold import errors as errors
from refold import exporting as exporting
from refold import models as models
from refold import onnx_files as onnx_files
from refold import pruning as pruning
from refold import reporting as reporting
from refold import residuals as residuals
from refold import streaming as streaming
from refold import training as training
from refold import transforms as transforms
from refold import tuning as tuning
from refold.bench import benchmark as benchmark
from refold.branches import collapse as collapse
from refold.branches import expand as expand
from refold.checkpoint import load_checkpoint as load_checkpoint
from refold.equivalence import Equivalence as Equivalence
from refold.equivalence import verify as verify
from refold.errors import RefoldError as RefoldError
from refold.exporting import export as export
from refold.folding import reparameterize as reparameterize
from refold.models import create_model as create_model
from refold.models import list_models as list_models
from refold.onnx_files import OnnxReport as OnnxReport
from refold.onnx_files import fold_onnx as fold_onnx
from refold.planning import Plan as Plan
from refold.planning import plan as plan
from refold.pruning import prune as prune
from refold.reporting import report as report
from refold.residuals import remove_residuals as remove_residuals
from refold.training import study as study
from refold.training import train as train
from refold.tuning import tune as tune

__version__ = "0.1.0"

__all__ = [
    "Equivalence",
    "OnnxReport",
    "Plan",
    "RefoldError",
    "bench",
    "benchmark",
    "blocks",
    "branches",
    "checkpoint",
    "collapse",
    "create_model",
    "equivalence",
    "errors",
    "expand",
    "export",
    "exporting",
    "fold_onnx",
    "list_models",
    "load_checkpoint",
    "models",
    "onnx_files",
    "plan",
    "prune",
    "pruning",
    "remove_residuals",
    "reparameterize",
    "report",
    "reporting",
    "residuals",
    "streaming",
    "study",
    "train",
    "training",
    "transforms",
    "tune",
    "tuning",
    "verify",
]


def __dir__() -> list[str]:
    """Return what is for users, which a shell completes; the other rooms can be imported, too."""
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
