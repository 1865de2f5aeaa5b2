"""Chats by templates that are not trusted: the same texts as transformers' for real ones, an end for all others."""

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import rlt_jax
from rlt_jax.data import load_tokenizer, rendering, template_worker
from rlt_jax.data.rendering import Renderer, TemplateRefused, TemplateUnsafe, renderer_of
from rlt_jax.data.turns import TODAY
from rlt_jax.errors import UserError
from tests.data.templates import SHAPES, shaped_tokenizer

CHAT = [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": " 1 < 2 & 'é' 😀? \n"}]
ANSWERED = [*CHAT, {"role": "assistant", "content": "<think>\nYes\n</think>\n\nIt is."}]

LANGUAGE = {  # what chat templates of public models use of Jinja
    "tojson": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}"
    "{{ messages[0] | tojson(separators=(',', ':')) }}",
    "loop controls": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% break %}"
    "{% endfor %}",
    "generation": "{% set x = 1 %}{% for m in messages %}{% generation %}{% set x = 2 %}{{ m.content }}{{ x }}"
    "{% endgeneration %}{{ x }}{% endfor %}",
    "namespace": "{% set ns = namespace(a=0, b='x') %}{% for m in messages %}{% set ns.a = ns.a + 1 %}{% endfor %}"
    "{{ ns.a }}{{ ns.b }}",
    "macro": "{% macro turn(m, end='!') %}[{{ m['role'] }}] {{ m['content'] | trim }}{{ end }}{% endmacro %}"
    "{% for m in messages %}{{ turn(m) }}{% endfor %}",
    "call": "{% macro box() %}<{{ caller() }}>{% endmacro %}{% call box() %}{{ messages[0].content }}{% endcall %}",
    "whitespace": "\n  {% if tools is not none %}\n t\n{% endif %}\n{%- for m in messages -%}\n    "
    "{{ m.content }}\n    {# note #}\nx\n{% endfor %}\n",
    "tests": "{{ tools is none }}{{ documents is defined }}{{ thing is defined }}{{ messages is iterable }}"
    "{{ messages[0] is mapping }}{{ 'a' is string }}",
    "strings": "{{ messages[-1].content.strip().split('<')[0].rstrip() ~ ('%s-%d' % ('a', 3)) ~ 'x'.upper() ~ '"
    "a,b'.split(',') | join('/') }}",
    "slices": "{{ messages[1:] | length }}{{ messages[::-1][0].role }}"
    "{{ messages | map(attribute='role') | list }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "dict": "{% set d = dict(a=1, b=2) %}{{ d.items() | list }}{{ {'x': 1}.get('y', 'z') }}"
    "{{ dict.fromkeys(['k'], 1) }}",
    "arithmetic": "{{ 7 // 2 }}{{ 2 ** 5 }}{{ range(5) | list }}{{ [1, 2] + [3] }}{{ 'ab' * 3 }}",
    "generation prompt": "{{ add_generation_prompt }}{{ bos_token }}{{ eos_token }}{{ date_string }}",
    "undefined": "{{ nothing }}{{ messages[0].nothing }}{% if tools %}x{% endif %}",
}


@pytest.fixture(scope="module")
def tokenizer(golden):
    return load_tokenizer(golden / "teacher")


def rendered(template, chats, *, generate=True, **variables):
    renderer = Renderer(template, {"date_string": TODAY, **variables}, "chat_template.jinja")
    try:
        return renderer.render(chats, generate=generate)
    finally:
        renderer.close()


