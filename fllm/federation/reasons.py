"""Why a client was left out of a round, in words of ours: what a client writes could quote a note, or be made up."""

from __future__ import annotations

import builtins
import re

from flwr.app import Error

NO_ANSWER = "no answer in time"
OTHER_FORM = "reply of another form"
CLIENT_FAILED, PROCESS_DIED, TOO_LATE = 2, 8, 9
"""Codes of errors of clients that raised, whose process ended, and that were given up; Flower's own but the last."""
_KNOWN = {name for name in vars(builtins) if name.endswith(("Error", "Exception", "Interrupt", "Exit"))} | {
    "InputError", "OutOfMemoryError", "ProtocolRefused", "SafetensorError", "ValueOutOfRange",
}  # fmt: skip
"""Types of exceptions that a client's application may name."""
_DIED = re.compile(r"its process died \(exit code -?\d{1,5}\)")
_OF_CODE = {
    1: "its application could not be loaded", 3: NO_ANSWER, 4: NO_ANSWER, 5: "its node is gone",
    6: "its application refused the message", 7: "its node does not take this application",
    PROCESS_DIED: "its process died", TOO_LATE: NO_ANSWER,
}  # fmt: skip
"""Of errors of Flower's processes, whose own words name nodes by numbers that differ from run to run."""


def reason_of(error: Error) -> str:
    """Return the reason that stands for an error: the type of an exception if it is a known one, or words of ours."""
    told = error.reason or ""
    if error.code == CLIENT_FAILED:
        return told if told in _KNOWN else "it raised an exception"
    if error.code == PROCESS_DIED and _DIED.fullmatch(told):
        return told
    return _OF_CODE.get(error.code, "it could not answer")
