"""A rule without cases fails here: `rules/cases.py` names what each accepts and refuses."""

from __future__ import annotations

import re

import pytest

from refold.rules import RULES, Rule
from rules.cases import CASES


def test_names_are_unique() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_a_rule_is_undone_by_one_of_the_others() -> None:
    names = {rule.name for rule in RULES}
    assert all(rule.undone_by in names - {rule.name} for rule in RULES if rule.undone_by)


def test_every_rule_has_a_row_and_every_row_a_rule() -> None:
    assert set(CASES) == {rule.name for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_says_what_it_is(rule: Rule) -> None:
    assert rule.exact
    assert rule.source
    assert rule.function.__doc__
    assert re.fullmatch(r"[a-z]+(_[a-z]+)+", rule.name)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_has_cases(rule: Rule) -> None:
    row = CASES[rule.name]
    assert row.accepts
    assert row.refuses
    if not rule.exact.startswith("always"):
        assert any(reason for _, reason in row.refuses), "a condition needs a case that breaks it"
