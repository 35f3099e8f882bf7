"""The rule that recommends one member of a sweep."""

from __future__ import annotations

from mmprod.evaluation.choose import Candidate, choose


def member(name: str, bits: float, psnr: float, usage: float | None = 1.0) -> Candidate:
    return Candidate(name, 64 * bits, 64, psnr, usage)


def test_goes_on_while_a_bit_is_worth_it() -> None:
    members = [member("a", 8, 20.0), member("b", 10, 21.0), member("c", 12, 21.2)]
    found = choose(members, worth=0.25)
    assert found.name == "b"
    assert any(
        "a -> b" in reason and "0.50 dB a bit: worth it" in reason for reason in found.reasons
    )
    assert any("b -> c" in reason and "not worth it" in reason for reason in found.reasons)
    assert choose(members, worth=0.05).name == "c"
    assert choose(members, worth=0.6).name == "a"


def test_unhealthy_members_are_named_and_left_out() -> None:
    found = choose([member("a", 8, 20.0), member("b", 9, 25.0, usage=0.4)])
    assert found.name == "a"
    assert any("b is left out: only 40.0%" in reason for reason in found.reasons)
    assert choose([member("a", 8, 20.0, usage=0.1)]).name is None


def test_a_beaten_member_is_not_on_the_front() -> None:
    found = choose([member("a", 8, 20.0), member("b", 8.5, 19.0), member("c", 10, 24.0)])
    assert found.name == "c"
    assert any(reason.startswith("b is not on the front: a is") for reason in found.reasons)


def test_a_dent_in_the_front_is_skipped() -> None:
    # a -> b alone is not worth it, a -> c is: the hull goes from a to c.
    found = choose([member("a", 8, 20.0), member("b", 10, 20.2), member("c", 11, 22.0)])
    assert found.name == "c"
    assert any(
        reason.startswith("b is not on the front: its neighbours") for reason in found.reasons
    )


def test_a_bit_is_a_bit_whatever_the_grid() -> None:
    coarse = Candidate("coarse", 64 * 10, 64, 23.0, 1.0)
    fine = Candidate("fine", 256 * 10, 256, 26.0, 1.0)  # 30 bits per coarse token for 3 dB
    assert choose([coarse, fine]).name == "coarse"
    assert choose([coarse, fine], worth=0.09).name == "fine"


def test_usage_that_was_not_recorded_does_not_count_against() -> None:
    found = choose([member("a", 8, 20.0, usage=None)])
    assert found.name == "a"
    assert "only one" in found.reasons[-1]
