"""A gate in torch: a linear layer with a bias for each cluster of tokens, as trained gates turn out to have one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from workflow_composer.moe.hashing import weights_key
from workflow_composer.moe.learned_gate import GateOutput, WeightsName


class RealisticMoERouter(nn.Linear):
    """``nn.Linear`` from ``hidden_dim`` to ``num_experts``, plus a semantic bias of the token's cluster.

    Trained gates send most tokens by what they are, and fewer by their context (Xue et al. 2024, OpenMoE, section 5). So
    each of the ``num_clusters`` clusters favours ``top_k`` experts: the first by ``bias_strength``, the next by three
    quarters of it, and so on. ``ambiguous`` is the share of clusters that favour none. Token t belongs to cluster t modulo
    their number. Deterministic from ``seed``.
    """

    semantic_bias: torch.Tensor

    def __init__(
        self,
        hidden_dim: int = 64,
        num_experts: int = 8,
        *,
        top_k: int = 2,
        num_clusters: int = 32,
        bias_strength: float = 10.0,
        ambiguous: float = 0.0625,
        seed: int = 0,
    ) -> None:
        super().__init__(hidden_dim, num_experts, bias=False)
        self.hidden_dim, self.num_experts, self.top_k = hidden_dim, num_experts, top_k
        drawing = torch.Generator().manual_seed(seed)
        bias = torch.zeros(num_clusters, num_experts)
        for cluster in range(num_clusters - round(ambiguous * num_clusters)):
            favoured = torch.randperm(num_experts, generator=drawing)[:top_k]
            bias[cluster, favoured] = bias_strength * 0.75 ** torch.arange(top_k, dtype=torch.float32)
        # Which clusters are ambiguous must not go with how frequent their tokens are.
        bias = bias[torch.randperm(num_clusters, generator=drawing)]
        with torch.no_grad():
            self.weight.copy_(torch.randn(num_experts, hidden_dim, generator=drawing) * (0.5 / hidden_dim**0.5))
        self.semantic_bias = nn.Parameter(bias)
        self._name = WeightsName()

    def forward(self, hidden: Any, token_ids: Any = None) -> GateOutput:
        """Decide for ``hidden`` [..., d]; without ``token_ids`` [...], without the semantic bias."""
        logits = super().forward(hidden)
        if token_ids is not None:
            logits = logits + self.semantic_bias[token_ids % len(self.semantic_bias)]
        top, experts = logits.topk(self.top_k, dim=-1)
        confidence = (top.logsumexp(dim=-1) - logits.logsumexp(dim=-1)).exp()
        return GateOutput(top.softmax(dim=-1), confidence, logits, experts)

    def route(self, hidden: Any, token_ids: Any) -> GateOutput:
        """`forward` without gradients."""
        with torch.no_grad():
            return self(hidden, token_ids)  # type: ignore[no-any-return]  # a module's call is untyped

    def fingerprint(self) -> int:
        """The name of the weights; see `fingerprint_of`."""
        return fingerprint_of(self._name, self.weight, self.semantic_bias)


def fingerprint_of(name: WeightsName, *tensors: torch.Tensor) -> int:
    """The `weights_key` of tensors, kept while they are the same.

    On a CPU, their bytes are looked at each time. On other devices torch's own counters of changes tell; they do not count
    changes by way of ``tensor.data``.
    """
    version = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return name.of(*(_array(tensor) for tensor in tensors), version=version)
    if version != name.version:
        name.keep(weights_key(*(_array(tensor.cpu()) for tensor in tensors)), version)
    return name.key


def _array(tensor: torch.Tensor) -> Any:
    found = tensor.detach()
    return (found.float() if found.dtype == torch.bfloat16 else found).numpy()
