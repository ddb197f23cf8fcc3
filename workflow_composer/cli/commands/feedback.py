"""``feedback``: grade the accepted answers that were sampled for an audit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.output import percent, print_json, print_table, printable
from workflow_composer.cli.state import State

if TYPE_CHECKING:
    from workflow_composer.calibration.monitoring.audits import Audit, AuditLog


@click.command(
    epilog=examples(
        "feedback --pending",
        "feedback --id req-5f0c6d2a9b11e4a87c3d2b90 --wrong --by ann",
        "feedback --status --json",
    )
)
@click.option("--id", "request_id", metavar="ID", help="Grade the answer of this request; use with --correct or --wrong.")
@click.option("--correct", is_flag=True, help="The answer is right.")
@click.option("--wrong", is_flag=True, help="The answer is wrong.")
@click.option("--by", metavar="NAME", default="user", show_default=True, help="Name of the grader.")
@click.option("--report", is_flag=True, help="Record the grade of an answer that was not sampled; the test ignores it.")
@click.option("--pending", is_flag=True, help="List the answers that need a grade, oldest first.")
@click.option("--status", is_flag=True, help="Show the audit results of each certificate.")
@click.option("--reset", metavar="CERTIFICATE", help="Restart a certificate's test after the cause of an alarm is fixed.")
@click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path),
    help="Audit file. Default: $WORKFLOW_COMPOSER_AUDITS, else audits.jsonl in your state folder.",
)
@common_options
@click.pass_obj
def feedback(
    state: State,
    request_id: str | None,
    correct: bool,
    wrong: bool,
    by: str,
    report: bool,
    pending: bool,
    status: bool,
    reset: str | None,
    path: Path | None,
) -> None:
    """Grade accepted answers that were sampled for an audit, and show the results.

    A certificate guarantees that few of the accepted answers are wrong. A small random sample of them is audited. A
    sequential test, valid after every grade, checks whether the guarantee still holds; after an alarm every request
    escalates until there is a new certificate. Grade all sampled answers: grading only the wrong ones raises false alarms.
    """
    from workflow_composer.calibration.monitoring.audits import AuditLog, audits_file

    chosen = [request_id is not None, pending, status, reset is not None]
    if sum(chosen) != 1:
        raise click.UsageError("specify one of --id ID, --pending, --status and --reset CERTIFICATE")
    if request_id is None and (correct or wrong or report):
        raise click.UsageError("--correct, --wrong and --report need --id ID")
    if request_id is not None and correct == wrong:
        raise click.UsageError("specify either --correct or --wrong")
    log = AuditLog(path or audits_file(state.environ))
    if request_id is not None and report:
        log.report(request_id, correct, by)
        _say(state, f"recorded: {request_id} is {_word(correct)}; it was not sampled, so the test ignores it", id=request_id)
    elif request_id is not None:
        _graded(state, log, log.grade(request_id, correct, by))
    elif reset is not None:
        log.reset(_named(log, reset), by)
        _say(state, f"restarted the test of certificate {_named(log, reset)}", certificate=_named(log, reset))
    elif pending:
        _print_pending(state, log)
    else:
        _print_status(state, log)


def _say(state: State, text: str, **data: Any) -> None:
    print_json(data) if state.json else click.echo(printable(text))


def _named(log: AuditLog, start: str) -> str:
    """Return the only certificate whose digest begins with ``start``; else ``start`` itself, which the log rejects."""
    log.refresh()
    found = [digest for digest in log.certificates if start and digest.startswith(start)]
    return found[0] if len(found) == 1 else start


def _graded(state: State, log: AuditLog, audit: Audit) -> None:
    about = _about(log, audit.certificate)
    if state.json:
        print_json({"id": audit.id, "correct": audit.correct, "by": audit.by, "stratum": audit.stratum, **about})
        return
    lines = [
        f"{audit.id} is {_word(audit.correct)} ({audit.stratum}); certificate {audit.certificate}:",
        f"{about['wrong']} of {about['audits']} audits wrong, {_evidence(about)}, {about['pending']} pending",
    ]
    if about["alarm"]:
        lines.append(f"ALARM: {about['reason']}")
    click.echo(printable("\n".join(lines)))  # in one write: others may grade at the same time


def _about(log: AuditLog, certificate: str) -> dict[str, Any]:
    """Return the audit results of a certificate."""
    watched = log.watched(certificate)
    assert watched is not None
    monitor = watched.monitor
    return {
        "certificate": certificate,
        "alpha": monitor.alpha,
        "audits": monitor.audits,
        "wrong": monitor.wrong,
        "error": monitor.error,
        "pending": sum(audit.certificate == certificate for audit in log.pending()),
        "e_value": monitor.e_value,
        "alarm_from": 1 / monitor.level,
        "level": monitor.level,
        "alarm": watched.alarmed,
        "alarm_at": monitor.alarm_at,
        "reason": watched.reason,
        "resets": watched.resets,
        "graders": _graders(log, certificate),
        "strata": [
            {"stratum": name, "audits": part.audits, "wrong": part.wrong, "error": part.error, "e_value": part.e_value}
            for name, part in monitor.strata.items()
        ],
    }


def _graders(log: AuditLog, certificate: str) -> list[dict[str, Any]]:
    """Return who has graded how many answers, and how many of them wrong: the grades of a key that errs can be found."""
    found: dict[tuple[str, str], list[bool]] = {}
    for audit in log.graded(certificate):
        found.setdefault((audit.by, audit.key), []).append(bool(audit.correct))
    return [{"by": by, "key": key, "audits": len(all_), "wrong": all_.count(False)} for (by, key), all_ in found.items()]


def _grader(one: dict[str, Any]) -> str:
    key = f" (key {one['key']})" if one["key"] and one["key"] not in one["by"] else ""
    return f"{one['by']}{key} {one['audits']}, {one['wrong']} wrong"


def _print_pending(state: State, log: AuditLog) -> None:
    found = log.pending()
    if state.json:
        names = ("id", "at", "group", "tier", "score", "certificate")
        print_json([{name: getattr(audit, name) for name in names} for audit in found])
    elif found:
        scores = ["" if audit.score is None else f"{audit.score:.3f}" for audit in found]
        rows = [
            (audit.id, audit.at[:19], audit.group, audit.tier, score, audit.certificate)
            for audit, score in zip(found, scores, strict=True)
        ]
        print_table(("id", "sampled (UTC)", "group", "tier", "score", "certificate"), rows)
    else:
        click.echo(f"no pending answers in {log.path}")


def _print_status(state: State, log: AuditLog) -> None:
    log.refresh()
    found = [_about(log, certificate) for certificate in log.certificates]
    if state.json:
        print_json({"file": str(log.path), "certificates": found, "reports": log.reports, "damaged_lines": log.skipped})
        return
    if not found:
        click.echo(f"no audits in {log.path} yet")
    for about in found:
        click.echo(printable(f"certificate {about['certificate']}: at most {about['alpha']:g} of accepted answers wrong"))
        click.echo(f"state:    {_state(about)}")
        click.echo(f"evidence: {_evidence(about)}")
        click.echo(f"pending:  {about['pending']}")
        if about["graders"]:
            click.echo(printable(f"graders:  {'; '.join(map(_grader, about['graders']))}"))
        parts = [(part["stratum"], *_counts(part)) for part in about["strata"]]
        print_table(("group/tier", "audits", "wrong", "error", "e-value"), [*parts, ("all", *_counts(about))])
        click.echo()
    if log.reports:
        click.echo(f"reports of answers that were not sampled: {log.reports}")
    if log.skipped:
        click.echo(f"damaged lines (skipped): {log.skipped}")


def _state(about: dict[str, Any]) -> str:
    if about["alarm"]:
        return printable(f"ALARM: {about['reason']}; recalibrate")
    return "no alarm" if about["audits"] else "nothing graded yet"


def _counts(part: dict[str, Any]) -> tuple[object, ...]:
    return part["audits"], part["wrong"], percent(part["error"]), _short(part["e_value"])


def _evidence(about: dict[str, Any]) -> str:
    return f"e-value {_short(about['e_value'])} (alarm from {_short(about['alarm_from'])})"


def _short(value: float) -> str:
    return f"{value:.3g}"


def _word(correct: bool | None) -> str:
    return "correct" if correct else "wrong"
