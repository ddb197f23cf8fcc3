"""vLLM's command line: every key of a role, and what each kind of hardware makes of it."""

from __future__ import annotations

import pytest

from workflow_composer.errors import FleetError
from workflow_composer.fleet.launch.command import Command, cache_space, device, vllm_command
from workflow_composer.fleet.launch.hardware import Build, Gpu, Hardware
from workflow_composer.fleet.settings import RoleSpec

GIGA = 10**9
CPU, CUDA = Build("python3", "0.32.0", "cpu"), Build("python3", "0.11.0", "cuda")
T4 = Gpu(0, "Tesla T4", 75, 16 * GIGA, 15 * GIGA)
A100 = Gpu(1, "A100", 80, 80 * GIGA, 79 * GIGA)
UNKNOWN = Gpu(0, "GPU", None, 16 * GIGA, 15 * GIGA)
V100 = Gpu(0, "Tesla V100", 70, 16 * GIGA, 15 * GIGA)


def role(**keys):
    return RoleSpec(**{"name": "r", "model": "Org/Model", "port": 8001} | keys)


def command(*gpus, build=None, options=(), environ=None, visible=False, **keys) -> Command:
    return vllm_command(
        role(**keys),
        build or (CUDA if gpus else CPU),
        port=8001,
        listen="127.0.0.1",
        environ=environ or {},
        gpus=gpus,
        visible=visible,
        options=options,
    )


def value(found: Command, option: str) -> str | None:
    """What follows an option on the command line; None where it does not stand there."""
    return found.argv[found.argv.index(option) + 1] if option in found.argv else None


def test_the_shipped_coder_on_a_t4_is_this_command():
    found = command(
        T4,
        model="Qwen/Qwen2.5-Coder-7B-Instruct-AWQ",
        dtype="half",
        quantization="awq",
        max_model_len=16384,
        gpu_memory_utilization=0.9,
    )

    assert found.shown == (
        "VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=0 "
        "python3 -m vllm.entrypoints.openai.api_server --model Qwen/Qwen2.5-Coder-7B-Instruct-AWQ "
        "--served-model-name Qwen/Qwen2.5-Coder-7B-Instruct-AWQ --host 127.0.0.1 --port 8001 --dtype half "
        "--quantization awq --max-model-len 16384 --gpu-memory-utilization 0.9 --enable-prefix-caching"
    )
    assert found.notes == ()


def test_every_name_of_a_model_is_served_and_the_first_one_is_its_own():
    """VLLM answers under the first of the names, and takes requests for each."""
    argv = command(T4, model="Qwen/Qwen2.5-7B", aliases=("Qwen2.5-7B", "Qwen/Qwen2.5-7B", "seven")).argv
    start = argv.index("--served-model-name")
    assert argv[start + 1 : argv.index("--host")] == ("Qwen/Qwen2.5-7B", "Qwen2.5-7B", "seven")


def test_a_model_of_vectors_runs_as_one():
    assert value(command(T4, task="pooling"), "--runner") == "pooling"
    assert value(command(T4), "--runner") is None


def test_prefix_caching_is_switched_off_by_its_key():
    assert "--no-enable-prefix-caching" in command(T4, prefix_caching=False).argv
    assert "--enable-prefix-caching" in command(T4).argv
    pooling = command(T4, task="pooling").argv
    assert not {"--enable-prefix-caching", "--no-enable-prefix-caching"} & set(pooling)
    assert "--no-enable-prefix-caching" in command(T4, task="pooling", prefix_caching=False).argv


def test_gpus_are_spanned_and_named_in_the_order_of_the_bus():
    found = command(T4, A100, gpus=2)

    assert value(found, "--tensor-parallel-size") == "2"
    assert found.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert "CUDA_VISIBLE_DEVICES" not in command(T4, visible=True).environ


def test_arguments_come_before_the_options_of_this_start():
    assert command(T4, arguments=("--seed=1",), options=("--seed=2",)).argv[-2:] == ("--seed=1", "--seed=2")


@pytest.mark.parametrize("option", ["--port", "--port=1", "--served_model_name=x", "-tp", "--api-key", "--uds=/x"])
def test_an_option_that_a_key_sets_cannot_be_given_beside_it(option):
    with pytest.raises(FleetError, match="is not allowed here"):
        command(T4, options=(option,))


@pytest.mark.parametrize(
    ("gpu", "dtype", "used", "noted"),
    [
        (T4, "auto", "half", False),
        (T4, "half", "half", False),
        (T4, "float32", "float32", False),
        (T4, "bfloat16", "half", True),
        (A100, "auto", "auto", False),
        (A100, "bfloat16", "bfloat16", False),
        (UNKNOWN, "bfloat16", "bfloat16", False),
    ],
)
def test_a_gpu_without_bfloat16_computes_in_half(gpu, dtype, used, noted):
    found = command(gpu, dtype=dtype)

    assert value(found, "--dtype") == used
    assert found.notes == (("Tesla T4 (compute capability 7.5) has no bfloat16: using half",) if noted else ())


def test_the_weakest_of_several_gpus_decides():
    assert value(command(A100, T4, gpus=2), "--dtype") == "half"


