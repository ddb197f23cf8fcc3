"""Greedy answers of vLLM or transformers to the shipped problems; runs in a Python that has them, not in the tests' own.

python engine_answers.py {vllm,transformers} CHECKPOINT PROBLEMS COUNT OUTPUT

OUTPUT becomes a JSON list of texts. Both engines compute in float32, as mistral.rs does on a CPU.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

LONGEST = 120


def transformers(checkpoint: str, questions: list[str]) -> list[str]:
    """Prompts of one length run together, so that nothing is padded."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    groups: dict[int, list[tuple[int, list[int]]]] = {}
    for number, question in enumerate(questions):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, add_special_tokens=False).input_ids
        groups.setdefault(len(ids), []).append((number, ids))
    answers = [""] * len(questions)
    for length, group in groups.items():
        prompts = torch.tensor([ids for _, ids in group])
        with torch.inference_mode():
            outputs = model.generate(
                prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=LONGEST
            )
        for (number, _), output in zip(group, outputs[:, length:], strict=True):
            answers[number] = tokenizer.decode(output, skip_special_tokens=True)
    return answers


def vllm(checkpoint: str, questions: list[str]) -> list[str]:
    """VLLM's offline engine, on the CPU where there is no GPU."""
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="ERROR")
    os.environ.update(VLLM_CPU_OMP_THREADS_BIND="nobind", OMP_NUM_THREADS="1")  # other servers may run beside it
    from vllm import LLM, SamplingParams

    engine = LLM(checkpoint, dtype="float32", enforce_eager=True, max_num_seqs=128, disable_log_stats=True)
    chats = [[{"role": "user", "content": question}] for question in questions]
    outputs = engine.chat(chats, SamplingParams(temperature=0.0, max_tokens=LONGEST), use_tqdm=False)
    return [output.outputs[0].text for output in outputs]


def main() -> None:
    """Answer the first problems and write the texts."""
    engine, checkpoint, problems, count, output = sys.argv[1:]
    lines = Path(problems).read_text().splitlines()[: int(count)]
    questions = [json.loads(line)["question"] for line in lines]
    answers = {"vllm": vllm, "transformers": transformers}[engine](checkpoint, questions)
    Path(output).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
