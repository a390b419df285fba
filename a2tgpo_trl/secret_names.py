"""a variable's name -> whether its value is a secret, which neither a policy nor a record may show."""

import re


SECRET = re.compile(
    r"KEY(?!BOARD|WORD)|TOKEN(?!IZE)|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|AUTHORIZATION|COOKIE"
    r"|(?<![A-Z])(PASS|PAT|AUTH|BEARER)(?![A-Z])"
)
OF_TOKENIZERS = re.compile(r"(?<![A-Z])(PAD|EOS|BOS|UNK|SEP|CLS|MASK|SPECIAL|STOP)_TOKENS?(?![A-Z])")
# As in token_level. In names of secrets the word is at the end.
TOKENS_OF_TEXT = re.compile(r"(?<![a-z])tokens?_(?=[a-z])", re.IGNORECASE)
HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
SHORTEST_SECRET = 8  # characters: a shorter value may be any word


def names_secret(name: str) -> bool:
    """Whether a variable or a setting of this name holds a secret.

    Example: "DB_PASS", "apiKey", "hub_token" -> True; "PATH", "tokenizer", "pad_token" -> False
    """
    words = HUMP.sub("_", name).upper()
    return SECRET.search(OF_TOKENIZERS.sub("", words)) is not None


def setting_is_secret(name: str) -> bool:
    """Whether a setting's name suggests a secret. Example: "hub_token" -> True; "token_level" -> False"""
    return names_secret(TOKENS_OF_TEXT.sub("", name))
