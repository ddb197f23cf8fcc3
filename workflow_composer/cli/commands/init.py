"""``init``: look for models, write a first profile, and ask it one question."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflow_composer.cli.answering import silence_of
from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.output import dollars, print_json, printable
from workflow_composer.cli.state import State
from workflow_composer.errors import AllCandidatesFailed, ConfigError, InputError, NoStrategy, WorkflowComposerError, nearest

if TYPE_CHECKING:
    from workflow_composer.config.strategy import StrategyConfig
    from workflow_composer.runtime.first_profile import FirstProfile
    from workflow_composer.runtime.surroundings import Offer, Surroundings
    from workflow_composer.types import LLMResponse

QUESTION, RIGHT = "What is 30 + 12?", "42"
"""The question that is sent, and what a right answer contains."""
_LONGEST = 1024
"""Tokens of the answer: models that think need hundreds for a question of any size."""
_TRIES = 3
"""With --yes, so many models are asked until one answers."""
_PLACE = Path("config/strategies")
"""Where a profile is found by its name."""


_Following = Sequence[tuple[str, str]]
"""Commands to type next, and what each is for."""


@dataclass(frozen=True, slots=True)
class _Options:
    """The command's options."""

    yes: bool
    cloud: bool
    model: str | None
    target: Path
    force: bool
    ask: bool
    timeout: float


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a model said to the question; ``fault``: why that is no answer."""

    offer: Offer
    text: str = ""
    fault: str = ""
    remedy: str = ""
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        """Whether it is the right answer."""
        return RIGHT in self.text


def _checked_network(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        try:
            ipaddress.ip_network(value)
        except ValueError as error:
            raise click.BadParameter(f"{error}; write a network such as 192.0.2.0/24", context, parameter) from None
    return values


@click.command(
    epilog=examples(
        "init",
        "init --yes",
        "init --yes --model llama3.1:8b --output my_profile.yaml",
        "init --server http://gpu-node-07:8000 --api-key-env VLLM_API_KEY",
        "init --cloud",
    )
)
@click.option(
    "-y", "--yes", is_flag=True, help="Ask nothing: take a model of your own servers that answers. Never the cloud."
)
@click.option("--cloud", is_flag=True, help="A cloud model may be chosen; with a model of your own it is the fallback.")
@click.option("-m", "--model", metavar="NAME", help="The model to use, by a name that its server lists.")
@click.option("--server", "servers", multiple=True, metavar="URL", help="A server at another address; may be repeated.")
@click.option("--api-key-env", "key_env", metavar="VARIABLE", help="The variable with the key of the servers of --server.")
@click.option("--local-user", "users", multiple=True, metavar="USER", help="A user of this machine whose servers are yours.")
@click.option(
    "--local-network",
    "networks",
    multiple=True,
    metavar="CIDR",
    callback=_checked_network,
    help="A network with public addresses that is yours.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=_PLACE / "local.yaml",
    show_default=True,
    help="The profile's file. A bare NAME means config/strategies/NAME.yaml.",
)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@click.option("--ask/--no-ask", default=True, show_default=True, help="Send the question to the model.")
@click.option(
    "--timeout", type=click.FloatRange(1, 3600), default=300.0, show_default=True, help="Seconds that the answer may take."
)
@common_options
@click.pass_context
def init(
    context: click.Context,
    /,
    output: Path,
    servers: tuple[str, ...],
    key_env: str | None,
    users: tuple[str, ...],
    networks: tuple[str, ...],
    **options: Any,
) -> None:
    """Look for models on this machine, write a profile for one of them, and ask it a question.

    Looks for ollama (port 11434, or OLLAMA_HOST), llama.cpp (8080), LM Studio (1234), vLLM (8000 to 8004), SGLang (30000)
    and a few others, for servers that a fleet has registered, and for keys of cloud models. On a terminal it asks at most
    three questions: which model answers, whether a cloud model may take over, and whether to replace a file. It sends one
    short question to the model before it writes the file; a profile whose model does not answer is not written.

    A cloud model is used only with --cloud or if you choose it. Embedding models are never chosen. With --yes, models are
    tried that are in memory and do not think before models that have to be loaded or think, up to three, until one answers
    rightly.

    Exit codes: 0 done; 1 the file could not be written; 2 wrong usage, or the file exists; 3 there is no model; 5 no model
    answered.
    """
    from workflow_composer.runtime.surroundings import Wanted, look_around

    state = context.ensure_object(State)
    chosen = _Options(target=_path_of(output), **options)
    _refuse_to_replace(chosen)
    with _telling(state, "looking for models"):
        found = asyncio.run(look_around(state.environ, Wanted(servers, key_env, users, networks)))
    if not state.json:
        _print_found(found, chosen)
    offers = _candidates(found, chosen)
    picked = _picked(offers, chosen)
    fallback = _fallback(found, picked[0], chosen)
    program, strategy = context.find_root().command_path, f"-s {_strategy_of(chosen.target)}"
    call = f"{program} {strategy}"
    plans = [_profile(found, offer, fallback, chosen, networks) for offer in picked]
    answers = _asked(state, plans, chosen) if chosen.ask else [_Answer(picked[0])]
    taken = _taken(answers, chosen)
    plan = next(plan for plan in plans if plan.offer is taken.offer)
    if chosen.ask:
        plan = replace(plan, context_length=_length_now(state, plan, Wanted(servers, key_env, users, networks, usual=False)))
    _write(plan, chosen.target, call)
    following = (
        (f'{call} generate "your question"', "ask"),
        (call, "ask on, at a prompt"),
        (f"{program} doctor {strategy}", "check its server, model, prices and keys"),
    )
    _report(state, plan, taken, answers, chosen, following)


# ------------------------------------------------------------------------------------------------------------------ file


def _path_of(output: Path) -> Path:
    """Return the file that ``--output`` means."""
    if output.is_dir():
        return output / "local.yaml"
    if output.suffix in (".yaml", ".yml"):
        return output
    named = output.with_name(f"{output.name}.yaml")
    return _PLACE / named if len(output.parts) == 1 else named


def _refuse_to_replace(chosen: _Options) -> None:
    """Ask whether to replace the file if it exists. Raises `ConfigError` if it must stay."""
    if chosen.force or not chosen.target.exists():
        return
    replaces = (
        not chosen.yes and _may_ask() and click.confirm(f"{chosen.target} exists; replace it?", default=False, err=True)
    )
    if not replaces:
        raise ConfigError(
            f"{chosen.target} exists, and was left as it is", hint="--output names another file, --force replaces it"
        )


def _strategy_of(target: Path) -> str:
    """Return how ``--strategy`` names the file."""
    if target.parent == _PLACE:
        return target.stem
    text = str(target)
    return shlex.quote(text if "/" in text else f"./{text}")


def _validated(plan: FirstProfile) -> StrategyConfig:
    """Read the profile as it will be written. Raises `ProfileError` if it is invalid."""
    import yaml

    from workflow_composer.config.strategy import StrategyConfig

    return StrategyConfig(**yaml.safe_load(plan.text("", datetime.date.today())))


def _write(plan: FirstProfile, target: Path, call: str) -> None:
    """Validate the profile and write it. Raises `ProfileError`, OSError."""
    from workflow_composer.storage.replacing import replace_file

    _validated(plan)
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_file(target, plan.text(f'{call} generate "your question"', datetime.date.today()))


# ---------------------------------------------------------------------------------------------------------------- choice


def _may_ask() -> bool:
    return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()


def _candidates(found: Surroundings, chosen: _Options) -> Sequence[Offer]:
    """Return the models to choose from. Raises `NoStrategy` if there is none, `InputError` for an unknown ``--model``."""
    if chosen.model is not None:
        return [_named(found, chosen.model, chosen)]
    clouds = found.clouds if chosen.cloud or (not chosen.yes and _may_ask()) else ()
    if offers := (*found.own, *clouds):
        return offers
    raise _nothing(found)


def _named(found: Surroundings, name: str, chosen: _Options) -> Offer:
    match = next((offer for offer in found.offers if offer.named(name)), None)
    if match is not None and (match.cloud is None or chosen.cloud):
        return match
    if match is not None:
        raise InputError(f"{name} is a cloud model", hint="add --cloud if prompts may be sent there")
    if any(offer.named(name) for offer in found.embeddings):
        raise InputError(f"{name} is an embedding model: it makes vectors and answers no question")
    if chosen.cloud and (unready := _without_key(name)):
        raise InputError(f"{name} needs a key: {unready} is not set", hint=f"export {unready}=...")
    known = [offer.model for offer in found.offers]
    hint = nearest(name, known) or (f"found: {', '.join(known[:20])}" if known else "")
    raise InputError(f"no server here has a model {name!r}", hint=hint)


def _without_key(name: str) -> str:
    from workflow_composer.backends.catalogue import find

    model = find(name)
    return model.api_key_env if model is not None else ""


def _nothing(found: Surroundings) -> NoStrategy:
    """Say what was found instead of a model, and what to do."""
    reasons = [f"{one.what}: {one.why}" for one in found.left_out]
    if found.embeddings:
        names = ", ".join(offer.model for offer in found.embeddings[:5])
        reasons.append(f"only embedding models answer ({names}), which make vectors and answer no question")
    remedies = [one.remedy for one in found.left_out if one.remedy]
    if not found.servers and not reasons:
        reasons = ["no model server answers on this machine, and none is registered"]
    if not remedies:
        remedies = [
            "start one (`ollama serve` and `ollama pull llama3.2`, `llama-server -m MODEL.gguf`, `vllm serve MODEL`)"
        ]
        remedies += ["`fleet up` starts vLLM on your GPUs"] if found.gpus else []
        remedies += ["name one elsewhere with --server URL"]
    if found.keys:
        remedies.append(f"{', '.join(found.keys)} {'is' if len(found.keys) == 1 else 'are'} set: --cloud uses a cloud model")
    if found.engine:
        remedies.append('`-s development generate "What is 30 + 12?"` asks the tiny models of this package, for a try')
    return NoStrategy("no model to ask: " + "; ".join(reasons), hint="; or ".join(remedies))


def _picked(offers: Sequence[Offer], chosen: _Options) -> Sequence[Offer]:
    """Return the model that the person chooses; with ``--yes`` the best ones, to be tried in this order.

    Raises `InputError` if there are several and nobody can be asked.
    """
    if len(offers) == 1:
        return offers
    if chosen.yes:
        own = [offer for offer in offers if offer.cloud is None]
        return (own or offers)[:_TRIES]
    if not _may_ask():
        names = ", ".join(offer.model for offer in offers[:20])
        raise InputError(f"several models are here: {names}", hint="name one with --model, or add --yes to try them in turn")
    click.echo("\nWhich model answers?", err=True)
    for number, offer in enumerate(offers, 1):
        click.echo(f"  {number:>2}  {printable(offer.model):<40} {_about(offer)}", err=True)
    number = click.prompt("Number", type=click.IntRange(1, len(offers)), default=1, err=True)
    return [offers[number - 1]]


def _about(offer: Offer) -> str:
    """Describe a model in a list."""
    from workflow_composer.runtime.surroundings import shown_kind

    if offer.cloud is not None:
        price = f"{dollars(offer.cloud.input_price)} and {dollars(offer.cloud.output_price)} per million tokens"
        return f"cloud: prompts are sent to {offer.host}; {price}"
    notes = [shown_kind(offer.kind), offer.host]
    notes += ["thinks before it answers"] if offer.thinks else []
    notes += ["in memory"] if offer.served is not None and offer.served.loaded else []
    notes += [f"run by {offer.user}"] if offer.user else []
    return ", ".join(notes)


def _fallback(found: Surroundings, picked: Offer, chosen: _Options) -> Offer | None:
    """Return the cloud model that takes over if the own one fails; None if the cloud is not wanted."""
    if picked.cloud is not None or not found.clouds:
        return None
    first = found.clouds[0]
    if chosen.cloud:
        return first
    if chosen.yes or chosen.model is not None or not _may_ask():
        return None
    text = f"If {printable(picked.model)} fails, may {first.model} of the cloud ({first.host}) get the prompt?"
    return first if click.confirm(text, default=False, err=True) else None


def _profile(
    found: Surroundings, offer: Offer, fallback: Offer | None, chosen: _Options, networks: Sequence[str]
) -> FirstProfile:
    from workflow_composer.runtime.first_profile import FirstProfile

    beside = [one for one in found.embeddings if one.place == offer.place and not one.place.startswith("registry:")]
    return FirstProfile(
        name=chosen.target.stem,
        offer=offer,
        fallback=fallback,
        embeddings=beside[0] if len(beside) == 1 else None,
        others=[one for one in found.own if one.place == offer.place and one is not offer],
        networks=networks if offer.cloud is None else (),
        context_length=offer.served.context_length if offer.served is not None else None,
    )


# -------------------------------------------------------------------------------------------------------------- question


def _asked(state: State, plans: Sequence[FirstProfile], chosen: _Options) -> list[_Answer]:
    """Ask one model after another until one answers rightly; return what each said."""
    answers: list[_Answer] = []
    for plan in plans:
        with _telling(
            state, f"asking {printable(plan.offer.model)}: {QUESTION} (a model that is not in memory is loaded first)"
        ):
            answers.append(_answer(state, plan, chosen.timeout))
        if answers[-1].right:
            break
    return answers


def _answer(state: State, plan: FirstProfile, timeout: float) -> _Answer:
    """Validate the profile and ask its model, without a fallback. Raises `ProfileError` if it is invalid."""
    from workflow_composer.orchestrator import ModelOrchestrator

    # A server refuses more tokens than its context has.
    longest = min(_LONGEST, plan.context_length // 2) if plan.context_length else _LONGEST
    started = time.monotonic()
    with ModelOrchestrator(_validated(plan), environ=state.environ) as orchestrator:
        try:
            response = orchestrator.generate(QUESTION, model=plan.offer.model, max_tokens=longest, timeout=timeout)
        except AllCandidatesFailed as error:
            said = error.attempts[-1].error if error.attempts else error.message
            return _Answer(plan.offer, fault=" ".join((said or error.message).split()), remedy=error.hint)
        except WorkflowComposerError as error:
            return _Answer(plan.offer, fault=error.message, remedy=error.hint)
    return _read(plan.offer, response, time.monotonic() - started)


def _read(offer: Offer, response: LLMResponse, seconds: float) -> _Answer:
    if silence := silence_of(response):
        return _Answer(offer, fault=silence, remedy="--model names another")
    return _Answer(offer, response.text.strip(), seconds=seconds)


def _taken(answers: Sequence[_Answer], chosen: _Options) -> _Answer:
    """Return the right answer, else any answer. Raises `AllCandidatesFailed` if no model answered."""
    if not chosen.ask:
        return answers[0]
    taken = next((one for one in answers if one.right), None) or next((one for one in answers if one.text), None)
    if taken is not None:
        return taken
    said = "; ".join(f"{one.offer.model} ({one.offer.host}): {one.fault}" for one in answers)
    remedies = dict.fromkeys(one.remedy for one in answers if one.remedy)
    hint = "; ".join([*remedies, "--no-ask writes the profile without asking"])
    raise AllCandidatesFailed(f"no answer, so no profile was written: {said}", hint=hint)


def _length_now(state: State, plan: FirstProfile, wanted: Any) -> int | None:
    """Return the context of the model now that it is in memory: ollama says it only then."""
    from workflow_composer.runtime.surroundings import look_around

    if plan.context_length is not None or plan.offer.kind != "ollama":
        return plan.context_length
    again = asyncio.run(look_around(state.environ, replace(wanted, servers=[plan.offer.place])))
    model = next((one for one in again.own if one.named(plan.offer.model)), None)
    return model.served.context_length if model is not None and model.served is not None else None


# ---------------------------------------------------------------------------------------------------------------- screen


@contextmanager
def _telling(state: State, what: str) -> Iterator[None]:
    """On a terminal, say what takes time before it begins."""
    if not state.json and sys.stderr is not None and sys.stderr.isatty():
        click.echo(f"{what} ...", err=True)
    yield


def _print_found(found: Surroundings, chosen: _Options) -> None:
    """Print what was found: servers with their models, what was left out and why, and what else is here."""
    from workflow_composer.runtime.surroundings import shown_kind

    for server in found.servers:
        names = [_with_note(model.name, model.embedding, model.thinks) for model in server.models[:12]]
        more = f" and {len(server.models) - 12} more" if len(server.models) > 12 else ""
        place = server.base_url.partition("://")[2].rpartition("@")[2].removesuffix("/v1")
        click.echo(f"found:     {shown_kind(server.kind)} at {place}: {printable(', '.join(names)) or 'no model'}{more}")
    for one in found.left_out:
        remedy = f"; {one.remedy}" if one.remedy else ""
        click.echo(f"left out:  {printable(one.what)}: {printable(one.why)}{remedy}")
    if found.gpus:
        click.echo(f"GPUs:      {', '.join(found.gpus)}")
    if found.slurm:
        click.echo("SLURM:     available (`fleet submit` runs servers as jobs)")
    if found.keys and not chosen.cloud:
        click.echo(f"keys:      {', '.join(found.keys)} set; nothing is sent to a cloud unless you choose it (--cloud)")


def _with_note(name: str, embedding: bool | None, thinks: bool | None) -> str:
    return name + (" (embeddings)" if embedding else " (thinks)" if thinks else "")


def _report(
    state: State, plan: FirstProfile, taken: _Answer, answers: Sequence[_Answer], chosen: _Options, following: _Following
) -> None:
    """Print the answer, the file and the next three commands."""
    if state.json:
        print_json(_as_data(plan, taken, answers, chosen, [command for command, _ in following]))
        return
    for one in answers:
        if one.fault:
            click.echo(f"left out:  {one.offer.model}: {one.fault}")
    if chosen.ask:
        click.echo(f"\n{QUESTION}\n{printable(taken.text)}\n({taken.offer.model}, {taken.seconds:.1f} s)")
        if not taken.right:
            click.echo(f"warning: that is not {RIGHT}; a larger model may be more reliable (--model)", err=True)
    where = "may be sent to the cloud" if plan.cloud else "stay on your own machines"
    click.echo(f"\nwrote {chosen.target}: {printable(plan.offer.model)} answers; prompts {where}\n\nNext:")
    width = max(len(command) for command, _ in following)
    for command, meaning in following:
        click.echo(f"  {command:<{width}}  {meaning}")


def _as_data(
    plan: FirstProfile, taken: _Answer, answers: Sequence[_Answer], chosen: _Options, following: Sequence[str]
) -> dict[str, Any]:
    return {
        "profile": str(chosen.target),
        "strategy": plan.name,
        "model": plan.offer.model,
        "place": plan.offer.place,
        "kind": plan.offer.kind,
        "allow_cloud": plan.cloud,
        "fallback": plan.fallback.model if plan.fallback is not None else None,
        "question": QUESTION if chosen.ask else None,
        "answer": taken.text if chosen.ask else None,
        "right": taken.right if chosen.ask else None,
        "seconds": round(taken.seconds, 3),
        "left_out": {one.offer.model: one.fault for one in answers if one.fault},
        "next": list(following),
    }
