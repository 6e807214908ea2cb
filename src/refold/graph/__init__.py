"""Record any module as flat graphs, fold them, and write the result back into a structural copy.

Rooms, lowest first: `copies`, `trace`, then `lift` and `surgery` (neither knows the other), then
`fold`. Whoever stands outside imports from here only.
"""

from __future__ import annotations

from refold.graph.agreement import wrong_step
from refold.graph.calls import Call, canonical, is_question, name_of, place_of
from refold.graph.copies.held import held_tensors, storage_key
from refold.graph.copies.modules import submodule
from refold.graph.copies.owned import duplicate, own_tensors
from refold.graph.copies.skeleton import INSIDE, copy_module, skeleton
from refold.graph.copies.wrappers import unwrap
from refold.graph.driver import (
    FoldedGraph,
    FoldedModel,
    fold_graph,
    fold_model,
)
from refold.graph.fold.lower import NEW_CONV, Like, like_of, lower
from refold.graph.fold.record import COMPUTED, Fold, Kept
from refold.graph.fold.region import Regions
from refold.graph.layers import (
    ChannelClamp,
    ChannelSlope,
    Crop,
    Cropped,
    DepthToSpace,
    HardGate,
    ScaleShift,
    SelectChannels,
    WholeWindows,
)
from refold.graph.lift.activations import Activation, Limit, activation
from refold.graph.lift.constants import Constants
from refold.graph.lift.interval import UNKNOWN, Interval, point
from refold.graph.lift.lifter import Lifter
from refold.graph.lift.links import Link, flat, link, passed_on, pools
from refold.graph.lift.modules import lift_module
from refold.graph.lift.piece import Piece
from refold.graph.lift.ranges import Ranges, through
from refold.graph.lift.windows import conv_axes, transposed_axes
from refold.graph.lift.written_out import written_out
from refold.graph.rewriting import Rewritten, rewrite
from refold.graph.surgery.editor import Editor
from refold.graph.surgery.edits import UnwritableError, alive
from refold.graph.threads import outside_modes, undisturbed
from refold.graph.trace.arguments import Named, call, parted
from refold.graph.trace.capture import Capture, Shapes, capture, capture_all, leaf_modules
from refold.graph.trace.frames import Frame, frame_of, nodes_in, walk
from refold.graph.trace.leaves import is_layer, pinned_reason
from refold.graph.trace.overridden import disguise, layer_class
from refold.graph.trace.recording import run_blank
from refold.graph.trace.state import Attributes, StateChangeError, untouched
from refold.graph.trace.surroundings import surroundings_kept

__all__ = [
    "COMPUTED",
    "INSIDE",
    "NEW_CONV",
    "UNKNOWN",
    "Activation",
    "Attributes",
    "Call",
    "Capture",
    "ChannelClamp",
    "ChannelSlope",
    "Constants",
    "Crop",
    "Cropped",
    "DepthToSpace",
    "Editor",
    "Fold",
    "FoldedGraph",
    "FoldedModel",
    "Frame",
    "HardGate",
    "Interval",
    "Kept",
    "Lifter",
    "Like",
    "Limit",
    "Link",
    "Named",
    "Piece",
    "Ranges",
    "Regions",
    "Rewritten",
    "ScaleShift",
    "SelectChannels",
    "Shapes",
    "StateChangeError",
    "UnwritableError",
    "WholeWindows",
    "activation",
    "alive",
    "call",
    "canonical",
    "capture",
    "capture_all",
    "conv_axes",
    "copy_module",
    "disguise",
    "duplicate",
    "flat",
    "fold_graph",
    "fold_model",
    "frame_of",
    "held_tensors",
    "is_layer",
    "is_question",
    "layer_class",
    "leaf_modules",
    "lift_module",
    "like_of",
    "link",
    "lower",
    "name_of",
    "nodes_in",
    "outside_modes",
    "own_tensors",
    "parted",
    "passed_on",
    "pinned_reason",
    "place_of",
    "point",
    "pools",
    "rewrite",
    "run_blank",
    "skeleton",
    "storage_key",
    "submodule",
    "surroundings_kept",
    "through",
    "transposed_axes",
    "undisturbed",
    "untouched",
    "unwrap",
    "walk",
    "written_out",
    "wrong_step",
]