@pytest.mark.parametrize(
    ("gpu", "method", "used"),
    [
        (T4, "awq", "awq"),
        (T4, "awq_marlin", "awq"),
        (T4, "gptq_marlin", "gptq"),
        (A100, "awq_marlin", "awq_marlin"),
        (T4, "int8_per_channel_weight_only", "int8_per_channel_weight_only"),
        (V100, "gptq", "gptq"),
        (V100, "bitsandbytes", "bitsandbytes"),
        (UNKNOWN, "experts_int8", "experts_int8"),
        (V100, "awq", "awq"),
    ],
)
def test_a_quantization_that_the_gpu_lacks_is_replaced_where_another_reads_the_same_weights(gpu, method, used):
    found = command(gpu, quantization=method)

    assert value(found, "--quantization") == used
    assert bool(found.notes) == (used != method)


# --------------------------------------------------------------------------------------------------------------- on a CPU


def test_on_a_cpu_there_are_no_options_of_gpus_and_the_cache_has_its_space():
    found = command(gpu_memory_utilization=0.5, memory_gb=4, max_model_len=512)

    assert "--gpu-memory-utilization" not in found.argv
    assert (value(found, "--dtype"), value(found, "--max-model-len")) == ("float32", "512")
    assert found.environ["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert "--enforce-eager" in found.argv


def test_servers_on_one_cpu_are_not_all_bound_to_its_first_cores():
    assert command().environ["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert command(environment={"VLLM_CPU_OMP_THREADS_BIND": "auto"}).environ["VLLM_CPU_OMP_THREADS_BIND"] == "auto"
    assert "VLLM_CPU_OMP_THREADS_BIND" not in command(T4).environ


def test_what_the_role_says_of_the_number_format_holds_on_a_cpu_too():
    assert value(command(dtype="bfloat16"), "--dtype") == "bfloat16"
    assert value(command(quantization="awq"), "--dtype") == "auto"


@pytest.mark.parametrize(("memory", "space"), [(None, 2), (1, 1), (8, 2), (64, 15)])
def test_a_quarter_of_the_memory_is_for_the_cache_of_a_cpu(memory, space):
    assert cache_space(role(memory_gb=memory)) == space


def test_what_a_person_has_set_in_the_environment_or_the_role_stays():
    set_there = {"VLLM_CPU_KVCACHE_SPACE": "9", "VLLM_CPU_OMP_THREADS_BIND": "0-3", "DO_NOT_TRACK": "0"}
    found = command(environ=set_there, environment={"A": "b"})

    assert found.environ == {"VLLM_NO_USAGE_STATS": "1", "A": "b"}
    assert command(environment={"VLLM_CPU_KVCACHE_SPACE": "3"}).environ["VLLM_CPU_KVCACHE_SPACE"] == "3"


def test_a_model_in_a_folder_fetches_nothing_and_an_id_may():
    assert command(model="/weights").environ["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in command().environ
    assert command().environment({"HF_HUB_OFFLINE": "1"})["HF_HUB_OFFLINE"] == "1"


# --------------------------------------------------------------------------------------------------------------- the key


def test_the_key_goes_by_the_environment_and_is_shown_nowhere():
    found = command(T4, environ={"MY_KEY": "s3cret"}, api_key_env="MY_KEY")

    assert found.environment({"MY_KEY": "s3cret"})["VLLM_API_KEY"] == "s3cret"
    assert "s3cret" not in repr(found) + found.shown
    assert 'VLLM_API_KEY="$MY_KEY"' in found.shown


def test_a_key_that_is_not_set_is_a_fault():
    with pytest.raises(FleetError, match="MY_KEY is not set"):
        command(T4, api_key_env="MY_KEY")


def test_without_api_key_env_vllms_own_variable_counts_for_nothing():
    found = command(T4, environ={"VLLM_API_KEY": "x"})

    assert "VLLM_API_KEY" not in found.environment({"VLLM_API_KEY": "x"})
    assert "-u VLLM_API_KEY" in found.shown


# ------------------------------------------------------------------------------------------------------------- the device


def test_the_device_is_what_vllm_is_built_for():
    assert device(role(), Hardware((T4,)), CUDA) == "cuda"
    assert device(role(), Hardware((T4,)), CPU) == "cpu"
    assert device(role(device="cpu"), Hardware(), CPU) == "cpu"


@pytest.mark.parametrize(
    ("keys", "gpus", "build", "fault"),
    [
        ({}, (), CUDA, "no GPU here: nvidia-smi not found"),
        ({"device": "rocm"}, (T4,), CUDA, "sets device: rocm, but the vLLM of python3 is built for GPUs"),
        ({"device": "cuda"}, (T4,), CPU, "sets device: cuda, but the vLLM of python3 is built for the CPU"),
        ({"device": "cpu"}, (T4,), CUDA, "sets device: cpu, but the vLLM of python3 is built for GPUs"),
        ({"gpus": 2}, (T4,), CUDA, "needs 2 GPUs, but this node has 1"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(keys, gpus, build, fault):
    with pytest.raises(FleetError, match=fault) as caught:
        device(role(**keys), Hardware(gpus, "" if gpus else "nvidia-smi not found"), build)
    assert caught.value.hint
