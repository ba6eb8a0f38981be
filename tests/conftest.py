"""What several test files need: tiny random bases of the real architectures, and a small spoken data set."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """Random Whisper and Llama directories, and a byte-level tokenizer."""
    torch.manual_seed(0)
    whisper, llm = tmp_path_factory.mktemp("whisper"), tmp_path_factory.mktemp("llm")
    sizes = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    sizes |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "d_model": 32}
    WhisperForConditionalGeneration(WhisperConfig(**sizes)).save_pretrained(whisper)
    WhisperFeatureExtractor().save_pretrained(whisper)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<|im_start|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(llm)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(fast), tie_word_embeddings=True, **shape)).save_pretrained(llm)
    return {"audio_base": str(whisper), "text_base": str(llm)}


@pytest.fixture(scope="session")
def spoken(tmp_path_factory):
    """Eight spoken questions with answers, one of them with two turns."""
    from llasm.data_gen.build import build
    from llasm.data_gen.recipe import Recipe, Respond, Verify

    folder = tmp_path_factory.mktemp("spoken")
    rows = [[("user", f"Question number {i}?"), ("assistant", "Yes.")] for i in range(8)]
    rows[0] = [("user", "Who is it?"), ("assistant", "Me."), ("user", "And now?"), ("assistant", "Still me.")]
    with open(folder / "in.jsonl", "w") as out:
        for row in rows:
            out.write(json.dumps({"messages": [{"role": r, "content": c} for r, c in row]}) + "\n")
    source, quick = str(folder / "in.jsonl"), {"respond": Respond(answers="never"), "verify": Verify(asr="none")}
    build(Recipe(output=str(folder / "out"), input=source, workers=1, **quick))
    return str(folder / "out")


@pytest.fixture
def engine():
    """An engine that answers at once, behind the API; tests of real engines have their own."""
    from serve_fakes import FakeEngine

    return FakeEngine()


@pytest.fixture
def client(engine):
    """Of the API over it, with low limits."""
    from serve_fakes import client_of

    with client_of(engine, max_audio_seconds=20, max_body_mb=1, max_new_tokens=100) as client:
        yield client
