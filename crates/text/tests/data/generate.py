"""Writes chat.json and tokens.json: what Python's jinja2 and tokenizers packages say.

    pip install jinja2==3.1.6 tokenizers==0.23.3
    cd crates/text/tests/data && python generate.py

The Rust tests read only the JSON files. Run this again after changing a case.
"""

import datetime
import json
import random

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

NOW = 1_720_000_000


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


class Refused(Exception):
    pass


def environment():
    def raise_exception(message):
        raise Refused(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda f: datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).strftime(f)
    return env


TEMPLATES = {
    "chatml": """{%- for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "tales": """{% for m in messages %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}""",
    "headers": """{% set loop_messages = messages %}
{% for message in loop_messages %}
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}
{% if loop.index0 == 0 %}
{% set content = bos_token + content %}
{% endif %}
{{ content }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{% endif %}""",
    "headers_dated": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none and tools is defined %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "alternating": """{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}""",
    "folded_system": """{%- if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif -%}
{% for m in rest %}
{%- if loop.index0 == 0 and system is defined -%}
{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + m['content'] %}
{%- else -%}
{% set content = m['content'] %}
{%- endif -%}
{{ '<start_of_turn>' + (m['role'] if m['role'] != 'assistant' else 'model') + '\\n' + content.strip() + '<end_of_turn>\\n' }}
{%- endfor -%}
{{ '<start_of_turn>model\\n' if add_generation_prompt }}""",
    "namespace_thinking": """{%- set ns = namespace(last=-1, multi=true) %}
{%- for m in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi and m.role == "user" and not(m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>')) %}
        {%- set ns.multi = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- if m.role == "assistant" %}
        {%- set content = m.content %}
        {%- set reasoning = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""",
    "loop_controls": """{% for m in messages %}
{% if m.role == 'system' %}{% continue %}{% endif %}
{{ loop.index }}/{{ loop.length }} {{ m.role | upper }}: {{ m.content }}
{% if loop.index0 >= 2 %}{% break %}{% endif %}
{% endfor %}""",
    "generation_marks": """{% for m in messages %}
{% if m.role == 'assistant' %}
<a>{% generation %}{{ m.content }}</a>
{% endgeneration %}
{%- else %}
<u>{{ m.content }}</u>
{%- generation -%}   
   x  {%- endgeneration %}
{% endif %}
{% endfor %}""",
    "macro_tools": """{% macro show(tool) -%}
{{ tool.name }}({% for k, v in tool.parameters.items() %}{{ k }}: {{ v.type }}{{ ", " if not loop.last }}{% endfor %})
{%- endmacro %}
{% if tools is defined and tools %}
{% for tool in tools %}
- {{ show(tool) }} {{ tool | tojson }}
{% endfor %}
{% endif %}
{% for m in messages %}{{ m.role ~ ': ' ~ m.content }}
{% if m.tool_calls is defined %}{% for c in m.tool_calls %}{{ {"name": c.name, "arguments": c.arguments} | tojson }}
{% endfor %}{% endif %}
{% endfor %}{{ none_there | length }} {{ messages | length }}""",
    "json_styles": """{{ extra_value | tojson }}
{{ extra_value | tojson(ensure_ascii=True) }}
{{ extra_value | tojson(indent=2) }}
{{ extra_value | tojson(indent=0) }}
{{ extra_value | tojson(separators=(',', ':')) }}
{{ extra_value | tojson(sort_keys=true, indent=1) }}
{{ messages | tojson }}""",
    "string_methods": """{% for m in messages %}{{ m.content.strip() }}|{{ m.content.split() | join('+') }}|{{ m.content.title() }}|{{ m.content.replace('e', '3') }}|{{ m.content[:3] }}|{{ m.content[-2:] }}|{{ m['content'].upper().lower().capitalize() }}|{{ m.get('name', 'nobody') }}|{{ m.content.find('a') }}|{{ 'x' in m.content }}
{% endfor %}{{ messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ (messages | last).content }} {{ messages[-1].role }}""",
    "more_string_methods": """{% for m in messages %}{{ m.content.removeprefix('a').removesuffix('b') }}|{{ m.role.rjust(9) }}|{{ m.role.ljust(9, '.') }}|{{ m.content.partition(' ')[2] }}|{{ m.content.rpartition('\\n') | list }}|{{ m.role.isspace() }}|{{ m.content.partition('</think>') | tojson }}
{% endfor %}{{ [true, none, 1.0, 'x'] }} {{ none }} {{ true }} {{ {'a': 1} }} {{ 7 // 2 }} {{ 7 / 2 }} {{ -7 % 3 }}""",
    "content_parts": """{% for m in messages %}[{{ m.role }}] {% if m.content is string %}{{ m.content }}{% elif m.content is iterable %}{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{% endif %}

{% endfor %}""",
    "defined": "{{ tools is defined }} {{ tools is none }} {{ documents is none }} {{ nothing is defined }}{{ nothing }}",
    "line_ends": "{% for m in messages %}\r\n{{ m.role }}\r\n{% endfor %}\r\nend\r\n",
    "comments": """{#- a comment with {% generation %} inside -#}
   {% if true %}   yes   {% endif %}   
  {{- " a" -}}   b {# c #} 
d
""",
}

TOOL = {
    "name": "weather",
    "description": "It's <b>rain</b> & \"sun\"",
    "parameters": {"city": {"type": "string"}, "days": {"type": "integer"}},
}
CHATS = {
    "one": [{"role": "user", "content": "Hello, who are you?"}],
    "system": [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": "  Tell me a tale  "},
        {"role": "assistant", "content": "<think>\nhm, é\n</think>\n\nOnce upon a time.\n"},
        {"role": "user", "content": "和 <tool_response> & 'more' 🙂\n\n"},
    ],
    "twice_user": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    "reply": [{"role": "user", "content": "a\tb  c"}, {"role": "assistant", "content": "<think>x</think>y"}],
    "tool": [
        {"role": "user", "content": "Rain?", "name": "Ada"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "weather", "arguments": {"city": "Zürich", "days": 2}}]},
        {"role": "tool", "content": "<tool_response>\nno\n</tool_response>"},
    ],
}
PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]},
    {"role": "assistant", "content": None},
    {"role": "user", "content": "c"},
]
# Templates expect these to be defined.
NOTHING = {"tools": None, "documents": None}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
VALUES = {
    "z": [1, -2, 3.0, 0.1, 1e16, 1e-5, 123456789.5, -0.0, 1.5e300, 10**18, 2.5e-7, 1e15, 12345678901234567.0],
    "a": {"q": "\"quoted\" \\ / \n\t\r\b\f\u0001\u007f é 漢 🙂 <>&'"},
    "m": {"empty": [], "none": {}, "t": True, "f": False, "n": None, "É": 1},
}


