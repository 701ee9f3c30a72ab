"""User data hold a token, so what Nova would refuse, and repeat in its error, is not sent."""

from __future__ import annotations

import pytest

from engine.clouds.openstack.servers import USER_DATA, encoded
from engine.clouds.port import FinalError


def test_what_is_too_long_is_refused_without_a_word_of_it() -> None:
    with pytest.raises(FinalError) as raised:
        encoded(b"token" * USER_DATA)
    assert raised.value.code == "invalid_argument"
    assert "dG9rZW4" not in raised.value.message


def test_what_fits_is_encoded() -> None:
    assert encoded(b"token") == "dG9rZW4="
