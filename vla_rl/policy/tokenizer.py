"""`read_tokenizer`: the tokenizer in a checkpoint's tokenizer.json, checked."""

from __future__ import annotations

from tokenizers import Tokenizer

from vla_rl.errors import UserError


def read_tokenizer(content: str, vocabulary: int, *, sample: str, special_tokens: bool) -> Tokenizer:
    """The tokenizer of a tokenizer.json, without padding and truncation of its own.

    Args:
        content: of the file.
        vocabulary: tokens that the model embeds.
        sample: part of a prompt that every such tokenizer has to know.
        special_tokens: what the file puts around a prompt is put there.

    Raises:
        UserError: it is none, makes no tokens of `sample`, or has more tokens than the model embeds.
    """
    try:
        tokenizer = Tokenizer.from_str(content)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if not special_tokens:
            tokenizer.post_processor = None
        ids = tokenizer.encode(sample, add_special_tokens=False).ids  # some mistakes show only now
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # the library has no type of its own, and a panic of its Rust code is no `Exception`
        raise UserError(f"tokenizer.json is no tokenizer ({e}): download or copy it again") from e
    if not ids:
        raise UserError(f"tokenizer.json makes no tokens of {sample!r}: copy the one that came with the weights")
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocabulary:
        raise UserError(f"tokenizer.json has ids up to {largest}, the model embeds {vocabulary} alone: is it its own?")
    return tokenizer
