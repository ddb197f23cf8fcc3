"""Checks across the keys of a profile: every name resolves, and no key contradicts another.

The checks work on the tree as it was read and skip values of the wrong type, so that one run reports every fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

from workflow_composer.config.cloud_names import CASCADE_TARGET, CLOUD, in_catalogue, nearest_name
from workflow_composer.config.normalize import FALLBACK_KEYS
from workflow_composer.config.own_machines import is_metadata, user_id
from workflow_composer.config.profile_models import LOCAL_BACKENDS
from workflow_composer.config.yaml_source import KeyPath, Problems, one_of, shown
from workflow_composer.errors import MarkerError, nearest
from workflow_composer.markers import can_name_tier, is_routing_string, parse_route
from workflow_composer.types import ANY_TASK

__all__ = ["CASCADE_TARGET", "CLOUD", "Checks"]

CLOUD_BACKEND = "openai"
EMBEDDINGS = "embeddings"

_NEEDS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "vllm": (("endpoint", "base_url"), "endpoint: a role of vllm_endpoints, or base_url"),
    "openai": (("base_url",), "base_url: the API's URL, such as https://api.openai.com/v1"),
    "embedded": (("path",), "path: a shipped checkpoint's name or a directory"),
    "replay": (("path",), "path: a JSONL file"),
}
_HAS_NOT: Mapping[str, tuple[str, ...]] = {
    "vllm": ("path",),
    "openai": ("endpoint", "path", "gpu_hour_price", "gpu_hours_per_day"),
    "embedded": ("endpoint", "base_url", "api_key_env", "api_key"),
    "replay": ("endpoint", "base_url", "api_key_env", "api_key"),
}


class Checks:
    """One method for each check; `run` reports every violation. ``data`` is the tree in normal form."""

    def __init__(self, tree: Mapping[str, Any], data: Mapping[str, Any], problems: Problems) -> None:
        self.tree = tree
        self.data = data
        self.problems = problems
        self.faulty = problems.source.faulty
        self.roles = _mapping(tree, "vllm_endpoints")
        self.models = {name: item for name, item in _mapping(tree, "models").items() if isinstance(item, Mapping)}
        self.tiers = {name: item for name, item in _mapping(tree, "tiers").items() if isinstance(item, Mapping)}
        # A name stays valid even if its value was dropped because of a fault.
        self.names = {section: self._names(section) for section in ("vllm_endpoints", "models", "tiers")}
        self.targets = list(dict.fromkeys(name for names in self.names.values() for name in names))
        self._forbids_cloud = tree.get("allow_cloud") is False

    def run(self) -> None:
        """Run every check and report the violations."""
        self.name_clashes()
        self.replicas()
        self.models_complete()
        self.routes()
        self.fallbacks()
        self.tier_models()
        self.tier_costs()
        self.router_names()
        networks = self.networks()
        self.users()
        if self._forbids_cloud:
            self.no_cloud()
            self.no_public_servers(networks)

    def _names(self, section: str) -> list[str]:
        dropped = [str(path[1]) for path in self.faulty if len(path) == 2 and path[0] == section]
        return list(dict.fromkeys([*_mapping(self.tree, section), *dropped]))

    # ---------------------------------------------------------------------------------------------------------- names

    def name_clashes(self) -> None:
        """Roles, models and tiers share one namespace; two of them may share a name only if they mean the same model."""
        for section in (*self.names, "task_routing", "task_contexts"):
            for name in _mapping(self.tree, section):
                self._name(section, name)
        for name in self.targets:
            is_role, is_model, is_tier = (name in self.names[section] for section in self.names)
            tier = self.tiers.get(name, {})
            if is_role and is_model and self.models.get(name, {}).get("endpoint") != name:
                self.problems.add(("models", name), f"a role is also named {name!r}", f"rename one, or set endpoint: {name}")
            if is_tier and (is_role or is_model) and tier.get("model", name) != name:
                what = "a model" if is_model else "a role"
                self.problems.add(("tiers", name), f"{what} is also named {name!r}", f"rename one, or set model: {name}")

    def _name(self, section: str, name: str) -> None:
        if not name.strip() or name != name.strip() or not name.isprintable():
            self.problems.add((section, name), "the name is empty, unprintable or has surrounding spaces", "rename it")
        elif section in self.names and name in {CLOUD, CASCADE_TARGET, ANY_TASK}:
            self.problems.add((section, name), f"{name!r} is a reserved word", "use another name")
        elif section == "tiers" and not can_name_tier(name):
            self.problems.add(
                (section, name), f"{name!r} cannot be used in a routing string", "avoid spaces and _k4, _t0.7 in the name"
            )

    def replicas(self) -> None:
        """Each server of a role is listed once."""
        for role, places in _mapping(self.data, "vllm_endpoints").items():
            seen: set[str] = set()
            for index, place in enumerate(places if isinstance(places, tuple) else ()):
                server = str(place).rstrip("/").removesuffix("/v1").lower()
                if server in seen:
                    self.problems.add(("vllm_endpoints", role, index), "duplicate server", "list each server once")
                seen.add(server)

    def routes(self) -> None:
        """Every task is routed to a target that exists."""
        for task, target in _mapping(self.tree, "task_routing").items():
            path = ("task_routing", task)
            if isinstance(target, str) and (is_routing_string(target) or target == CASCADE_TARGET):
                self._cascade(path, target)
            elif target == CLOUD:
                if self.tree.get("allow_cloud") is not False and not self._cloud_models():
                    self.problems.add(path, "'cloud' matches no model", "add a model with backend: openai to models")
            elif isinstance(target, str) and target not in self.targets:
                self._unknown(path, target, [*self.targets, CLOUD, *([CASCADE_TARGET] if self.tiers else [])])

    def _cascade(self, path: KeyPath, target: str) -> None:
        """A routing string is well-formed, its tiers exist, and the profile has the router that executes it."""
        routers = self.data["routers"] if isinstance(self.data.get("routers"), tuple) else ()
        names = [router["name"] for router in routers] + [(router.get("settings") or {}).get("router") for router in routers]
        if CASCADE_TARGET not in names:
            self.problems.add(
                path, f"{shown(target, path)}, but no router of the profile executes it", "add cascade to routers"
            )
        if target == CASCADE_TARGET and not self.names["tiers"]:
            self.problems.add(path, "the profile has no tiers", "add tiers")
        try:
            parts = self._parts(target)
        except MarkerError as error:
            self.problems.add(path, str(error), "example: mv_cascade_small_k4_t0.7_large_k1_t0.0")
            return
        for part in parts:
            if part not in self.targets:
                self._unknown(path, part, self.targets)

    def _parts(self, target: str) -> list[str]:
        """Return the target of each tier of a cascade. Raises `MarkerError`."""
        if target == CASCADE_TARGET:
            return self.names["tiers"]
        tiers = parse_route(target).tiers
        return [tier.name if tier.name in self.targets else tier.members[0].candidates[0].name for tier in tiers]

    def fallbacks(self) -> None:
        """Every fallback exists and is listed once."""
        seen: dict[str, KeyPath] = {}
        for path, target in self._fallback_items():
            if target not in self.targets:
                self._unknown(path, target, self.targets)
            elif target in seen:
                self.problems.add(path, f"duplicate fallback {target!r}", "list each fallback once")
            seen.setdefault(target, path)

    def _fallback_items(self) -> Iterator[tuple[KeyPath, str]]:
        value = self.tree.get("fallback")
        if isinstance(value, Mapping):
            items: list[tuple[str | int, Any]] = [(key, value[key]) for key in FALLBACK_KEYS if key in value]
        else:
            items = list(enumerate(value)) if isinstance(value, tuple) else []
        for key, target in items:
            if isinstance(target, str):
                yield ("fallback", key), target

    def _unknown(self, path: KeyPath, name: str, valid: list[str], *, kind: str = "model, role or tier") -> None:
        if self._forbids_cloud and in_catalogue(name):
            return  # it is a cloud model, and `no_cloud` reports it
        local_only = self._forbids_cloud or kind.startswith("role in")
        near = nearest(name, valid) if local_only else nearest_name(name, valid)
        self.problems.add(path, f"{shown(name, path)}, which is not a {kind} of this profile", one_of(valid), hint=near)

    def router_names(self) -> None:
        """At least one router, each listed once."""
        routers = self.data.get("routers")
        if not isinstance(routers, tuple):
            return
        if not routers and self.tree.get("routers") == ():
            self.problems.add(("routers",), "the list is empty", "name at least one router, such as provider")
        names: list[str] = []
        for index, router in enumerate(routers):
            if router["name"] in names:
                self.problems.add(("routers", index), f"duplicate router {router['name']!r}", "list each router once")
            names.append(router["name"])

    # --------------------------------------------------------------------------------------------------------- models

    def models_complete(self) -> None:
        """Each model has the keys that its backend requires, and none that its backend ignores."""
        for name, model in self.models.items():
            backend = model.get("backend")
            if isinstance(backend, str):
                self._needs(("models", name), backend, model)
            self._endpoint(("models", name), model)
            if "api_key" in model and "api_key_env" in model:
                self.problems.add(("models", name, "api_key"), "api_key_env is also set", "keep one of the two")

    def _needs(self, path: KeyPath, backend: str, model: Mapping[str, Any]) -> None:
        keys, words = _NEEDS.get(backend, ((), ""))
        if keys and not any(model.get(key) is not None or (*path, key) in self.faulty for key in keys):
            self.problems.add(path, f"backend {backend} has no {' and no '.join(keys)}", f"add {words}")
        for key in _HAS_NOT.get(backend, ()):
            if model.get(key) is not None:
                self.problems.add((*path, key), f"backend {backend} does not use this key", "remove it")

    def _endpoint(self, path: KeyPath, model: Mapping[str, Any]) -> None:
        role = model.get("endpoint")
        if not isinstance(role, str):
            return
        if model.get("base_url") is not None:
            self.problems.add((*path, "base_url"), f"endpoint: {role} already gives the URL", "keep one of the two")
        if role not in self.names["vllm_endpoints"]:
            self._unknown((*path, "endpoint"), role, self.names["vllm_endpoints"], kind="role in vllm_endpoints")

    # ---------------------------------------------------------------------------------------------------------- tiers

    def tier_models(self) -> None:
        """Each tier's model exists."""
        valid = list(dict.fromkeys([*self.names["models"], *self.names["vllm_endpoints"]]))
        for name, tier in self.tiers.items():
            model = tier.get("model")
            if isinstance(model, str) and model not in valid:
                self._unknown(("tiers", name, "model"), model, valid, kind="model or role")

    def tier_costs(self) -> None:
        """Costs do not decrease from one tier to the next, and each model has one cost."""
        before: tuple[str, float] | None = None
        of_model: dict[object, float] = {}
        for name, tier in self.tiers.items():
            cost, path = tier.get("cost"), ("tiers", name, "cost")
            if isinstance(cost, bool) or not isinstance(cost, (int, float)):
                continue
            if before and cost < before[1]:
                self.problems.add(
                    path, f"{cost} is below the {before[1]} of tier {before[0]!r}", "order tiers from cheap to expensive"
                )
            if of_model.setdefault(self._behind(tier.get("model")), cost) != cost:
                self.problems.add(
                    path, f"another tier sets a different cost for {tier.get('model')!r}", "set one cost per model"
                )
            before = (name, cost)

    def _behind(self, target: Any) -> str:
        """Return the catalogue model that serves a role, or the name itself."""
        claims = (name for name, model in self.models.items() if model.get("endpoint") == target)
        return str(target) if isinstance(target, str) and target in self.models else next(claims, str(target))

    # -------------------------------------------------------------------------------------------------- where data may go

    def networks(self) -> list[IPv4Network | IPv6Network]:
        """Return the valid entries of ``local_networks`` and report the invalid ones."""
        value = self.tree.get("local_networks")
        found = []
        for index, text in enumerate(value if isinstance(value, tuple) else ()):
            path = ("local_networks", index)
            if not isinstance(text, str):
                continue
            try:
                network = ip_network(text)
            except ValueError as error:
                reason = "has bits set after its prefix" if "host bits" in str(error) else "is not a network"
                self.problems.add(path, f"{shown(text, path)} {reason}", "allowed: CIDR such as 10.0.0.0/8 or fd00::/8")
                continue
            if network.prefixlen == 0:
                self.problems.add(path, f"{text!r} is the whole internet", "list only the networks of your own machines")
                continue
            found.append(network)
        return found

    def users(self) -> None:
        """Each user in ``local_users`` exists on this machine."""
        value = self.tree.get("local_users")
        for index, name in enumerate(value if isinstance(value, tuple) else ()):
            path = ("local_users", index)
            if isinstance(name, str) and user_id(name) is None:
                self.problems.add(path, f"{shown(name, path)}, which is no user of this machine", "give a name or a number")

    def no_cloud(self) -> None:
        """With ``allow_cloud: false``, no target that a request can reach is a cloud model."""
        line = self.problems.source.line(("allow_cloud",))
        why = f"needs the cloud, but allow_cloud is false{f' (line {line})' if line else ''}"
        local = [name for name in self.targets if not self._is_cloud(name)]
        instead = self._instead(local)
        for task, target in _mapping(self.tree, "task_routing").items():
            if self._is_cloud(target):
                self.problems.add(("task_routing", task), f"{target!r} {why}", one_of(local), hint=instead)
        for path, target in self._fallback_items():
            if self._is_cloud(target):
                self.problems.add(path, f"{target!r} {why}", one_of(local))
        for name, tier in self.tiers.items():
            if self._is_cloud(tier.get("model")):
                self.problems.add(("tiers", name, "model"), f"{tier['model']!r} {why}", one_of(local))
        for name in self._cloud_models():
            if self.models[name].get("backend") == CLOUD_BACKEND:
                self.problems.add(
                    ("models", name, "backend"), f"{name!r} {why}", "remove it, or set backend: vllm for your own server"
                )

    def _instead(self, local: list[str]) -> str:
        """Return what to write in place of a route to the cloud: where most other tasks go."""
        routing = _mapping(self.tree, "task_routing")
        own = [routing[ANY_TASK]] if ANY_TASK in routing else [to for task, to in routing.items() if task != EMBEDDINGS]
        best = max((to for to in own if to in local), key=own.count, default=None)
        return "remove this line" if best is None else f"write {best}, or remove this line"

    def no_public_servers(self, networks: list[IPv4Network | IPv6Network]) -> None:
        """With ``allow_cloud: false``, no server has a public address outside ``local_networks``."""
        endpoints: dict[KeyPath, Any] = {}
        for role, places in _mapping(self.data, "vllm_endpoints").items():
            listed = enumerate(places) if isinstance(places, tuple) else ()
            endpoints |= {("vllm_endpoints", role, index): url for index, url in listed}
            endpoints[("vllm_endpoints", role)] = places
        models = _mapping(self.data, "models").items()
        endpoints |= {("models", name, "base_url"): m.get("base_url") for name, m in models if isinstance(m, Mapping)}
        for path, url in endpoints.items():
            try:
                address = ip_address(urlsplit(url).hostname or "" if isinstance(url, str) else "")
            except ValueError:  # a name, not an address: checked when a connection is made
                continue
            if is_metadata(address):
                self.problems.add(path, "the address of a cloud's metadata service", "give the address of a model server")
                continue
            kind = "link-local" if address.is_link_local else "public"
            if (address.is_global or address.is_link_local) and not any(address in network for network in networks):
                self.problems.add(
                    path, f"{kind} address, but allow_cloud is false", "if it is your own, add its network to local_networks"
                )

    def _cloud_models(self) -> list[str]:
        backends = {name: model.get("backend") for name, model in self.models.items()}
        return [name for name, backend in backends.items() if isinstance(backend, str) and backend not in LOCAL_BACKENDS]

    def _is_cloud(self, target: object, *, through_tier: bool = True) -> bool:
        if not isinstance(target, str):
            return False
        if through_tier and (is_routing_string(target) or target == CASCADE_TARGET):
            with suppress(MarkerError):  # reported already
                return any(self._is_cloud(part) for part in self._parts(target))
            return False
        if through_tier and target in self.tiers:
            return self._is_cloud(self.tiers[target].get("model"), through_tier=False)
        if target in self.targets:
            return self.models.get(target, {}).get("backend") == CLOUD_BACKEND
        return target == CLOUD or in_catalogue(target)


def _mapping(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = tree.get(key)
    return value if isinstance(value, Mapping) else {}
