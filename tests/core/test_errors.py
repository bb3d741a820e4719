"""The core's one exception."""

from __future__ import annotations

import pickle

from dco_core.errors import DCOError


def test_an_error_is_named_without_its_module_and_travels_between_processes():
    error = DCOError("rank is 0:\nset it to 1 or more.")
    assert DCOError.__module__ == "builtins"  # the host puts no path of modules before the name of such a class
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is DCOError and str(again) == str(error) == "rank is 0:\\nset it to 1 or more."
