"""OpenAI's request and response shapes, as far as this server speaks them.

A field that a client may send and that would change the answer in a way this server can't is refused, unless it holds
its neutral value; a field that changes nothing here (`user`, `metadata` …) is accepted.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_MESSAGES = 1_000
MAX_PARTS = 64  # of one message
MAX_CLIPS = 32  # of one request
MAX_CHARACTERS = 500_000  # of one request: beyond any model's context, and quick to find out
MAX_STOPS = 4
MAX_SPOKEN = 4_096  # characters of /v1/audio/speech


def too_much(n_clips: int, n_characters: int) -> str:
    """What a request's messages have too much of, if anything."""
    if n_clips > MAX_CLIPS:
        return f"hold {n_clips} clips; at most {MAX_CLIPS} do"
    if n_characters > MAX_CHARACTERS:
        return f"hold {n_characters} characters; at most {MAX_CHARACTERS} do"
    return ""


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is no character") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Off = Annotated[float, Field(ge=0, le=0)]
Nothing = Annotated[list[Any], Field(max_length=0)]
NoKeys = Annotated[dict[str, Any], Field(max_length=0)]


class Strict(BaseModel):
    """No unknown field, and no number made out of a string."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(Strict):
    type: Literal["text"]
    text: Text


class InputAudio(Strict):
    data: str = Field(description="the file, base64-encoded")
    format: str | None = Field(None, description="wav, mp3, flac, ogg, m4a or webm; the content itself decides")


class InputAudioPart(Strict):
    type: Literal["input_audio"]
    input_audio: InputAudio


class AudioUrl(Strict):
    url: str = Field(description="a data: URI; http(s) where the server was started with --fetch_audio")


class AudioUrlPart(Strict):
    type: Literal["audio_url"]
    audio_url: AudioUrl


Part = Annotated[TextPart | InputAudioPart | AudioUrlPart, Field(discriminator="type")]


class SystemMessage(Strict):
    role: Literal["system", "developer"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_PARTS)]
    name: str | None = None


class UserMessage(Strict):
    role: Literal["user"]
    content: Text | Annotated[list[Part], Field(min_length=1, max_length=MAX_PARTS)]
    name: str | None = None


class AudioId(BaseModel):
    """What `message.audio` of an earlier answer held; the id alone is enough."""

    model_config = ConfigDict(extra="ignore", strict=True)
    id: str


class AssistantMessage(BaseModel):
    """An earlier answer, also as the client library dumps it: with fields that this server leaves empty."""

    model_config = ConfigDict(extra="ignore", strict=True)
    role: Literal["assistant"]
    content: Text | Annotated[list[TextPart], Field(max_length=MAX_PARTS)] | None = None
    audio: AudioId | None = None


ChatMessage = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class AudioOut(Strict):
    voice: str = Field("default", description="engine or engine:voice; default or OpenAI's names: the server's own")
    format: Literal["mp3", "wav", "flac", "opus", "pcm16"] = "wav"


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ResponseFormat(Strict):
    type: Literal["text"]


class ChatRequest(Strict):
    """A conversation whose last message is the user's."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description="0, the default, is greedy")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=MAX_STOPS)] | None = None
    modalities: Annotated[list[Literal["text", "audio"]], Field(min_length=1, max_length=2)] | None = None
    audio: AudioOut | None = None

    # Only their neutral values: anything else would ask for what is not done here.
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    presence_penalty: Off | None = None
    frequency_penalty: Off | None = None
    logit_bias: NoKeys | None = None
    tools: Nothing | None = None
    functions: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    response_format: ResponseFormat | None = None

    # These change nothing in an answer.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    parallel_tool_calls: bool | None = None


class SpeechRequest(Strict):
    """A text to say."""

    model: str
    input: Annotated[Text, Field(min_length=1, max_length=MAX_SPOKEN)]
    voice: str = Field("default", description="engine or engine:voice; default or OpenAI's names: the server's own")
    response_format: Literal["mp3", "wav", "flac", "opus", "pcm"] = "mp3"
    speed: Annotated[float, Field(ge=0.25, le=4)] = 1.0
    stream_format: Literal["audio"] | None = None


# ---- answers


class AudioTokens(BaseModel):
    audio_tokens: int
    cached_tokens: int = 0


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: AudioTokens


class SpokenAnswer(BaseModel):
    id: str
    data: str
    transcript: str
    expires_at: int


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    audio: SpokenAnswer | None = None


class Choice(BaseModel):
    index: int = 0
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "llasm"


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Segment(BaseModel):
    id: int
    start: float
    end: float
    text: str


class Transcription(BaseModel):
    """`json` has the text alone; `verbose_json` the rest."""

    text: str
    task: Literal["transcribe"] | None = None
    language: str | None = None
    duration: float | None = None
    segments: list[Segment] | None = None


class Health(BaseModel):
    status: Literal["ok", "draining"]
    running: int
    waiting: int


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail
