"""Why vLLM has ended, read from what it wrote; the lines are those of vLLM 0.32."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_composer.fleet.launch.exit_reasons import is_lasting, last_line, reason

SYMPTOM = "(APIServer pid=9) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
ENGINE = "(EngineCore pid=12) ERROR 11-25 22:50:33 [core.py:1100] "


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (
            "ValueError: Free memory on device cuda:0 (3.1/14.6 GiB) on startup is less than desired GPU memory utilization",
            "not enough GPU memory: ValueError: Free memory",
        ),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "not enough GPU memory: "),
        (
            "ValueError: To serve at least one request with the models's max seq len (4096), 2 GiB KV cache is needed",
            "the KV cache is too small for one request",
        ),
        ("OSError: [Errno 28] No space left on device", "the disk is full: OSError"),
        ("ValueError: Invalid quantization method: awqq", "this quantization is not supported on this hardware: "),
        (
            "ValueError: The quantization method auto_awq is not supported for the current GPU. Minimum capability: 75. ",
            "this quantization is not supported on this hardware: ",
        ),
        (
            "OSError: Can't load the configuration of 'Org/Nix'. If you were trying to load it from the hub, make sure",
            "the model was not found: ",
        ),
        ("ValueError: Invalid repository ID or local directory specified: '/nix'.", "the model was not found: "),
        ("OSError: [Errno 98] error while attempting to bind: [errno 98] address already in use", "the port is in use: "),
        ("MemoryError: cannot allocate", "not enough memory: "),
        ("KeyError: 'lm_head.weight'", "KeyError: 'lm_head.weight'"),
    ],
)
def test_the_engines_error_is_the_reason_and_not_what_came_of_it(line, what):
    tail = f"INFO loading\n{ENGINE}Traceback (most recent call last):\n{ENGINE}{line}\n{SYMPTOM}\n"

    found = reason(tail, 1)

    assert found.startswith(what)
    assert "\n" not in found
    assert "pid=" not in found


def test_an_option_that_vllm_does_not_know_is_named():
    assert reason("api_server.py: error: unrecognized arguments: --nix\n", 2).startswith(
        "vLLM rejects an option: api_server.py: error: unrecognized arguments: --nix; check `arguments`"
    )


@pytest.mark.parametrize(
    ("tail", "code", "found"),
    [
        ("serving\n", 137, "killed by SIGKILL: by a user, or by the system for lack of memory"),
        ("", 139, "terminated by signal 11"),
        ("INFO 11-25 22:50:33 [a.py:1] bye\n", 3, "exit code 3: bye"),
        ("", 0, "exit code 0"),
    ],
)
def test_without_an_error_in_the_log_the_exit_code_is_the_reason(tail, code, found):
    assert reason(tail, code) == found


def test_a_secret_in_the_log_is_not_repeated():
    assert "hf_abcdef" not in reason("ValueError: token hf_abcdefghijklmnopqrst is wrong\n", 1)


@given(st.text(), st.integers(0, 255))
def test_a_reason_is_one_line_that_commands_no_terminal(tail, code):
    found = reason(tail, code)

    assert found.isprintable()
    assert 0 < len(found) < 500
    assert last_line(tail).isprintable() or last_line(tail) == ""


@pytest.mark.parametrize(
    ("tail", "lasting"),
    [
        ("api_server.py: error: unrecognized arguments: --disable-log-requests", True),
        ("huggingface_hub.errors.GatedRepoError: 403 Client Error. Access is restricted", True),
        ("OSError: acme/none is not a local folder and is not a valid model identifier", True),
        ("ModuleNotFoundError: No module named 'flash_attn'", True),
        ("OSError: We couldn't connect to 'https://huggingface.co' to load the files", False),
        ("OSError: Can't load the model for 'a/b'\nConnection reset by peer", False),
        ("torch.cuda.OutOfMemoryError: CUDA out of memory", False),
        ("RuntimeError: NCCL error", False),
        ("", False),
    ],
)
def test_only_what_a_person_must_change_lasts(tail, lasting):
    assert is_lasting(tail, 1) is lasting
