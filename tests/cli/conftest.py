"""What tests of the command share."""

from __future__ import annotations

import pytest

from attlas.cli import main


@pytest.fixture
def attlas_says(capsys):
    """Runs the command in this process: (exit code, standard output, standard error)."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(attlas_says):
    """The message of a command that exits with 2."""

    def run(*arguments):
        code, _, error = attlas_says(*arguments)
        assert code == 2, error
        assert error.startswith("attlas: ") and "Traceback" not in error
        return error

    return run
