"""Tokenizer files that are none, or another model's."""

import json

import pytest

from tests.helpers.flow import byte_tokenizer
from vla_rl.errors import UserError
from vla_rl.policy.tokenizer import read_tokenizer

NOTHING = {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}
EVERYTHING = {"Regex": "[\\s\\S]"}


def changed(**parts):
    return json.dumps(json.loads(byte_tokenizer()) | parts)


def normalizer(kind, **options):
    return changed(normalizer={"type": kind, **options})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no tokenizer .*EOF"),
        ("null", "is no tokenizer"),
        (byte_tokenizer()[:-1], "is no tokenizer .*EOF"),
        (changed(model=None), "is no tokenizer"),
        (changed(model={"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 5}), "is no tokenizer .*UnkIdNotIn"),
        # where the library panics
        (normalizer("Precompiled", precompiled_charsmap=""), "is no tokenizer .*precompiled_charsmap"),
        (normalizer("Precompiled", precompiled_charsmap="AQAAAGFiYw=="), "is no tokenizer .*index out of bounds"),
        (changed(pre_tokenizer={"type": "FixedLength", "length": 0}), "is no tokenizer .*must be non-zero"),
        # what leaves nothing of a prompt
        (normalizer("Replace", pattern=EVERYTHING, content=""), "makes no tokens of 'Task:'"),
        (changed(model={"type": "BPE", "vocab": {}, "merges": []}), "makes no tokens of 'Task:'"),
        (changed(post_processor=NOTHING), "makes no tokens of 'Task:'"),
    ],
)
def test_what_is_no_tokenizer(content, message):
    with pytest.raises(UserError, match=f"^tokenizer.json {message}"):
        read_tokenizer(content, 256, sample="Task:", special_tokens=True)


def test_what_a_file_puts_around_a_prompt_can_be_left_out():
    assert read_tokenizer(changed(post_processor=NOTHING), 256, sample="Task:", special_tokens=False).encode("a").ids


def test_ids_that_a_model_does_not_embed():
    assert read_tokenizer(byte_tokenizer(), 256, sample="Task:", special_tokens=True).encode("a").ids
    with pytest.raises(UserError, match="ids up to 255, the model embeds 255 alone"):
        read_tokenizer(byte_tokenizer(), 255, sample="Task:", special_tokens=True)
