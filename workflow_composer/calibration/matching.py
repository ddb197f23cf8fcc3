"""Check whether a certificate applies to a profile's models when it loads, and to each request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workflow_composer.calibration.certificate import Certificate, ModelIdentity, digest_of
from workflow_composer.errors import CertificateMismatch
from workflow_composer.types import ANY_TASK, LLMRequest, texts

_LONGEST = 60
"""Maximum number of characters of a quoted value."""


def check(
    certificate: Certificate, identities: Sequence[ModelIdentity], floors: Mapping[str, int], *, where: str = ""
) -> None:
    """Compare a certificate with the tiers' models, cheapest first, and with the tasks' lowest tiers.

    ``floors``: task -> index of its lowest tier; the task ``*`` stands for all tasks not listed. Raises
    `CertificateMismatch`, which names each field that differs with both values.
    """
    faults: list[str] = []
    names = [tier.name for tier in certificate.tiers]
    wanted = [identity.name for identity in identities]
    if len(names) != len(wanted):
        faults.append(f"tiers: {', '.join(names)} in the certificate, {', '.join(wanted)} here")
    else:
        for tier, identity in zip(certificate.tiers, identities, strict=True):
            for field in ModelIdentity.__slots__:
                made, here = getattr(tier.identity, field), getattr(identity, field)
                if made != here and not (field == "top_logprobs" and tier.score is None):
                    faults.append(f"tier {tier.name}, {field}: {_shown(made)} in the certificate, {_shown(here)} here")
    if len(names) == len(wanted):
        faults += _floor_faults(certificate, floors)
    if faults:
        prefix = f"{where}: " if where else ""
        raise CertificateMismatch(
            f"{prefix}the certificate does not match this profile: {'; '.join(faults)}",
            hint="calibrate again with this profile, or use the profile for which the certificate was made",
        )


def floor_of(task: str, floors: Mapping[str, int]) -> int:
    """Return the index of the lowest tier for a task."""
    return floors.get(task, floors.get(ANY_TASK, 0))


def _floor_faults(certificate: Certificate, floors: Mapping[str, int]) -> list[str]:
    """Describe tasks whose lowest tier differs from the certificate's, including tasks of its group for any task."""
    names, faults = [tier.name for tier in certificate.tiers], []
    for task in sorted({*certificate.groups, *floors}):
        group, here = certificate.group(task), floor_of(task, floors)
        if group is not None and group.first != here:
            faults.append(f"task {task}, floor: {names[group.first]} in the certificate, {names[here]} here")
    return faults


def uncovered(certificate: Certificate, request: LLMRequest, temperature: float | None) -> str:
    """Return why the certificate does not cover a request, naming the field; empty if it does.

    ``temperature``: the certificate's temperature.
    """
    if certificate.group(request.task_type) is None:
        return f"task {request.task_type!r} was not calibrated"
    made = certificate.request
    asked_temperature = temperature if request.temperature is None else request.temperature
    asked_stop = (request.stop,) if isinstance(request.stop, str) else request.stop
    fields = (
        ("temperature", temperature, asked_temperature),
        ("max_tokens", made.max_tokens, request.max_tokens),
        ("top_p", made.top_p, request.top_p),
        ("stop", made.stop, asked_stop),
        ("tools", None, request.tools or None),
        ("response_format", None, request.response_format),
        ("extra fields", None, tuple(request.extra) or None),
    )
    for field, known, asked in fields:
        if known != asked:
            return f"{field}: {_shown(known)} in the certificate, {_shown(asked)} in the request"
    most = max((tier.identity.top_logprobs or 0 for tier in certificate.tiers if tier.score is not None), default=None)
    if (
        most is not None and (request.top_logprobs or 0) > most
    ):  # scores would use more alternatives than they were learned from
        return f"top_logprobs: {most} in the certificate, {request.top_logprobs} in the request"
    if digest_of(system_of(request)) != made.system:
        return "system message: differs from the certificate's" if made.system else "system message: none in the certificate"
    return ""


def system_of(request: LLMRequest) -> str | None:
    """Return the text of the system messages; None if there are none."""
    found = [
        text for message in request.messages if message.get("role") in ("system", "developer") for text in texts(message)
    ]
    return "\n".join(found) if found else None


def _shown(value: object) -> str:
    if value is None:
        return "none"
    text = f"{value:g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
