"""What a conversation may hold."""

import pytest

from llasm.chat import check_messages
from llasm.errors import LlasmError

USER = {"role": "user", "content": "Hello."}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages must be a list of at least one message"),
        ([{"role": "robot", "content": "Hello."}], "message 0: role is 'robot'; it must be one of"),
        ([USER, {"role": "assistant"}, USER], r"message 1: content must be text or .*, not None"),
        ([{"role": "user", "content": []}], r"message 0: content must be .* non-empty list of parts, not \[\]"),
        ([{"role": "user", "content": [{"type": "image"}]}], "message 0: a part must be"),
        ([{"role": "user", "content": "an <|audio|> here"}], "message 0: the text holds <.audio.>"),
        ([USER, {"role": "assistant", "content": "Hi."}], "the last message is the assistant's; it must be the user's"),
    ],
)
def test_a_conversation_that_breaks_the_contract_is_named(messages, message):
    with pytest.raises(LlasmError, match=message):
        check_messages(messages)
    check_messages([USER])