@pytest.mark.parametrize("template", LANGUAGE.values(), ids=LANGUAGE.keys())
@pytest.mark.parametrize("generate", [True, False])
def test_texts_are_those_of_transformers(tokenizer, template, generate):
    chats = [CHAT, CHAT[1:], ANSWERED]
    expected = tokenizer.apply_chat_template(
        chats, chat_template=template, tokenize=False, add_generation_prompt=generate, date_string=TODAY
    )
    assert rendered(template, chats, generate=generate, **tokenizer.special_tokens_map) == expected


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_templates_of_public_models_say_the_same_in_both(shape, golden):
    tokenizer = shaped_tokenizer(shape, golden / "teacher")
    chats = [chat if shape.has_system else chat[1:] for chat in (CHAT, ANSWERED)]
    for generate in (True, False):
        expected = tokenizer.apply_chat_template(
            chats, tokenize=False, add_generation_prompt=generate, date_string=TODAY
        )
        assert rendered(shape.template, chats, generate=generate, **tokenizer.special_tokens_map) == expected


def test_many_chats_keep_their_order_and_every_sign():
    texts = [f"{number} \ud800 \ud83d\ude00 😀 \x00 \u2028 {'x' * (number % 7)}" for number in range(1000)]
    texts[500] = "é" * 3_000_000  # more than is sent at once
    chats = [[{"role": "user", "content": text}] for text in texts]
    assert rendered("<{{ messages[0].content }}>", chats) == [f"<{text}>" for text in texts]


def test_one_process_serves_a_template_and_goes_away_with_it():
    first = renderer_of("{{ messages[0].content }} of a kind", {"date_string": TODAY}, file="f")
    assert renderer_of("{{ messages[0].content }} of a kind", {"date_string": TODAY}, file="f") is first
    before = {child.pid for child in psutil.Process().children()}
    alone = Renderer("{{ messages[0].content }}", {"date_string": TODAY}, "f")
    assert alone.render([CHAT], generate=True) == alone.render([CHAT], generate=False) == ["Be brief. "]
    (pid,) = {child.pid for child in psutil.Process().children()} - before
    del alone
    assert not psutil.pid_exists(pid)


def test_the_process_sees_no_secrets_and_may_write_nothing(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyz")
    before = {child.pid for child in psutil.Process().children()}
    renderer = Renderer("{{ messages[0].content }}", {"date_string": TODAY}, "f")
    renderer.render([CHAT], generate=True)
    (child,) = [child for child in psutil.Process().children() if child.pid not in before]
    assert "HF_TOKEN" not in child.environ()
    assert resource.prlimit(child.pid, resource.RLIMIT_FSIZE) == (0, 0)
    renderer.close()


ENDLESS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "growing number": "{% set n = namespace(x=3) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "sorting": "{% for i in range(99999) %}{{ range(99999) | list | sort | length }}{% endfor %}",
    "per character": "{% for a in messages[-1].content %}{% for b in range(99999) %}{% for c in range(9) %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "lipsum": "{% for i in range(99999) %}{{ lipsum(n=99) | length }}{% endfor %}",
}
HUGE = {
    "repeated": "{{ 'a' * 10 ** 11 }}",
    "doubled": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "a list doubled": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "centred": "{{ 'a' | center(10 ** 11) }}",
    "format": "{{ '%099999999999d' | format(3) }}",
    "format method": "{{ '{:>99999999999}'.format('a') }}",
    "indented": "{{ 'a\nb' | indent(10 ** 11) }}",
    "batched": "{{ [1] | batch(10 ** 10, 'x') | list }}",
    "joined": "{{ range(99999) | join('a' * 10 ** 6) }}",
    "one line after another": "{% for i in range(99999) %}{{ 'a' * 10 ** 5 }}{% endfor %}",
}


@pytest.mark.parametrize("template", [*ENDLESS.values(), *HUGE.values()], ids=[*ENDLESS, *HUGE])
def test_what_takes_too_long_or_too_much_ends_and_names_the_file(template, monkeypatch):
    monkeypatch.setattr(rendering, "SECONDS", 0.3)
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"chat_template\.jinja"):
        rendered(template, [CHAT])
    assert time.monotonic() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS)
