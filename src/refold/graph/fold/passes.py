"""The passes of a fold, in order."""

from __future__ import annotations

from refold.graph.fold.computed_weights import store_constants, store_weights
from refold.graph.fold.fold_pass import FoldPass
from refold.graph.fold.leftovers import drop_idle, drop_layouts, drop_repeats, drop_unread
from refold.graph.fold.merges.parallel_paths import merge_siblings
from refold.graph.fold.merges.shared_weights import merge_readers
from refold.graph.fold.merges.summed_slices import add_slices
from refold.graph.fold.norms.ahead_of_pools import push_through_pools
from refold.graph.fold.norms.behind_pools import pull_through_pools
from refold.graph.fold.norms.gains import push_gains
from refold.graph.fold.norms.repeated import fold_repeated
from refold.graph.fold.norms.shared import push_into_readers
from refold.graph.fold.norms.slices import pull_from_slices
from refold.graph.fold.objections import keep_code_that_pads, must_hold
from refold.graph.fold.record import Kept
from refold.graph.fold.setbacks import LeftAlone, SetbackError
from refold.graph.fold.spellings.assigned_slices import join_assigned_slices
from refold.graph.fold.spellings.borders import pad_before_layers
from refold.graph.fold.spellings.laid_out_sums import add_before_layouts
from refold.graph.fold.spellings.relayout import unify_layouts, unify_reads
from refold.graph.fold.survey import survey
from refold.graph.fold.value_biases import push_value_biases
from refold.graph.lift.lifter import Lifter
from refold.graph.policy import Policy
from refold.graph.surgery.editor import Editor
from refold.graph.trace.capture import Capture


def folded(capture: Capture, policy: Policy, left: LeftAlone) -> tuple[FoldPass, list[Kept]]:
    """Fold the graph of a capture, and say what stays; nothing of the model is edited yet.

    Args:
        capture: of a model, or of a file.
        policy: which merges may cost more, and which parts stay apart.
        left: the steps to leave alone.

    Raises:
        SetbackError: when a step, or after any other error the whole capture, must be left alone
            that is not yet in `left`.
    """
    try:
        fold = _folded(capture, policy, left)
        return fold, survey(fold)
    except SetbackError:
        raise
    except Exception as error:  # whatever it is, it must not cost the other captures
        raise left.setback([], error) from error


def _folded(capture: Capture, policy: Policy, left: LeftAlone) -> FoldPass:
    capture.stays.update(left.kept_calls(capture.graph))
    keep_code_that_pads(capture)
    fold = FoldPass(Lifter.of(capture), Editor(capture), policy, left)
    if join_assigned_slices(fold):
        fold.lift_anew()
    if pad_before_layers(fold):
        fold.lift_anew()
    unify_layouts(fold.lifter, fold.editor)
    unify_reads(fold.lifter, fold.editor)
    if policy.drop_unread:
        drop_unread(fold)
    drop_repeats(fold)
    drop_idle(fold)
    add_before_layouts(fold)
    if merge_readers(fold):
        drop_idle(fold)
    fold_repeated(fold)
    merge_siblings(fold)
    fold.run()
    while _more(fold):
        fold.run()
    while drop_layouts(fold):  # what is one value now may be a branch of a join
        fold.run(chains=False)
    store_weights(fold)
    store_constants(fold)
    push_gains(fold)
    push_value_biases(fold)
    must_hold(fold)
    return fold


def _more(fold: FoldPass) -> bool:
    """Do what a region alone does not show; return whether anything was done."""
    done = push_into_readers(fold) or merge_siblings(fold) or pull_from_slices(fold)
    return done or pull_through_pools(fold) or push_through_pools(fold) or add_slices(fold)
