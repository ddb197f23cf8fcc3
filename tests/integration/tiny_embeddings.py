"""Makes a tiny model of bge-m3's kind (XLM-RoBERTa) with random weights; run by the Python that has vLLM: ``FOLDER``."""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "what", "is", "a", "bam", "file", "protein", "gene", "cell", "to", "sort"]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}


def main(folder: Path) -> None:
    """Write the model and its tokenizer."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=ends
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", **SPECIAL)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=130,
        type_vocab_size=1,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        position_embedding_type="absolute",  # transformers 5 does not write it by itself, and vLLM 0.32 asks for it
    )
    XLMRobertaModel(config).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
