"""Every reason why something was left as it was: what it says, its cause and its cure."""

from refold.reasons.kind import Reason as Reason
from refold.reasons.table import SECTIONS as SECTIONS
from refold.reasons.table import explain as explain
from refold.reasons.table import page as page
