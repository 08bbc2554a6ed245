"""A tour of a running server with OpenAI's own Python client.

    pip install openai
    python tour.py http://127.0.0.1:8000 [KEY]

Prints a line for each check; ends with 1 if one of them failed. The server must offer one model with a chat template.
"""

import asyncio
import json
import sys

import openai

URL = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
KEY = sys.argv[2] if len(sys.argv) > 2 else "none"
client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=120)
MODEL = client.models.list().data[0].id
FAILED = []
HELLO = [{"role": "user", "content": "Tell me a story."}]


def check(function):
    """Runs a check at once and says how it went."""
    name = function.__name__.replace("_", " ")
    try:
        said = function()
        print(f"ok    {name}" + (f": {said}" if said else ""))
    except Exception as e:  # whatever goes wrong is what this program is to find
        FAILED.append(name)
        print(f"FAIL  {name}: {type(e).__name__}: {e}")
    return function


def refused(kind, param, **arguments):
    """The error of a chat that must be refused."""
    try:
        client.chat.completions.create(**{"model": MODEL, "messages": HELLO, "max_tokens": 4, **arguments})
    except kind as e:
        assert e.body and {"message", "type", "param", "code"} <= set(e.body), f"error body {e.body}"
        assert e.body["param"] == param, f"param {e.body['param']!r}, expected {param!r}"
        return e
    raise AssertionError(f"{arguments} was accepted")


def chat(**arguments):
    return client.chat.completions.create(**{"model": MODEL, "messages": HELLO, "max_tokens": 24, "seed": 7, **arguments})


@check
def models():
    assert client.models.retrieve(MODEL).id == MODEL
    return MODEL


@check
def an_unknown_model_is_404():
    try:
        client.models.retrieve("no-such-model")
    except openai.NotFoundError as e:
        assert e.body["code"] == "model_not_found", e.body
        return
    raise AssertionError("found")


@check
def chat_completion():
    answer = chat()
    choice, usage = answer.choices[0], answer.usage
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    return choice.message.content[:40]


@check
def the_seed_repeats_an_answer():
    first, second, other = chat(temperature=1.0), chat(temperature=1.0), chat(temperature=1.0, seed=8)
    assert first.choices[0].message.content == second.choices[0].message.content
    assert first.choices[0].message.content != other.choices[0].message.content


@check
def a_stream_is_the_same_answer():
    whole = chat(temperature=0.8)
    text, finish, usage, roles = "", [], None, []
    for chunk in chat(temperature=0.8, stream=True, stream_options={"include_usage": True}):
        if chunk.usage:
            assert not chunk.choices
            usage = chunk.usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            roles += [choice.delta.role] if choice.delta.role else []
            finish += [choice.finish_reason] if choice.finish_reason else []
    assert text == whole.choices[0].message.content, (text, whole.choices[0].message.content)
    assert finish == [whole.choices[0].finish_reason] and roles == ["assistant"]
    assert usage.completion_tokens == whole.usage.completion_tokens and usage.prompt_tokens == whole.usage.prompt_tokens


@check
def the_stream_helper_accumulates():
    with client.chat.completions.stream(model=MODEL, messages=HELLO, max_tokens=8, seed=1) as stream:
        try:
            for _ in stream:
                pass
            final = stream.get_final_completion()
        except openai.LengthFinishReasonError as e:  # the helper's way to say that the limit was reached
            final = e.completion
    assert final.choices[0].message.content


@check
def several_choices():
    answer = chat(n=3, temperature=1.0)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert len({c.message.content for c in answer.choices}) > 1
    greedy = chat(n=2, temperature=0)
    assert greedy.choices[0].message.content == greedy.choices[1].message.content


@check
def logprobs():
    answer = chat(logprobs=True, top_logprobs=3, max_tokens=6, temperature=0)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert abs(token.logprob - token.top_logprobs[0].logprob) < 1e-6, "greedy takes the most probable"
    assert "".join(t.token for t in content) == answer.choices[0].message.content
    bare = chat(logprobs=True, max_tokens=2)
    assert bare.choices[0].logprobs.content[0].top_logprobs == []


@check
def a_stop_text_ends_and_is_not_shown():
    whole = chat(temperature=0, max_tokens=40).choices[0].message.content
    stop = whole[10:14]
    cut = chat(temperature=0, max_tokens=40, stop=[stop])
    assert cut.choices[0].message.content == whole[: whole.index(stop)] and cut.choices[0].finish_reason == "stop"


@check
def the_length_is_kept():
    answer = chat(max_completion_tokens=5, max_tokens=openai.omit, extra_body={"ignore_eos": True})
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 5


