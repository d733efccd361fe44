"""A tokenizer with a chat template that counts the texts it encodes."""

from tokenizers_made_here import byte_level


class Chatting:
    """As `byte_level`, with a chat template.

    Attributes:
      texts: what was encoded, in order.
    """

    chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"

    def __init__(self):
        self.texts = []

    def __call__(self, text, **options):
        self.texts.append(text)
        return byte_level()(text, **options)

    def apply_chat_template(self, turns, **options):
        return byte_level().apply_chat_template(turns, chat_template=self.chat_template, **options)

    def __getattr__(self, name):
        return getattr(byte_level(), name)
