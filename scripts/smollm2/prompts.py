"""Prompts of the training texts: chat requests made from lists, passages of books, and beginnings of chats.

Held-out prompts are no part of these lists: evaluate with others.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_TOPICS = """
the water cycle|photosynthesis|a healthy breakfast|learning to swim|the history of bread|coral reefs|
how bicycles stay upright|tides|a first job interview|volcanoes|sleep|the printing press|gardening in small spaces|
public libraries|the solar system|black holes|saving money|growing tomatoes|the Roman roads|electric cars|
wind power|recycling paper|bees|learning a second language|playing the piano|chess openings|writing a letter|
travelling by train|mountain hiking|first aid for burns|the human heart|vaccines|antibiotics|the French Revolution|
ancient Egypt|the Silk Road|the Industrial Revolution|maps|compasses|lighthouses|fractions|prime numbers|
probability|the Pythagorean theorem|negative numbers|averages|percentages|compound interest|inflation|
supply and demand|taxes|budgets|dogs|cats|horses|whales|penguins|owls|ants|butterflies|sharks|elephants|dinosaurs|
forests|deserts|rivers|glaciers|earthquakes|hurricanes|rainbows|snow|clouds|computers|the internet|passwords|email|
search engines|robots|artificial intelligence|video games|smartphones|batteries|solar panels|steam engines|bridges|
painting|photography|poetry|theatre|dancing|film music|architecture|sculpture|pottery|knitting|sewing|woodworking|
baking a cake|making soup|cooking rice|coffee|tea|chocolate|olive oil|spices|vegetarian food|school lunches|
teamwork|leadership|honesty|friendship|patience|courage|kindness|stress|exercise|yoga|running|football|tennis|
swimming|camping|birdwatching|stargazing|fishing|sailing|moving house|renting a flat|writing a CV|giving a speech|
taking notes|studying for exams|time management|remote work|customer service|small businesses|advertising|
newspapers|fairy tales|myths|detective stories|science fiction|diaries|interviews|democracy|courts|elections|
human rights|the United Nations|museums|festivals|weddings|holidays|birthdays|families|grandparents|children|
teenagers|teachers|doctors|nurses|farmers|sailors|pilots|engineers|scientists|the Moon landing|the speed of light|
gravity|magnets|atoms|water|salt|iron|gold|plastic|glass|paper|clocks|calendars
"""
_REQUESTS = """
Explain {} to a ten-year-old.|What is important to know about {}?|Write a short paragraph about {}.|
Give me five facts about {}.|Write a short story about {}.|Write a poem about {}.|
List the advantages and disadvantages of {}.|How does one begin with {}?|Why does {} matter?|
Write an introduction to an essay on {}.|What are common mistakes people make about {}?|
Write a dialogue between two friends about {}.|Summarize what is known about {} in three sentences.|
Give step-by-step advice on {}.|Write a letter to a friend about {}.|What questions should I ask an expert on {}?|
Compare {} with something similar.|Make a quiz of three questions with answers about {}.|
Write a blog post about {}.|What would happen without {}?|Describe {} without using technical words.|
Write a news report about {}.|Give me ten ideas for a project about {}.|Write a product description related to {}.|
Write an email to my boss about {}.|Tell me something surprising about {}.|
Write a lesson plan about {} for a class of twelve-year-olds.|Define {} and give two examples.|
What is the history of {}?|Write a conclusion for an article about {}.|
Create a table of contents for a book on {}.|Explain the basics of {} in a numbered list.|
Return a JSON list of six objects with the fields name and description about {}.|Write three tweets about {}.|
Write a speech about {} of about 200 words.|What skills are useful for {}?|Make a weekly plan to learn about {}.|
Write a review of a book about {}.|Translate into plain words: why is {} discussed so often?
"""
_CODE = """
Write a Python function that {}.|Write a Python function that {} and explain it line by line.|
Show me JavaScript code that {}.|How do I write a program that {}?|
Write a Python class with a method that {}, and unit tests for it.
"""
_TASKS = """
reverses a string|counts the words of a text|checks whether a number is prime|sorts a list of numbers|
finds the largest item of a list|removes duplicates from a list|computes a factorial|prints the Fibonacci numbers|
merges two dictionaries|reads a CSV file|writes a list to a file|checks for balanced brackets|
converts Celsius to Fahrenheit|finds the most common letter|joins two lists|computes the average of a list|
checks whether a word is a palindrome|generates a random password|flattens a nested list|parses a date|
validates an email address|computes the distance between two points|implements binary search|implements a stack|
implements a queue|counts vowels|transposes a matrix|finds common elements of two lists|
groups words by their first letter|rounds numbers to two decimals
"""
_PASSAGES = """
Summarize this passage in two sentences:|Rewrite this passage in modern English:|
Rewrite this passage with shorter sentences:|List the people and places in this passage:|
Copy this passage and correct its punctuation:|What happens in this passage?|
Write three questions about this passage and answer them:|Continue this passage:|
Return the main points of this passage as a JSON list of strings:|Rewrite this passage in the first person:|
Repeat this passage, and replace every "and" by "&":
"""
_SIZES = (60, 100, 160, 240)  # words of a passage


@dataclass(frozen=True)
class Prompt:
    """A prompt of a training text.

    Attributes:
      kind: "chat" with `text` as the user's message, "book" with `text` to be continued, or "user", which has no text:
        the model writes the user's message too.
      text: as `kind` says.
      temperature: of the text.
    """

    kind: str
    text: str
    temperature: float


def prompts(books: Sequence[Path], count: int, seed: int) -> list[Prompt]:
    """`count` prompts in random order: five in eight chat requests, one in eight each of passages to work on, book
    continuations and chats that the model begins itself."""
    draw = random.Random(seed)
    topics, requests, code, tasks, passages = map(_entries, (_TOPICS, _REQUESTS, _CODE, _TASKS, _PASSAGES))
    words = [path.read_text(encoding="utf-8").split(" ") for path in books]

    def passage(size: int) -> str:
        book = draw.choice(words)
        start = draw.randrange(len(book) - size)
        return " ".join(book[start : start + size]).strip()

    made = []
    for number in range(count):
        kind = number % 8
        temperature = (0.0, 1.0, 0.6, 1.0)[number // 8 % 4]
        if kind < 4:
            made.append(Prompt("chat", draw.choice(requests).format(draw.choice(topics)), temperature))
        elif kind == 4:
            made.append(Prompt("chat", draw.choice(code).format(draw.choice(tasks)), temperature))
        elif kind == 5:
            made.append(Prompt("chat", f"{draw.choice(passages)}\n\n{passage(draw.choice(_SIZES))}", temperature))
        elif kind == 6:
            made.append(Prompt("book", passage(draw.choice(_SIZES)), temperature))
        else:
            made.append(Prompt("user", "", 1.0))
    draw.shuffle(made)
    return made


def _entries(text: str) -> list[str]:
    return [entry.strip() for entry in text.replace("\n", "").split("|") if entry.strip()]