@check
def a_bias_forbids_a_token():
    first = chat(temperature=0, max_tokens=1, logprobs=True, top_logprobs=2)
    content = first.choices[0].message.content
    ids = json.loads(client.post("/../tokenize", cast_to=str, body={"model": MODEL, "prompt": content, "add_special_tokens": False}))
    banned = {str(t): -100 for t in ids["tokens"]}
    assert chat(temperature=0, max_tokens=1, logit_bias=banned).choices[0].message.content != content


@check
def text_completion():
    answer = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=16, temperature=0)
    assert answer.object == "text_completion" and answer.choices[0].text
    pieces = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=16, temperature=0, stream=True)
    assert "".join(p.choices[0].text for p in pieces if p.choices) == answer.choices[0].text
    return answer.choices[0].text[:40]


@check
def several_prompts_and_choices():
    answer = client.completions.create(model=MODEL, prompt=["Once", "The king"], n=2, max_tokens=4, seed=3)
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    echo = client.completions.create(model=MODEL, prompt="Once upon", echo=True, max_tokens=2, logprobs=1, temperature=0)
    assert echo.choices[0].text.startswith("Once upon")
    assert echo.choices[0].logprobs.token_logprobs[0] is None and len(echo.choices[0].logprobs.tokens) > 3


@check
def responses():
    answer = client.responses.create(model=MODEL, input="Tell me a story.", max_output_tokens=12)
    assert answer.object == "response" and answer.output_text and answer.usage.output_tokens <= 12
    kinds = [event.type for event in client.responses.create(model=MODEL, input="Tell me.", max_output_tokens=4, stream=True)]
    assert kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete"), kinds
    return answer.output_text[:40]


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}


@check
def a_required_tool_is_called():
    answer = chat(tools=[WEATHER], tool_choice="required", max_tokens=400)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls", choice
    call = choice.message.tool_calls[0]
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "weather" and set(arguments) == {"city", "unit"} and arguments["unit"] in ("C", "F")
    return call.function.arguments


@check
def a_named_tool_is_called_in_a_stream():
    named = {"type": "function", "function": {"name": "weather"}}
    name, arguments, finish = "", "", None
    for chunk in chat(tools=[WEATHER], tool_choice=named, max_tokens=400, stream=True):
        for choice in chunk.choices:
            for call in choice.delta.tool_calls or []:
                name += call.function.name or ""
                arguments += call.function.arguments or ""
            finish = choice.finish_reason or finish
    assert name == "weather" and set(json.loads(arguments)) == {"city", "unit"} and finish is not None


@check
def tools_may_be_left_alone():
    assert chat(tools=[WEATHER], tool_choice="none").choices[0].message.tool_calls is None


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["king", "witch", "wolf"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


@check
def a_json_schema_is_kept():
    for seed in range(3):
        schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
        answer = chat(response_format=schema, max_tokens=120, seed=seed, temperature=1.0)
        value = json.loads(answer.choices[0].message.content)
        assert set(value) == {"name", "age", "kind"} and 0 <= value["age"] <= 99 and value["kind"] in ("king", "witch", "wolf")
    return json.dumps(value)


@check
def any_json_object():
    answer = chat(response_format={"type": "json_object"}, max_tokens=200, temperature=1.0)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    else:
        assert answer.choices[0].message.content.lstrip().startswith("{")


@check
def what_is_wrong_is_named():
    bad = openai.BadRequestError
    refused(bad, "temperature", temperature=3.0)
    refused(bad, "top_p", top_p=0)
    refused(bad, "n", n=0)
    refused(bad, "top_logprobs", top_logprobs=2)
    refused(bad, "top_logprobs", logprobs=True, top_logprobs=21)
    refused(bad, "presence_penalty", presence_penalty=2.5)
    refused(bad, "stream_options", stream_options={"include_usage": True})
    refused(bad, "messages", messages=[])
    refused(bad, "max_tokens", max_tokens=0)
    refused(bad, "messages[0].role", messages=[{"role": "pirate", "content": "arr"}])
    refused(openai.NotFoundError, "model", model="no-such-model")
    e = refused(bad, "messages", messages=[{"role": "user", "content": "word " * 20000}])
    assert e.body["code"] == "context_length_exceeded", e.body


@check
def many_at_once():
    async def all_of_them():
        many = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=120)
        ask = lambda i: many.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=16, seed=i, temperature=1.0)
        return await asyncio.gather(*[ask(i) for i in range(16)])

    together = [a.choices[0].message.content for a in asyncio.run(all_of_them())]
    for i in (0, 7, 15):
        assert chat(max_tokens=16, seed=i, temperature=1.0).choices[0].message.content == together[i], "alone and among others"


print(f"{len(FAILED)} failed")
sys.exit(bool(FAILED))
