"""Tiny models with random weights, in the three architectures."""

import pytest

torch = pytest.importorskip("torch", reason="pip install '.[moe]'")
pytest.importorskip("transformers", reason="pip install '.[moe]'")

ARCHITECTURES = ("olmoe", "qwen2_moe", "mixtral")
VOCABULARY = 60


def tiny_model(architecture, *, seed=0, layers=3, experts=6, k=2):
    """A model with random weights, large enough ones for its routes to differ from token to token."""
    from transformers import (
        MixtralConfig,
        MixtralForCausalLM,
        OlmoeConfig,
        OlmoeForCausalLM,
        Qwen2MoeConfig,
        Qwen2MoeForCausalLM,
    )

    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_experts_per_tok": k,
        "max_position_embeddings": 128,
        "initializer_range": 0.4,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    torch.manual_seed(seed)
    if architecture == "olmoe":
        return OlmoeForCausalLM(OlmoeConfig(**shape, num_experts=experts)).eval()
    if architecture == "mixtral":
        return MixtralForCausalLM(MixtralConfig(**shape, num_local_experts=experts)).eval()
    config = Qwen2MoeConfig(
        **shape, num_experts=experts, moe_intermediate_size=16, shared_expert_intermediate_size=16, mlp_only_layers=[1]
    )
    return Qwen2MoeForCausalLM(config).eval()


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    """One of each architecture; the Qwen2-MoE's middle layer has no experts."""
    return tiny_model(request.param)
