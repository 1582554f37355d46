"""What `make audit` makes of pip-audit's reports."""

from tests.audit import verdict

GOOD = {"name": "good", "version": "1.0", "vulns": []}
BAD = {"name": "bad", "version": "2.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"], "aliases": []}]}
UNKNOWN = {"name": "torch", "skip_reason": "not found"}


def test_a_vulnerability_fails_and_is_named() -> None:
    code, text = verdict({"dependencies": [GOOD, BAD, UNKNOWN]})
    assert code == 1
    assert "bad 2.0: PYSEC-1, fixed in 2.1" in text
    assert "torch" in text


def test_none_passes() -> None:
    assert verdict({"dependencies": [GOOD]}) == (0, "1 packages audited, 0 known vulnerabilities")


def test_a_service_that_cannot_be_asked_is_told_not_passed_over() -> None:
    code, text = verdict({"dependencies": [UNKNOWN, UNKNOWN]})
    assert code == 0
    assert text.startswith("NOT AUDITED")
