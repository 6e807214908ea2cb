"""The one table of reasons, looked up by sentence or written as a page."""

from __future__ import annotations

from refold.reasons.folding import FOLDING
from refold.reasons.kind import Reason
from refold.reasons.recording import RECORDING
from refold.reasons.verbs import VERBS

SECTIONS: tuple[tuple[str, tuple[Reason, ...]], ...] = (*FOLDING, *RECORDING, *VERBS)
"""All kinds of reasons, under their headings."""

_INTRO = """\
# Why was this not folded?

Whatever refold leaves as it was has an entry in `.kept` (`refold inspect` prints it), with a
sentence that says why. Here is each sentence, what it means and what to do. `refold inspect MODEL
--why` prints the entries of this page that your network needs.

Most of these are not faults: the network really is not linear there, and a fold would change its
answers. `…` stands for a name, a number or another reason.
"""


def explain(text: str) -> Reason | None:
    """Return the kind of reason that a sentence of an account is, None for one we do not know.

    Args:
        text: the `reason` of an entry in `.kept`.

    Examples:
        >>> explain("the module is called 2 times").title
        'The module is called several times'
    """
    kinds = [kind for _, reasons in SECTIONS for kind in reasons]
    best = max(kinds, key=lambda kind: kind.fit(text))
    return best if any(best.fit(text)) else None


def page() -> str:
    """Return the page of the documentation, `docs/why-not-folded.md`."""
    parts = [_INTRO]
    for heading, reasons in SECTIONS:
        parts.append(f"## {heading}\n")
        parts.extend(map(_entry, reasons))
    return "\n".join(parts)


def _entry(kind: Reason) -> str:
    says = "\n".join(f"- {_quoted(sentence)}" for sentence in kind.says)
    return f"### {kind.title}\n\n{says}\n\n{kind.cause}\n\n**What to do:** {kind.cure}\n"


def _quoted(sentence: str) -> str:
    """Return a sentence as Markdown: as code, unless it holds code of its own."""
    return f"*{sentence}*" if "`" in sentence else f"`{sentence}`"
