"""sbatch by way of submitit, with our own text.

submitit pickles a function and writes the script that calls it. Here the script is final before
it gets there, so three of its private hooks are replaced, and nothing is pickled; a test holds
on to those hooks.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import StepFailed


class Refused(StepFailed):
    """sbatch did not take the job; the message is its own."""


def hand_over(text: str, argv: Sequence[str], *, environment: Mapping[str, str]) -> str:
    """Submit a batch script with the command ``argv``; the number of the job.

    Raises ``Refused`` when sbatch says no.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    with tempfile.TemporaryDirectory() as folder, replaced(environment):
        executor = make_executor(text, argv, Path(folder))
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # the error has the same words
                return str(executor._submit_command("").job_id)
        except (FailedJobError, FailedSubmissionError, OSError, RuntimeError) as error:
            raise Refused(str(error).strip() or "sbatch failed without a word") from None


def make_executor(text: str, argv: Sequence[str], folder: Path) -> Any:
    """submitit's executor for Slurm, which submits ``text`` with ``argv`` as they are."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedSubmissionError

    class WholeScript(SlurmExecutor):  # type: ignore[misc,unused-ignore]
        """Submits a script that is final."""

        def _make_submission_file_text(self, command: str, uid: str) -> str:
            return text

        def _make_submission_command(self, submission_file_path: Path) -> list[str]:
            return list(argv)

        @staticmethod
        def _get_job_id_from_submission_command(string: bytes | str) -> str:
            told = string.decode() if isinstance(string, bytes) else string
            number = re.match(r"\s*(\d+)(?:;|\s*$)", told)  # 123, or 123;cluster
            if number is None:
                raise FailedSubmissionError(f"sbatch gave no number of a job but {told!r}")
            return number[1]

    return WholeScript(folder)


@contextlib.contextmanager
def replaced(environment: Mapping[str, str]) -> Iterator[None]:
    """Run with this environment; submitit takes no other than that of the process."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
