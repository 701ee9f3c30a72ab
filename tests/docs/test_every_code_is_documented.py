"""Every stable code that the source can say is explained, and nothing is explained that it cannot say."""

from __future__ import annotations

from docs._generate.codes import CODES
from docs._generate.errors import SECTIONS
from docs._generate.scan import codes


def test_every_code_in_the_source_is_explained() -> None:
    unexplained = sorted(codes().keys() - CODES.keys())
    assert not unexplained, f"explain in docs/_generate/codes.py, then say `make docs`: {unexplained}"


def test_nothing_is_explained_that_the_source_cannot_say() -> None:
    unsaid = sorted(CODES.keys() - codes().keys())
    assert not unsaid, f"take out of docs/_generate/codes.py, then say `make docs`: {unsaid}"


def test_every_code_stands_in_a_section() -> None:
    assert {who for whos in codes().values() for who in whos} <= SECTIONS.keys()


def test_the_source_is_searched_in_every_form_in_which_a_code_is_said() -> None:
    found = codes()
    assert "command" in found["forbidden_state"]  # an exception's first argument
    assert "command" in found["duplicate_command"]  # a keyword of an answer
    assert "operation" in found["deadline_exceeded"]  # a variable, chosen among several
    assert "operation" in found["guest_error"]  # an exception's class, chosen among several
    assert "client" in found["timeout"]  # handed on by a subclass
    assert "process" in found["store_in_use"]  # said in a docstring


def test_every_code_says_what_it_means_and_what_to_do() -> None:
    assert all(meaning.endswith(".") and advice.endswith(".") for meaning, advice in CODES.values())