def test_too_long_is_said_so(template, monkeypatch):
    monkeypatch.setattr(rendering, "SECONDS", 0.2)
    with pytest.raises(
        TemplateUnsafe, match=r"in bounded time and memory, but of the one in chat_template\.jinja: it tak"
    ):
        rendered(template, [CHAT])


def test_a_slow_template_ends_within_a_time_that_follows_the_number_of_chats(monkeypatch):
    """Each chat alone is within the bound."""
    monkeypatch.setattr(rendering, "SECONDS", 0.5)
    slow = "{% for a in range(99999) %}{% for b in range(30) %}{% endfor %}{% endfor %}"
    start = time.monotonic()
    with pytest.raises(TemplateUnsafe, match="too long"):
        rendered(slow, [CHAT] * 200)
    assert time.monotonic() - start < 30


def test_a_text_much_longer_than_the_messages_is_refused():
    with pytest.raises(TemplateUnsafe, match="makes 1000000 characters of 27"):
        rendered("{{ 'a' * 1000000 }}", [CHAT])


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('touch marker') }}",
    "{{ ''['__class__'] }}{{ (''|attr('__class__')).mro() }}",
    "{% set n = namespace(__class__=1) %}",
    "{% set n = namespace() %}{% set n.__dict__ = {} %}",
    "{{ messages.append(1) }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('touch marker') }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_pythons_internals_are_out_of_reach(template, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        (text,) = rendered(template, [CHAT])
        assert "<class" not in text and "root:" not in text
    except UserError as error:
        assert "chat_template.jinja" in str(error)
    assert list(tmp_path.iterdir()) == []


BROKEN = {
    "syntax": "{% for %}",
    "deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "type": "{{ 'a' + 1 }}",
    "division": "{{ 1 // 0 }}",
    "raised": "{{ raise_exception('no ' ~ messages[0].role) }}",
}


@pytest.mark.parametrize("template", BROKEN.values(), ids=BROKEN)
def test_broken_templates_are_the_users_matter(template):
    with pytest.raises(UserError, match=r"chat_template\.jinja"):
        rendered(template, [CHAT])


def test_a_refusal_of_one_chat_leaves_the_process_to_others():
    renderer = Renderer(
        "{{ raise_exception('no') if messages[0].role == 'system' else 'yes' }}", {"date_string": ""}, "f"
    )
    for _ in range(3):
        with pytest.raises(TemplateRefused, match="it says: no"):
            renderer.render([CHAT], generate=True)
        assert renderer.render([CHAT[1:]], generate=True) == ["yes"]
    renderer.close()


def test_an_interrupted_batch_does_not_answer_the_next_one(monkeypatch):
    renderer = Renderer("{{ messages[0].content }}", {"date_string": ""}, "f")

    def interrupted(stream):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        renderer.render([CHAT], generate=True)
        patch.setattr(template_worker, "receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            renderer.render([CHAT], generate=True)
    assert renderer.render([CHAT[1:]], generate=True) == [CHAT[1]["content"]]
    renderer.close()


def test_the_process_ends_with_a_killed_owner():
    code = (
        "import os, psutil, sys\nfrom rlt_jax.data.rendering import Renderer\n"
        "r = Renderer('x', {'date_string': ''}, 'f'); r.render([[{'role': 'user', 'content': 'a'}]], generate=True)\n"
        "print(psutil.Process().children()[0].pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pid, deadline = int(done.stdout), time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_command_line_names_the_file_and_ends(tmp_path):
    tiny = Path(rlt_jax.__file__).parent / "assets" / "tiny"
    student = shutil.copytree(tiny / "student", tmp_path / "student")
    (student / "chat_template.jinja").write_text("{{ 'a' * 10 ** 11 }}")
    flags = [
        "--teacher",
        tiny / "teacher",
        "--student",
        student,
        "--data",
        tiny / "eval.jsonl",
        "--out",
        tmp_path / "o",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "rlt_jax.score", *map(str, flags)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert str(student / "chat_template.jinja") in done.stderr
