"""The gates of a transformers model, and the token ids of the rows that they route.

In transformers 5, OLMoE, Qwen2-MoE and Mixtral share one interface: ``layer.mlp.gate(hidden)`` takes [rows, hidden] and
returns logits [rows, experts], scores [rows, k] and expert indices [rows, k]; rows are (batch, position) flattened. A gate
does not receive token ids, so hooks on the surrounding model record them for the duration of a call, per thread.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workflow_composer.errors import ConfigError, InputError
from workflow_composer.moe.routing.hashing import NO_TOKEN

CACHE = ("cache", "past_key_values")
"""Names of the key-value cache: since transformers 5.2x, and before."""


def cache_argument(model: nn.Module) -> str:
    """Return the name of the key-value cache in the model's forward arguments and output."""
    takes = inspect.signature(model.forward).parameters
    return next(name for name in CACHE if name in takes)


def gates(model: nn.Module) -> dict[int, nn.Module]:
    """Return the gates by layer, skipping layers without experts (some in Qwen2-MoE). Raises `ConfigError` if none has."""
    found = {}
    for number, layer in enumerate(getattr(inner_model(model), "layers", ())):
        gate = getattr(getattr(layer, "mlp", None), "gate", None)
        if gate is not None and all(hasattr(gate, name) for name in ("top_k", "num_experts", "weight")):
            found[number] = gate
    if not found:
        raise ConfigError(
            f"{type(model).__name__} has no gates at layers[i].mlp.gate",
            hint="supported: OLMoE, Qwen2-MoE and Mixtral of transformers 5",
        )
    return found


def inner_model(model: nn.Module) -> nn.Module:
    """Return the part of the model that embeds tokens and runs the layers."""
    inner = getattr(model, "model", model)
    return inner if isinstance(inner, nn.Module) else model


@dataclass(frozen=True, eq=False)
class GateRows:
    """The tokens of a gate's rows in one call of the model.

    ``contexts``: [rows, width], the row's token last, after its previous tokens, -1 if missing; ``real``: [rows], False for
    padding; ``positions``: [rows], the number of previous tokens of its text; ``batch``: the number of texts in this call.
    """

    contexts: Tensor
    real: Tensor
    positions: Tensor
    batch: int


class TokenWatch:
    """Records the tokens of the gates' rows while a model runs; use `attach` and then `detach`.

    The previous tokens of a text come from the same call, from ``generate`` (also with beam search), or from an earlier call
    with the same key-value cache, if nothing has changed that cache since. Otherwise they count as missing, which costs
    quality only. Calls in different threads are independent.
    """

    def __init__(self, model: nn.Module, width: int) -> None:
        self._model, self._width = model, width
        self._local = threading.local()
        self._tails: weakref.WeakKeyDictionary[Any, tuple[int, Tensor, Tensor]] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._undo: list[Callable[[], None]] = []

    @property
    def rows(self) -> GateRows | None:
        """The rows of this thread's current call; None outside of a call."""
        found: GateRows | None = getattr(self._local, "rows", None)
        return found

    def attach(self) -> None:
        """Hook the model."""
        inner = inner_model(self._model)
        before = inner.register_forward_pre_hook(self._before, with_kwargs=True)
        after = inner.register_forward_hook(self._after, always_call=True)
        self._undo = [before.remove, after.remove]
        prepare = getattr(self._model, "prepare_inputs_for_generation", None)
        if prepare is not None:
            self._undo.append(patched(self._model, "prepare_inputs_for_generation", self._announcing(prepare)))

    def detach(self) -> None:
        """Restore the model."""
        while self._undo:
            self._undo.pop()()
        self._tails.clear()

    def _announcing(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(prepare)
        def announce(input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            mask = kwargs.get("attention_mask")
            self._local.announced = marked(input_ids, mask)
            return prepare(input_ids, *args, **kwargs)

        return announce

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs.get("input_ids")
        announced = self._local.__dict__.pop("announced", None)
        if ids is None:
            raise InputError("routing requires token ids", hint="pass input_ids, not inputs_embeds")
        mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
        cache = args[3] if len(args) > 3 else next((kwargs[name] for name in CACHE if kwargs.get(name) is not None), None)
        tokens = marked(ids, mask)
        before, counted = self._before_cache(tokens, cache)
        length = tokens.shape[1]
        if announced is not None and announced.shape[0] == len(tokens) and announced.shape[1] >= length:
            start = announced.shape[1] - length
            if bool(((announced[:, start:] == ids) | (announced[:, start:] == NO_TOKEN)).all()):
                before, tokens = announced[:, :start], announced[:, start:]
                counted = (before != NO_TOKEN).sum(1)
        lead = tokens.new_full((len(tokens), self._width - 1), NO_TOKEN)
        line = torch.cat((lead, before, tokens), dim=1)[:, -(length + self._width - 1) :]
        real = tokens != NO_TOKEN
        positions = counted[:, None] + real.long().cumsum(1) - 1
        contexts = line.unfold(1, self._width, 1).reshape(-1, self._width)
        self._local.rows = GateRows(contexts, real.reshape(-1), positions.reshape(-1), len(tokens))
        self._local.ended = (line, counted + real.sum(1), cache, seen(cache) + length)

    def _before_cache(self, tokens: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        """Return the previous tokens recorded with this cache, and their number in each text."""
        past = seen(cache)
        with self._lock:
            noted = self._tails.get(cache) if cache is not None else None
        if noted is not None and noted[0] == past and len(noted[1]) == len(tokens):
            return noted[1], noted[2]
        return tokens.new_zeros((len(tokens), 0)), tokens.new_full((len(tokens),), past)

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._local.rows = None
        ended = self._local.__dict__.pop("ended", None)
        if ended is None:
            return
        line, counted, cache, length = ended
        cache = next((getattr(output, name) for name in CACHE if hasattr(output, name)), None) if cache is None else cache
        if cache is not None:
            with self._lock:
                self._tails[cache] = (length, line[:, max(0, line.shape[1] - self._width + 1) :].clone(), counted)


def marked(ids: Tensor, mask: Tensor | None) -> Tensor:
    """Return the ids with -1 for padding by the mask's last columns; a mask that is not [batch, length] is ignored."""
    if mask is None or mask.ndim != 2 or mask.shape[1] < ids.shape[1]:
        return ids
    return ids.masked_fill(mask[:, mask.shape[1] - ids.shape[1] :] == 0, NO_TOKEN)


def seen(cache: Any) -> int:
    """Return the number of positions in a key-value cache; 0 for None."""
    return int(cache.get_seq_length()) if cache is not None else 0


def patched(owner: Any, name: str, replacement: Any) -> Callable[[], None]:
    """Set an attribute of this object only; return a function that restores it exactly, including an earlier patch."""
    own: Mapping[str, Any] = vars(owner)
    missing = object()
    before = own.get(name, missing)
    object.__setattr__(owner, name, replacement)

    def undo() -> None:
        if before is missing:
            object.__delattr__(owner, name)
        else:
            object.__setattr__(owner, name, before)

    return undo
