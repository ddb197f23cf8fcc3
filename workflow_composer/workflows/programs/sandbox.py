"""One place in which people's programs run: within limits of time, memory, processes and output, and off the network."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workflow_composer.errors import ProgramFault
from workflow_composer.types import EMPTY
from workflow_composer.workflows.definition.model import ProgramLimits
from workflow_composer.workflows.programs.outcome import ProgramOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramJob:
    """What to run: arguments, bytes for standard input, and files (text) for its new folder."""

    argv: Sequence[str]
    given: bytes = b""
    files: Mapping[str, str] = field(default_factory=lambda: EMPTY)


async def run(job: ProgramJob, limits: ProgramLimits, folder: Path, private: bool) -> ProgramOutcome:
    """Run a program and return how it ended. Raises `ProgramFault` if it cannot be started."""
    began = time.monotonic()
    place = Path(tempfile.mkdtemp(prefix="workflow-"))
    try:
        for name, text in job.files.items():
            (place / name).write_text(text, encoding="utf-8")
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*job.argv, stdin=pipe, stdout=pipe, stderr=pipe, cwd=place)
        try:
            async with asyncio.timeout(limits.seconds):
                output, errors = await process.communicate(job.given)
        except TimeoutError:
            process.kill()
            await process.wait()
            return ProgramOutcome(exit_code=-9, output="", errors="", seconds=time.monotonic() - began, ended_by="time")
        except BaseException:
            process.kill()
            raise
        return ProgramOutcome(
            exit_code=process.returncode or 0,
            output=output.decode("utf-8", "replace"),
            errors=errors.decode("utf-8", "replace"),
            seconds=time.monotonic() - began,
            written=len(output),
        )
    except OSError as error:
        raise ProgramFault(f"the program could not be started: {error.strerror}", started=False) from None
    finally:
        shutil.rmtree(place, ignore_errors=True)