def chat_cases():
    env, cases = environment(), []

    def add(template, messages, generate, extra):
        case = {"template": template, "messages": messages, "add_generation_prompt": generate, "extra": extra}
        try:
            compiled = env.from_string(TEMPLATES[template])
            case["expected"] = compiled.render(NOTHING | extra, messages=messages, add_generation_prompt=generate)
        except Refused as refusal:
            case["refused"] = str(refusal)
        except Exception as failure:
            case["fails"] = type(failure).__name__
        cases.append(case)

    for name in TEMPLATES:
        if name == "json_styles":
            add(name, CHATS["system"], False, {"extra_value": VALUES})
            continue
        if name == "content_parts":
            add(name, PARTS, False, {})
        for chat in CHATS.values():
            for generate in (False, True):
                add(name, chat, generate, SPECIAL)
        if "tools" in TEMPLATES[name]:
            add(name, CHATS["one"], True, SPECIAL | {"tools": [TOOL, TOOL]})
        if "enable_thinking" in TEMPLATES[name]:
            add(name, CHATS["system"], True, SPECIAL | {"enable_thinking": False})
            add(name, CHATS["system"], True, SPECIAL | {"enable_thinking": True})
    return {"now": NOW, "templates": TEMPLATES, "cases": cases}


TEXTS = [
    "", " ", "  ", "\n", "\n\n", "\r\n", " \n ", "\t\tx", "a", " a", "a ", "  a  b   c",
    "Once upon a time, there was a little girl.", "Once upon a time,\nthere was a dog.\n\n\nThe end.   ",
    "don't I'll we've I'M it'S THEY'RE", "x=1;y=[2,3];z={'k':\"v\"}", "1234567890", "3.14159 1,000,000 0x1F",
    "ALLCAPS camelCase snake_case kebab-case", "Café naïve Zürich", "Cafe\u0301 nai\u0308ve", "日本語のテキスト、句読点。",
    "한국어 텍스트", "Привет, мир!", "مرحبا بالعالم", "नमस्ते दुनिया", "🙂😀👍🏽", "👨‍👩‍👧‍👦 family 🏳️‍🌈", "e\u200bz\u00a0w\u3000end", "\ufeffbom",
    "a\u0000b\u0001c\u007f", "½ ² Ⅷ ١٢٣ ４５", "ﬁ ﬂ ß ẞ İ ı", "<|endoftext|>", "a<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|><|im_start|>", "<|im_start |> <|im_end|", " <|endoftext|> ", "http://example.com/a?b=c&d=%20#e", "!!!???...,,,---___", "don’t “quote” — dash…",
    "a" * 200, " " * 50 + "x", "\U0010ffff\ud7ff\ue000", "𝒳𝓎 𐍈", "one\ttwo\vthree\ffour\u0085five\u2028six",
]  # fmt: skip


def token_cases():
    tokenizer = Tokenizer.from_file("../../../billfish/assets/tales-6m-w4-sym-g128/tokenizer.json")
    encoded = []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=True).ids
        texts = [tokenizer.decode(ids, skip_special_tokens=skip) for skip in (False, True)]
        encoded.append({"text": text, "ids": ids, "decoded": texts[0], "decoded_skip": texts[1]})
    rng, decoded = random.Random(7), []
    for length in (1, 2, 3, 5, 8, 13, 21, 34):
        # The first ids are special tokens and single bytes: sequences of these are rarely text.
        ids = [rng.randrange(300 if length % 2 else 4096) for _ in range(length)]
        decoded.append({"ids": ids, "decoded_skip": tokenizer.decode(ids, skip_special_tokens=True)})
    return {"encoded": encoded, "decoded": decoded, "vocab_size": tokenizer.get_vocab_size(with_added_tokens=True)}


for name, cases in (("chat", chat_cases()), ("tokens", token_cases())):
    with open(f"{name}.json", "w", encoding="utf-8") as out:
        json.dump(cases, out, ensure_ascii=True, indent=1)
        out.write("\n")
