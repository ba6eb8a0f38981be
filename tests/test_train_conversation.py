"""Messages → tokens and loss mask, under several chat templates."""

from importlib.resources import files

import pytest
import torch

from llasm.errors import LlasmError
from llasm.processing_llasm import build_processor
from llasm.train.conversation import Renderer, with_texts

CONVERSATION = [
    {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
    {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "and"}, {"type": "audio"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    {"role": "user", "content": [{"type": "audio"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "Two."}]},
]


@pytest.fixture(scope="module")
def processor(bases):
    return build_processor(bases["audio_base"], bases["text_base"], 4, "heard")


def printed(rendered, processor):
    """Token by token, what is learned in brackets."""
    tokens = [processor.tokenizer.decode([i]) for i in rendered.ids]
    return "".join(f"[{token}]" if learned else token for token, learned in zip(tokens, rendered.learned.tolist()))


def test_only_the_assistants_turns_are_learned(processor):
    rendered = Renderer(processor, {processor.tokenizer.eos_token_id})(CONVERSATION)
    assert printed(rendered, processor) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|audio|>\nand\n<|audio|><|im_end|>\n"
        "<|im_start|>assistant\n[A][ ][c][a][t][.][<|im_end|>]\n"
        "<|im_start|>user\n<|audio|><|im_end|>\n"
        "<|im_start|>assistant\n[T][w][o][.][<|im_end|>]\n"
    )
    cut_off = Renderer(processor, {processor.tokenizer.eos_token_id})(CONVERSATION, truncated=True)
    no_end = printed(rendered, processor).replace("[<|im_end|>]", "<|im_end|>")
    assert printed(cut_off, processor) == no_end  # no false stop is taught


# Of Llama 3, in its main lines: the turn's end is no end of text.
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA2 = (files("llasm.train") / "templates/llama2.jinja").read_text()
MASKS = {
    "llama2": (
        "<|im_start|>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n<|audio|>\nand\n<|audio|> [/INST]"
        "[ ][A][ ][c][a][t][.][ ][<|im_end|>]"
        "<|im_start|>[INST] <|audio|> [/INST]"
        "[ ][T][w][o][.][ ][<|im_end|>]"
    ),
    "llama3": (
        "<|im_start|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n<|audio|>\nand\n<|audio|><|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[A][ ][c][a][t][.][<|eot_id|>]"
        "<|start_header_id|>user<|end_header_id|>\n\n<|audio|><|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[T][w][o][.][<|eot_id|>]"
    ),
}


@pytest.mark.parametrize(("name", "template"), [("llama2", LLAMA2), ("llama3", LLAMA3)])
def test_the_mask_under_llamas_templates(name, template, bases):
    processor = build_processor(bases["audio_base"], bases["text_base"], 4, "heard", template)
    headers = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    processor.tokenizer.add_tokens(headers, special_tokens=True)
    end = "<|eot_id|>" if name == "llama3" else processor.tokenizer.eos_token
    render = Renderer(processor, {processor.tokenizer.convert_tokens_to_ids(end)})
    assert printed(render(CONVERSATION), processor) == MASKS[name]
    cut_off = printed(render(CONVERSATION, truncated=True), processor)
    assert cut_off == MASKS[name].replace(f"[{end}]", end)


def test_a_typed_conversation_has_the_same_answers(processor):
    render = Renderer(processor, {processor.tokenizer.eos_token_id})
    typed = render(with_texts(CONVERSATION, ["one", "two", "three"]))
    assert "user\none\nand\ntwo<|im_end|>" in printed(typed, processor)
    assert torch.equal(typed.answer, render(CONVERSATION).answer)


def test_a_template_that_rewrites_earlier_turns_is_refused(bases):
    processor = build_processor(bases["audio_base"], bases["text_base"], 4, "heard")
    processor.chat_template = "{% for m in messages %}{{ messages | length }}{{ m.content }}{% endfor %}"
    with pytest.raises(LlasmError, match="writes an earlier turn differently"):
        Renderer(processor, set())([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
